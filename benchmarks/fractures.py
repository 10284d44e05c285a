"""How well are fractures of known loss measured and graded, and how many vertebrae of real columns are? JSON lines.

``python benchmarks/fractures.py broken MASKS...``: the vertebrae of label maps lose height by known parts,
in random poses, with noise, in slices of 1 to 5 mm; the columns otherwise stay as they are. Their own fractures are
left alone: a vertebra that is graded as it is is not broken again. ``--losses hard``: those close to the limits of the
grades; ``--losses uniform``: any from 0 to 60 %. ``summary ROWS.jsonl...`` makes the table of it.
``python benchmarks/fractures.py columns MASKS... [--pictures FILE.png]``: what is graded in the label maps themselves.
Both leave out the maps that the method was made with, unless ``--split looked-at`` asks for those.
``python benchmarks/fractures.py norm``: the table of the norm, from the shape model.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Testing"))

from helpers.broken_spine import KINDS, Whole, sampled, true_heights, true_points, whole  # noqa: E402

from segmamba.evaluation.names import OWN_IDS  # noqa: E402
from segmamba.evaluation.references import read_reference  # noqa: E402
from segmamba.io.modality import MR  # noqa: E402
from segmamba.measurements.end_plates import NO, end_plates  # noqa: E402
from segmamba.measurements.fractures import LARGEST_TORN, Loss, is_graded, losses  # noqa: E402
from segmamba.measurements.heights import FLOOR_MM, PLACES, Heights, heights_of  # noqa: E402
from segmamba.measurements.vertebrae import centroid, direction, mask_in_box, measure_labels  # noqa: E402
from segmamba.measurements.vertebral_body import Mask, find_body  # noqa: E402
from segmamba.models.manifest import load_manifest  # noqa: E402
from segmamba.models.resources import SHAPES, resource_root  # noqa: E402
from segmamba.spine.grades import grade_of  # noqa: E402
from segmamba.spine.levels import L5  # noqa: E402
from segmamba.spine.shape_model import load_shapes, region_of  # noqa: E402
from segmamba.tasks import VERTEBRAE_TASK  # noqa: E402
from segmamba.utils.arrays import label_boxes  # noqa: E402

SLICES_MM, PIXEL_MM = (1.0, 2.5, 5.0), 0.8
# Hard losses lie 2.5 points from the limits of grade 1, or in the grades 2 and 3: with what a vertebra has lost before,
# they are often close to a limit. One vertebra of a column is broken for each of them and each kind.
LOSSES = (0.225, 0.325, 0.5)
# Uniform losses reach from 0 to this; each vertebra is broken so often, each time in a kind that is drawn.
LARGEST_LOSS, DRAWS = 0.6, 1
HOW = ("hard", "uniform")
# An observer knows how a plate is broken: one prior of `segmamba.measurements.end_plates.PRIORS` for each kind.
KNOWN = {"middle": (0.3, NO, 4.0), "anterior rim": (0.3, 5.0, NO)}
UNBENT = (0.3, NO, NO)
PARTS = {"T4 to T8": range(11, 16), "T9 to T12": range(16, 20), "lumbar": range(20, 25)}
LARGEST_TILT_DEG = 15.0
SPLITS = ("held-out", "looked-at")
LOOKED_AT = ("verse010", "verse093")
T4 = 11
# Degree of the polynomial that smooths the norm along the column; pixels of a picture, half a millimetre each.
SMOOTH_ORDER, TILE = 3, 130


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("broken", "columns", "norm", "summary"))
    parser.add_argument("files", type=Path, nargs="*", metavar="FILES")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0])
    parser.add_argument("--losses", choices=HOW, default=HOW[0])
    options = parser.parse_args()
    maps = [path for path in options.files if split_of(path) == options.split]
    if options.what == "norm":
        print(json.dumps(norm()))
    elif options.what == "columns":
        columns(maps, options.pictures)
    elif options.what == "broken":
        for path in maps:
            for row in broken(path, options.losses):
                print(json.dumps(row), flush=True)
    else:
        rows = [json.loads(line) for path in options.files for line in path.read_text().splitlines()]
        for line in summary(rows):
            print(json.dumps(line))


def split_of(path: Path) -> str:
    """Return one of `SPLITS`: half of the people, by the checksum of the name, and those that were looked at before."""
    name = path.name.split("_vertebrae")[0]
    return SPLITS[int(zlib.crc32(name.encode()) % 2 == 0 or name in LOOKED_AT)]


def masks_of(path: Path) -> dict[int, Mask]:
    volume = read_reference(path, OWN_IDS)
    boxes = {level: box for level, box in label_boxes(volume.array).items() if is_graded(level)}
    return {level: mask_in_box(volume.array[box] == level, box, volume.geometry) for level, box in boxes.items()}


def places(masks: dict[int, Mask]) -> dict[int, np.ndarray]:
    return {level: centroid(mask) for level, mask in masks.items()}


def measured(mask: Mask, up: np.ndarray) -> Heights | None:
    """Return the heights in a mask, as `segmamba.measurements.vertebrae.measure` does."""
    body = find_body(mask, up)
    plates = None if body is None else end_plates(body, mask)
    return None if body is None or plates is None else heights_of(body, plates, mask)


def observed(vertebra: Whole, pose: np.ndarray, mask: Mask, up: np.ndarray, loss: tuple[str, float] | None) -> Heights:
    """Return the heights that an observer reads who knows how the plates are broken, and above which points to read.

    He does not know the body as it was before. His heights are between the plates that explain the mask best.
    """
    body = find_body(mask, up)
    plates = None if body is None else end_plates(body, mask, (KNOWN.get(loss[0] if loss else "", UNBENT),))
    if body is None or plates is None:
        return known(np.full(len(PLACES), np.nan))
    places_lps = (vertebra.body.centre + true_points(vertebra, loss) @ vertebra.body.axes) @ pose.T
    local = (places_lps - body.centre) @ body.axes.T
    for side, plate in enumerate(plates):
        local[:, side, 0] = plate.height(local[:, side, 1], local[:, side, 2])
    return known(np.linalg.norm(local[:, 0] - local[:, 1], axis=1))


def broken(path: Path, how: str) -> Iterator[dict[str, Any]]:
    """Break vertebrae of a column, one at a time, and yield what is measured and graded."""
    rng = np.random.default_rng(sum(path.name.encode()))
    own = masks_of(path)
    centres = places(own)
    found = {level: whole(mask, direction(level, centres)) for level, mask in own.items()}
    column = {level: one for level, one in found.items() if one is not None and one.torn <= LARGEST_TORN}
    exact = {level: known(one.heights) for level, one in column.items()}
    sound = [level for level, loss in losses(exact).items() if loss.grade == 0]
    for thick in SLICES_MM:
        spacing = (PIXEL_MM, PIXEL_MM, thick)
        pose = Rotation.from_rotvec(np.radians(rng.uniform(-LARGEST_TILT_DEG, LARGEST_TILT_DEG, 3))).as_matrix()
        masks = {level: sampled(one, pose, spacing, None, rng) for level, one in column.items()}
        centres = places(masks)
        whole_column = {level: measured(mask, direction(level, centres)) for level, mask in masks.items()}
        for level, kind, part in drawn_losses(sound, how, rng):
            loss = None if kind == "none" else (kind, part)
            mask = sampled(column[level], pose, spacing, loss, rng)
            up = direction(level, {**centres, level: centroid(mask)})
            now = {**whole_column, level: measured(mask, up)}
            column_now = {other: each for other, each in now.items() if is_whole(each)}
            judged = losses(column_now).get(level)
            truth = column[level].heights if loss is None else true_heights(column[level], *loss)
            by_truth = losses({**exact, level: known(truth)})[level]
            # What the norm makes wrong, and what the heights do: the loss that exact heights would have in the column
            # as it was measured, and that measured heights would have in the exact column.
            by_norm = losses({**column_now, level: known(truth)})[level]
            by_heights = losses({**exact, level: now[level]}).get(level) if is_whole(now[level]) else None
            by_observer = losses({**exact, level: observed(column[level], pose, mask, up, loss)}).get(level)
            yield {
                **{"case": path.name.split(".")[0], "level": level, "slice_mm": thick, "kind": kind},
                **{"losses": how, "loss": round(part, 3)},
                **result(now[level], judged, truth),
                # The largest loss against the body as it was, where heights are read: at one side it is less there.
                "grade_of_loss": grade_of(float((1 - truth / column[level].heights).max())),
                "grade_of_true_heights": by_truth.grade,
                "loss_of_true_heights": round(by_truth.part, 3),
                "loss_by_measured_norm": round(by_norm.part, 3),
                "loss_by_observer": None if by_observer is None else round(by_observer.part, 3),
                "loss_by_measured_heights": None if by_heights is None else round(by_heights.part, 3),
            }


def drawn_losses(sound: list[int], how: str, rng: np.random.Generator) -> list[tuple[int, str, float]]:
    """Return which vertebrae are broken, each its level, kind and part."""
    if not sound:
        return []
    if how == "uniform":
        kinds = list(KINDS)
        return [
            (level, kinds[rng.integers(len(kinds))], float(rng.uniform(0, LARGEST_LOSS)))
            for level in sound
            for _ in range(DRAWS)
        ]
    each = [("none", 0.0), *((kind, part) for kind in KINDS for part in LOSSES)]
    return [(int(rng.choice(sound)), kind, part) for kind, part in each]


def is_whole(heights: Heights | None) -> bool:
    return heights is not None and heights.torn <= LARGEST_TORN


def known(heights: np.ndarray) -> Heights:
    return Heights(heights, np.full(len(PLACES), FLOOR_MM), np.zeros((len(PLACES), 2, 3)), 0.0)


def result(heights: Heights | None, loss: Loss | None, truth: np.ndarray) -> dict[str, Any]:
    """Return the errors of the heights and the loss that is found."""
    if heights is None or loss is None:
        return dict.fromkeys(("errors_mm", "sd_mm", "grade", "lowest", "highest", "shape", "loss_found", "loss_sd"))
    return {
        "errors_mm": np.round(heights.mm - truth, 2).tolist(),
        "sd_mm": np.round(heights.sd, 2).tolist(),
        **{"grade": loss.grade, "lowest": loss.lowest, "highest": loss.highest, "shape": loss.shape},
        **{"loss_found": round(loss.part, 3), "loss_sd": round(loss.sd, 3)},
    }


def summary(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a line for each thickness of slices, and for each kind of loss and each part of the column in it."""
    for thick in sorted({row["slice_mm"] for row in rows}):
        chosen = [row for row in rows if row["slice_mm"] == thick]
        yield {"slice_mm": thick, **statistics(chosen)}
        for kind in sorted({row["kind"] for row in chosen}):
            yield {"slice_mm": thick, "kind": kind, **statistics([row for row in chosen if row["kind"] == kind])}
        for name, levels in PARTS.items():
            if some := [row for row in chosen if row["level"] in levels and row["errors_mm"]]:
                yield {"slice_mm": thick, "part": name, **statistics(some)}


def statistics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    measured_rows = [row for row in rows if row["errors_mm"]]
    errors = np.array([row["errors_mm"] for row in measured_rows])
    sds = np.array([row["sd_mm"] for row in measured_rows])
    judged = [row for row in rows if row["grade"] is not None and row["grade_of_true_heights"] is not None]
    # Also those that are not judged.
    seen = [row for row in rows if row["loss_by_observer"] is not None]
    observer_off = [row["loss_by_observer"] - row["loss_of_true_heights"] for row in seen]
    off = [row["loss_found"] - row["loss_of_true_heights"] for row in judged]
    return {
        "n": len(rows),
        "judged": share(row["grade"] is not None for row in rows),
        "mean_absolute_mm": round(float(np.abs(errors).mean()), 2),
        "mean_absolute_by_place_mm": np.round(np.abs(errors).mean(axis=0), 2).tolist(),
        "bias_mm": np.round(errors.mean(axis=0), 2).tolist(),
        "within_half_mm": share((np.abs(errors[:, :3]) <= 0.5).ravel()),
        "within_two_sd": share((np.abs(errors) <= 2 * sds).ravel()),
        "right_by_true_heights": share(row["grade"] == row["grade_of_true_heights"] for row in judged),
        "within_one_grade": share(abs(row["grade"] - row["grade_of_true_heights"]) <= 1 for row in judged),
        "fracture_or_not": share((row["grade"] > 0) == (row["grade_of_true_heights"] > 0) for row in judged),
        "truth_in_range": share(row["lowest"] <= row["grade_of_true_heights"] <= row["highest"] for row in judged),
        "right_by_loss": share(row["grade"] == row["grade_of_loss"] for row in judged),
        "loss_in_range": share(row["lowest"] <= row["grade_of_loss"] <= row["highest"] for row in judged),
        "loss_error_sd": round(float(np.std(off)), 3) if off else None,
        "right_by_measured_norm": share(
            grade_of(row["loss_by_measured_norm"]) == row["grade_of_true_heights"] for row in judged
        ),
        "right_by_measured_heights": share(
            grade_of(row["loss_by_measured_heights"]) == row["grade_of_true_heights"] for row in judged
        ),
        "right_by_observer": share(grade_of(row["loss_by_observer"]) == row["grade_of_true_heights"] for row in seen),
        "observer_error_sd": round(float(np.std(observer_off)), 3) if observer_off else None,
        # What nothing that measures a body after its loss can be better than, unless it knows more of the person.
        "exact_right_by_loss": share(row["grade_of_true_heights"] == row["grade_of_loss"] for row in judged),
    }


def share(truths: Any) -> float | None:
    values = list(truths)
    return round(float(np.mean(values)), 3) if values else None


def columns(paths: list[Path], pictures: Path | None) -> None:
    """Print what is graded, or not judged, in the label maps, and how many are graded of those that are judged."""
    structures = load_manifest().default(VERTEBRAE_TASK).labels
    judged, graded, tiles = 0, 0, []
    for path in paths:
        volume = read_reference(path, OWN_IDS)
        rows = measure_labels(volume.array, replace(volume, modality=MR), structures)
        for row in rows:
            if not is_graded(row["value"]):
                continue
            judged += row["fracture_grade"] is not None
            if row["fracture_grade"] == 0:
                continue
            graded += row["fracture_grade"] is not None
            chosen = ("name", "fracture_grade", "fracture_shape", "height_loss_percent", "not_judged")
            print(json.dumps({"case": path.name.split(".")[0], **{key: row[key] for key in chosen}}), flush=True)
            if pictures and row["fracture_grade"]:
                tiles.append(
                    (
                        f"{path.name.split('_')[0]} {row['name'][:3]} {row['fracture_grade']}",
                        masks_of(path),
                        row["value"],
                    )
                )
    print(json.dumps({"judged": judged, "graded": graded, "part": round(graded / max(1, judged), 3)}))
    if pictures and tiles:
        drawn(tiles).save(pictures)


def drawn(tiles: list[tuple[str, dict[int, Mask], int]]) -> Image.Image:
    """Return a picture of the middle sagittal and coronal section of each vertebra, with the points."""
    across = 9
    page = Image.new("L", (across * TILE, -(-len(tiles) // across) * 2 * TILE))
    pen = ImageDraw.Draw(page)
    for number, (text, masks, level) in enumerate(tiles):
        body = find_body(masks[level], direction(level, places(masks)))
        plates = None if body is None else end_plates(body, masks[level])
        if body is None or plates is None:
            continue
        points = (heights_of(body, plates, masks[level]).points - body.centre) @ body.axes.T
        x, y = number % across * TILE, number // across * 2 * TILE
        for part, (axis, shown) in enumerate(((1, (0, 1, 2)), (2, (3, 1, 4)))):
            side = np.linspace(-TILE / 4, TILE / 4, TILE)
            local = np.zeros((TILE, TILE, 3))
            local[..., 0], local[..., axis] = -side[:, None], side
            index = (local @ body.axes + body.centre - masks[level].to_lps[:3, 3]) @ np.linalg.inv(
                masks[level].to_lps[:3, :3]
            ).T
            section = ndimage.map_coordinates(
                masks[level].array.astype(np.float32), np.moveaxis(index, -1, 0)[::-1], order=1
            )
            page.paste(Image.fromarray((section * 160).astype(np.uint8)), (x, y + part * TILE))
            for place in shown:
                for point in points[place]:
                    at = (x + TILE / 2 + 2 * point[axis], y + (part + 0.5) * TILE - 2 * point[0])
                    pen.ellipse((at[0] - 2, at[1] - 2, at[0] + 2, at[1] + 2), fill=255)
        pen.text((x + 2, y + 2), text, fill=255)
    return page


def norm() -> dict[int, list[float]]:
    """Return the heights of the shape model's means, T4 to L5, smoothed along the column; the sides are alike."""
    model, found = load_shapes(resource_root() / SHAPES), []
    levels = np.arange(T4, L5 + 1)
    for level in levels:
        half = model.half_extents[region_of(level)]
        mean = model.means[level - 1]
        fine = ndimage.zoom(mean, 2 * half / (np.array(mean.shape) - 1), order=3)
        # Axes of the model: up, posterior, left.
        step = (2 * half / (np.array(fine.shape) - 1))[::-1]
        to_lps = np.diag([*step, 1.0])
        to_lps[:3, 3] = -half[::-1]
        found.append(measured(Mask(fine < 0, to_lps), np.array([0.0, 0.0, 1.0])).mm)
    logs = np.log(found)
    smooth = np.exp([np.polyval(np.polyfit(levels, place, SMOOTH_ORDER), levels) for place in logs.T]).T
    smooth[:, 3:] = smooth[:, 3:].mean(axis=1, keepdims=True)
    return {int(level): np.round(row, 1).tolist() for level, row in zip(levels, smooth, strict=True)}


if __name__ == "__main__":
    main()
