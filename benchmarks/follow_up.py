"""How well are two exams of one spine matched, and how much does it seem to change when nothing has? JSON lines.

``python benchmarks/follow_up.py match MASKS...``: label maps as two exams, in random poses, slices of 1 to 5 mm and
with noise; parts of them, with and without a shift of the numbers. ``summary ROWS.jsonl...`` makes the table of it.
``people MASKS...``: exams of different people.
``python benchmarks/follow_up.py images CT... --folder FOLDER`` writes second exams of CTs, NAME_KIND.nii.gz: turned and
moved, on the same or on thicker slices, with noise. ``again FIRST SECOND [FIRST SECOND ...]``: the reports of what was
segmented in them, as ``segmamba segment --report`` writes them. ``example FOLDER`` writes two exams of a painted spine,
in which L2 has lost height: before.nii.gz, before_ct.nii.gz, now.nii.gz and now_ct.nii.gz.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Testing"))

from helpers.broken_spine import Whole, sampled, whole  # noqa: E402
from helpers.followed_spine import STRUCTURES, spine  # noqa: E402
from helpers.measured_spine import painted  # noqa: E402

from segmamba.evaluation.names import OWN_IDS  # noqa: E402
from segmamba.evaluation.references import read_reference  # noqa: E402
from segmamba.io.labelmap import write_labelmap  # noqa: E402
from segmamba.io.volume import Geometry, to_image  # noqa: E402
from segmamba.measurements.comparison import (  # noqa: E402
    DENSITY,
    QUANTITIES,
    VOLUME,
    compare,
    shapes_of,
    standard_deviation,
)
from segmamba.measurements.exam_files import find_exam, read_exam  # noqa: E402
from segmamba.measurements.shape_matching import Shape, match, shape_of  # noqa: E402
from segmamba.measurements.vertebrae import centroid, direction, mask_in_box  # noqa: E402
from segmamba.models.manifest import load_manifest  # noqa: E402
from segmamba.spine.levels import L1, ORDER, from_top, next_level  # noqa: E402
from segmamba.tasks import VERTEBRAE_TASK  # noqa: E402
from segmamba.utils.arrays import label_boxes  # noqa: E402

PIXEL_MM, SLICES_MM = 0.8, (1.0, 2.5, 5.0)
LARGEST_TILT_DEG, TURN_DEG, MOVED_MM = 15.0, 6.0, 5.0
IN_VIEW = (2, 3, 5, 9)
# Slices in mm (None for the CT's own), and the standard deviation of the noise in HU.
KINDS: dict[str, tuple[float | None, float]] = {"turned": (None, 0.0), "noise": (None, 25.0), "slices": (4.0, 15.0)}
AIR_HU, HIGHEST_HU = -1024, 3071


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("match", "summary", "people", "images", "again", "example"))
    parser.add_argument("files", type=Path, nargs="+", metavar="FILES")
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    if options.what == "match":
        for path in options.files:
            for row in matched(path):
                print(json.dumps(row), flush=True)
    elif options.what == "summary":
        rows = [json.loads(line) for path in options.files for line in path.read_text().splitlines()]
        for line in summary_of_matches(rows):
            print(json.dumps(line))
    elif options.what == "people":
        for first, second in combinations([exams_of(path)[0] for path in options.files], 2):
            found = match(first, second)
            distance = float(np.median([each.distance_mm for each in found.fits.values()])) if found.fits else None
            print(json.dumps({"same_person": found.same_person, "median_mm": distance, "pairs": len(found.pairs)}))
    elif options.what == "example":
        write_example(options.files[0])
    elif options.what == "images":
        for path in options.files:
            write_second_exams(path, options.folder)
    else:
        for line in again(options.files):
            print(json.dumps(line))


def exams_of(path: Path) -> list[dict[int, Shape]]:
    """Return the shapes of a label map's vertebrae, once for each thickness of slices."""
    volume = read_reference(path, OWN_IDS)
    boxes = {level: box for level, box in label_boxes(volume.array).items() if level in ORDER}
    masks = {level: mask_in_box(volume.array[box] == level, box, volume.geometry) for level, box in boxes.items()}
    centres = {level: centroid(mask) for level, mask in masks.items()}
    column: dict[int, Whole] = {}
    for level, mask in masks.items():
        found = whole(mask, direction(level, centres))
        if found is not None:
            column[level] = found
    rng = np.random.default_rng(sum(path.name.encode()))
    exams = []
    for thick in SLICES_MM:
        pose = Rotation.from_rotvec(np.radians(rng.uniform(-LARGEST_TILT_DEG, LARGEST_TILT_DEG, 3))).as_matrix()
        made = {level: sampled(one, pose, (PIXEL_MM, PIXEL_MM, thick), None, rng) for level, one in column.items()}
        places = {level: centroid(mask) for level, mask in made.items()}
        exams.append({level: shape_of(mask, direction(level, places)) for level, mask in made.items()})
    return exams


def matched(path: Path) -> Iterator[dict[str, Any]]:
    """Match windows of a column in two exams, the second one's numbers off by -1, 0 or 1."""
    exams = exams_of(path)
    for (first_mm, first), (second_mm, second) in pairwise(zip(SLICES_MM, exams, strict=True)):
        levels = from_top(first)
        for count in (*IN_VIEW, len(levels)):
            for start in range(0, len(levels) - count + 1, max(1, count // 2)):
                shown = levels[start : start + count]
                for step in (0, -1, 1):
                    renumbered = {level: level if step == 0 else next_level(level, step) for level in shown}
                    if None in renumbered.values():
                        continue
                    found = match(
                        {level: first[level] for level in shown},
                        {new: second[old] for old, new in renumbered.items() if new is not None},
                    )
                    right = found.pairs == tuple(renumbered.items())
                    yield {
                        **{"case": path.name.split("_vertebrae")[0], "slices_mm": [first_mm, second_mm]},
                        **{"in_view": count if count in IN_VIEW else "all", "step": step},
                        **{"right": right, "certain": found.certain},
                        "distances_mm": [round(each.distance_mm, 3) for each in found.fits.values()] if right else [],
                    }


def summary_of_matches(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for count in (*IN_VIEW, "all"):
        for shifted in (False, True):
            some = [row for row in rows if row["in_view"] == count and (row["step"] != 0) == shifted]
            if some:
                sure = [row for row in some if row["certain"]]
                yield {
                    **{"in_view": count, "numbers": "one off" if shifted else "the same", "matches": len(some)},
                    "right_percent": round(100 * float(np.mean([row["right"] for row in some])), 1),
                    "certain_percent": round(100 * len(sure) / len(some), 1),
                    "certain_but_wrong": sum(not row["right"] for row in sure),
                    "distance_mm": round(float(np.median([d for row in some for d in row["distances_mm"]] or [0])), 2),
                }


def write_second_exams(path: Path, folder: Path) -> None:
    """Write the second exams of a CT: the patient lies otherwise."""
    image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32)
    rng = np.random.default_rng(sum(path.name.encode()))
    name = path.name.split(".nii")[0]
    for kind, (thick, noise) in KINDS.items():
        spacing = np.array(image.GetSpacing())
        new = spacing.copy()
        if thick is not None:
            new[2] = max(thick, spacing[2])
            # A slice shows the mean over its thickness.
            width = max(0.01, 0.4 * float(np.sqrt(new[2] ** 2 - spacing[2] ** 2)))
            image_of_kind = sitk.SmoothingRecursiveGaussian(image, [0.01, 0.01, width])
        else:
            image_of_kind = image
        size = np.ceil(np.array(image.GetSize()) * spacing / new).astype(int)
        centre = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
        direction_ = np.array(image.GetDirection()).reshape(3, 3)
        origin = centre + direction_ @ ((rng.uniform(-0.5, 0.5, 3) - (size - 1) / 2) * new)
        turn = sitk.Euler3DTransform()
        turn.SetCenter(centre.tolist())
        turn.SetRotation(*np.radians(rng.uniform(-TURN_DEG, TURN_DEG, 3)).tolist())
        turn.SetTranslation(rng.uniform(-MOVED_MM, MOVED_MM, 3).tolist())
        moved = sitk.Resample(
            image_of_kind, size.tolist(), turn, sitk.sitkLinear, origin.tolist(), new.tolist(), image.GetDirection(),
            float(AIR_HU),
        )  # fmt: skip
        array = sitk.GetArrayFromImage(moved)
        if noise:
            grain = ndimage.gaussian_filter(rng.normal(size=array.shape), (0, 0.7, 0.7))
            array = array + grain / grain.std() * noise
        written = sitk.GetImageFromArray(np.clip(np.round(array), AIR_HU, HIGHEST_HU).astype(np.int16))
        written.CopyInformation(moved)
        sitk.WriteImage(written, str(folder / f"{name}_{kind}.nii.gz"), useCompression=True)


def write_example(folder: Path) -> None:
    """Write labels and CT of a painted spine and of the same one later."""
    size, start = (100, 116, 200), (-45.0, -30.0, -98.0)
    grid = Geometry(size, (0.9, 0.9, 0.9), start, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    for name, vertebrae in (("before", spine()), ("now", spine(3.0, {L1 + 1: 19.0}))):
        labels, ct = painted(vertebrae, grid)
        write_labelmap(folder / f"{name}.nii.gz", labels, grid, STRUCTURES)
        sitk.WriteImage(to_image(ct.array, grid), str(folder / f"{name}_ct.nii.gz"))


def again(reports: list[Path]) -> Iterator[dict[str, Any]]:
    """Compare exams between which nothing has changed; give what is seen for each pair, then for all."""
    structures = load_manifest().default(VERTEBRAE_TASK).labels
    changes: dict[str, list[tuple[float, float, float]]] = {name: [] for name in QUANTITIES}
    verdicts: dict[str, int] = {}
    for first, second in zip(reports[::2], reports[1::2], strict=True):
        found = [find_exam(path) for path in (first, second)]
        exams = [read_exam(each, Path(each.report["input"]), structures).exam for each in found if each.report]
        # What contrast medium does is the same in both.
        exams = [type(exam)(exam.rows, {"phase": "no contrast seen"}, exam.masks) for exam in exams]
        matched = match(*(shapes_of(exam) for exam in exams))
        comparison = compare(exams[0], exams[1], matched)
        yield {
            **{"first": first.stem, "second": second.stem, "pairs": len(matched.pairs)},
            **{"certain": matched.certain, "renumbered": len(matched.renumbered)},
            "same_person": matched.same_person,
            "shapes_apart_mm": [row["shape_distance_mm"] for row in comparison["vertebrae"]],
        }
        for row in comparison["vertebrae"]:
            for name, change in row["changes"].items():
                if change["sd"] is not None:
                    changes[name].append((change["change"], change["sd"], change["first"]))
                    verdicts[change["verdict"]] = verdicts.get(change["verdict"], 0) + 1
    for name, values in changes.items():
        if values:
            yield {"quantity": name, **spread(name, np.array(values))}
    yield {"verdicts": verdicts}


def spread(name: str, values: np.ndarray) -> Mapping[str, Any]:
    """Return how changes (n, 3: change, its standard deviation, first value) are spread where nothing has changed."""
    change, sd, first = values.T
    relative = change / first if name == VOLUME else change
    # Of one measurement, by the median of the changes of two: a few masks that fail do not set it.
    robust = 1.4826 * float(np.median(np.abs(relative))) / np.sqrt(2)
    stated = standard_deviation(name, {name: 1.0}) if name in (VOLUME, DENSITY) else float(np.median(sd)) / np.sqrt(2)
    return {
        **{"values": len(change), "mean_change": round(float(relative.mean()), 4)},
        **{"sd": round(float(relative.std()) / np.sqrt(2), 4), "robust_sd": round(robust, 4), "stated_sd": stated},
        "beyond_95_percent": round(100 * float((np.abs(change) > 1.96 * sd).mean()), 1),
    }


if __name__ == "__main__":
    main()
