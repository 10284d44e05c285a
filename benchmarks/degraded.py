"""Measure masks where the image does not show the bone: degraded images against the masks of what they were made of.

``python benchmarks/degraded.py make PAIRS OUT [--kinds thick3,noise80,...] [--seed N]`` writes degraded copies of the
cases of a folder (NAME_ct.nii.gz or NAME_mr.nii.gz with NAME_vertebrae.nii.gz), each with the undegraded mask on its
fine grid. ``... paint LABELS OUT [--part K/N]`` paints columns of label maps as scans first, every third one an MR.

``... measure OUT RESULT.json [--checkpoint FILE] [--no-refine] [--answers FOLDER] [--part K/N]`` segments them with
isotropic masks and compares these on the fine grid: Dice, mean surface distance (also whatever the level), and bone in
the canal as a part of the vertebra's volume.
``... compare A B`` prints the paired differences B minus A of two results (files, or folders of parts), with 95%
bootstrap intervals over cases.

| kind | what was done to the image |
| --- | --- |
| thick3, thick5, thick7 | axial slices of so many mm: a gaussian slice profile of that full width at half maximum |
| sagittal | MR: sagittal slices of 4 to 5 mm, with the same profile |
| noise40, noise80, noise120 | CT: so many HU of noise, as fine as the voxels |
| metal | CT: screws in the pedicles of every second vertebra, with the streaks between them |
| cut | a third of a vertebra at the upper and the lower end of the column is outside the image |
| contrast | CT: contrast in the canal, as in myelography |

What is done is known, so the undegraded mask is the truth. Thresholds and sizes were set before anything was measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from segmamba.evaluation.cases import find_cases, on_grid
from segmamba.evaluation.metrics import surface_distances
from segmamba.evaluation.perturbations import LEFT, UP, as_type, averaged, slice_axis, thick_grid
from segmamba.evaluation.references import ineligible_reasons, read_reference
from segmamba.inference.model_grid import cropped_geometry
from segmamba.io.modality import CT, MR, resolve_modality
from segmamba.io.read import read_volume
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.spine.levels import ORDER, level_name
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.training.synthesis.scanner import gaussian_profile
from segmamba.training.vertebrae.redraw.canals import enclosed
from segmamba.utils.arrays import bounding_box, label_boxes

SAGITTAL_MM = (4.0, 5.0)
# Screws of titanium: half width and length in mm, their HU, and the HU of the streaks beside and between them.
SCREW_MM, SCREW_LENGTH_MM, TITANIUM_HU, STREAK_HU, STREAK_MM = 2.75, 45.0, 3000.0, 700.0, 3.0
CONTRAST_HU = (250.0, 600.0)
# The surface distance of a vertebra that nothing found overlaps: about its height.
MISSED_MM = 20.0
CLEAN = "clean"


@dataclass(frozen=True, eq=False)
class Case:
    """An image, and the mask of what it shows; only degraded images have another grid than their mask.

    Attributes
    ----------
    image, reference : Volume
    modality : str
        "CT" or "MR".
    """

    image: Volume
    reference: Volume
    modality: str


def main() -> None:
    """Make, paint, measure or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, run in (("make", _make), ("paint", _paint), ("measure", _measure), ("compare", _compare)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("first", type=Path)
        command.add_argument("second", type=Path)
        command.add_argument("--kinds", default=",".join(KINDS), help="which degradations")
        command.add_argument("--part", default="0/1", help="K/N: every N-th case from the K-th on")
        command.add_argument("--reference-ids", default="own")
        command.add_argument("--checkpoint", type=Path)
        command.add_argument("--manifest", type=Path, help="of a model with another architecture")
        command.add_argument("--no-refine", action="store_true")
        command.add_argument("--device", default="auto")
        command.add_argument("--answers", type=Path, help="folder where the networks' answers are kept")
        command.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.run(options)


def _make(options: argparse.Namespace) -> None:
    cases = find_cases([options.first], VERTEBRAE_TASK, [options.reference_ids])
    for case in chosen(cases, options.part):
        image = read_volume(case.image)
        reference, _ = on_grid(read_reference(case.reference, case.ids), image.geometry)
        modality = case.modality or resolve_modality(image, "auto").modality or CT
        write_degraded(Case(image, reference, modality), options.second, case.name, options)


def _paint(options: argparse.Namespace) -> None:
    import torch
    from variant_columns import Column, paint, read_labels

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths = sorted(options.first.glob("*_vertebrae.nii.gz"))
    for number, path in chosen(list(enumerate(paths)), options.part):
        name = path.name.removesuffix("_vertebrae.nii.gz")
        with tempfile.TemporaryDirectory() as folder:
            paint(Column("painted", read_labels(path)), Path(folder), name, number, device)
            # Of a map that cannot be painted there is nothing.
            for case in find_cases([Path(folder)], VERTEBRAE_TASK) if any(Path(folder).iterdir()) else ():
                image, reference = read_volume(case.image), read_reference(case.reference, case.ids)
                write_degraded(Case(image, reference, case.modality or CT), options.second, name, options)


def write_degraded(case: Case, folder: Path, name: str, options: argparse.Namespace) -> None:
    """Write a case as it is and degraded: NAME-KIND_ct.nii.gz (or _mr) and NAME-KIND_vertebrae.nii.gz."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in (CLEAN, *options.kinds.split(",")):
        # The same each time, whatever else is made.
        rng = np.random.default_rng([options.seed, zlib.crc32(f"{name}-{kind}".encode())])
        made = case if kind == CLEAN else degrade(case, kind, rng)
        if made is None:
            continue
        place = folder / f"{name}-{kind}_{case.modality.lower()}.nii.gz"
        sitk.WriteImage(to_image(np.ascontiguousarray(made.image.array), made.image.geometry), str(place))
        labels = np.ascontiguousarray(made.reference.array.astype(np.uint8))
        path = folder / f"{name}-{kind}_{VERTEBRAE_TASK}.nii.gz"
        sitk.WriteImage(to_image(labels, made.reference.geometry), str(path))


def degrade(case: Case, kind: str, rng: np.random.Generator) -> Case | None:
    """Return a case whose image was degraded, or None where a kind does not suit it.

    The reference keeps its grid, and its voxels unless they are outside the image now.
    """
    return KINDS[kind](case, rng)


def _thick(thickness: float) -> Callable[[Case, np.random.Generator], Case | None]:
    return lambda case, rng: in_slices(case, slice_axis(case.image.geometry, UP), thickness)


def _sagittal(case: Case, rng: np.random.Generator) -> Case | None:
    if case.modality != MR:
        return None
    return in_slices(case, slice_axis(case.image.geometry, LEFT), float(rng.uniform(*SAGITTAL_MM)))


def in_slices(case: Case, axis: int, thickness: float) -> Case | None:
    """Return a case in slices of ``thickness`` mm along an axis of its array, with a gaussian slice profile."""
    geometry = case.image.geometry
    step = geometry.spacing[2 - axis]
    if step >= thickness:
        return None
    weights = profile_weights(case.image.array.shape[axis], step, thickness)
    grid = thick_grid(geometry, axis, thickness, len(weights))
    array = as_type(averaged(case.image.array, weights, axis), case.image.array.dtype)
    return replace(case, image=replace(case.image, array=array, geometry=grid))


def profile_weights(length: int, step: float, thickness: float) -> np.ndarray:
    """Return the weights of `gaussian_profile` for as many whole thick slices as fit, from the outer face on."""
    count = max(1, int(np.floor(length * step / thickness + 1e-6)))
    return gaussian_profile(length, step, thickness, (np.arange(count) + 0.5) * thickness).astype(np.float32)


def _noise(hounsfield: float) -> Callable[[Case, np.random.Generator], Case | None]:
    def noisy(case: Case, rng: np.random.Generator) -> Case | None:
        if case.modality != CT:
            return None
        array = case.image.array
        noise = rng.standard_normal(array.shape, dtype=np.float32) * np.float32(hounsfield)
        return replace(case, image=replace(case.image, array=as_type(array + noise, array.dtype)))

    return noisy


def _metal(case: Case, rng: np.random.Generator) -> Case | None:
    if case.modality != CT:
        return None
    array = case.image.array.astype(np.float32)
    levels = [level for level in label_boxes(case.reference.array) if level in ORDER]
    done = 0
    for level in levels[int(rng.integers(2)) :: 2]:
        box, canal = canal_of(case.reference, level)
        if canal.any():
            _screw(array, case.reference.geometry, box, canal)
            done += 1
    if not done:
        return None
    return replace(case, image=replace(case.image, array=as_type(array, case.image.array.dtype)))


def _screw(array: np.ndarray, geometry: Geometry, box: tuple[slice, ...], canal: np.ndarray) -> None:
    """Put a screw through either pedicle of a vertebra, in place, with the streaks between and beside them.

    They run through the plane in which the canal is narrowest from side to side, where the pedicles are, beside the
    canal, from behind to the front and towards the middle. Streaks are dark between the two and bright beside them.
    """
    affine = geometry.affine
    inside = np.argwhere(canal) + [part.start for part in box]
    points = inside[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    height = points[:, 2]
    # The upper half of the canal, where the pedicles are.
    upper = points[height >= np.quantile(height, 0.6)]
    left, right = np.quantile(upper[:, 0], [0.98, 0.02])
    front, back, level = upper[:, 1].min(), upper[:, 1].max(), float(np.median(upper[:, 2]))
    view = tuple(
        slice(max(0, part.start - 8), min(size, part.stop + 8)) for part, size in zip(box, array.shape, strict=True)
    )
    indices = np.stack(np.meshgrid(*(np.arange(part.start, part.stop) for part in view), indexing="ij"), axis=-1)
    places = indices[..., ::-1] @ affine[:3, :3].T + affine[:3, 3]
    near = np.full(places.shape[:3], np.inf)
    for side, edge in ((1.0, left), (-1.0, right)):
        entry = np.array([edge + side * (SCREW_MM + 2.0) + side * 4.0, back, level])
        course = np.array([-side * 0.25, -1.0, 0.0]) / np.hypot(0.25, 1.0)
        start = entry - course * 10.0
        along = np.clip((places - start) @ course, 0.0, SCREW_LENGTH_MM)
        near = np.minimum(near, np.linalg.norm(places - start - along[..., None] * course, axis=-1))
    part = array[view]
    slab = np.exp(-0.5 * ((places[..., 2] - level) / STREAK_MM) ** 2)
    between = (
        (places[..., 0] < left) & (places[..., 0] > right) & (places[..., 1] > front - 25) & (places[..., 1] < back)
    )
    beside = ~between & (places[..., 1] > front - 25) & (places[..., 1] < back + 10)
    fade = np.exp(-np.maximum(near - SCREW_MM, 0) / 12.0)
    part -= STREAK_HU * slab * between * np.exp(-np.maximum(near - SCREW_MM, 0) / 25.0)
    part += STREAK_HU * slab * beside * fade * np.cos(places[..., 1] / 2.5) ** 2
    part[near < SCREW_MM] = TITANIUM_HU
    np.clip(part, -1024, 3071, out=part)


def _cut(case: Case, rng: np.random.Generator) -> Case | None:
    axis = slice_axis(case.image.geometry, UP)
    boxes = {level: box for level, box in label_boxes(case.reference.array).items() if level in ORDER}
    whole = [level for level, reason in ineligible_reasons(case.reference.array).items() if reason is None]
    ends = sorted((boxes[level][axis] for level in whole if level in boxes), key=lambda part: part.start)
    if len(ends) < 3:
        return None
    low = ends[0].start + round((ends[0].stop - ends[0].start) / 3)
    high = ends[-1].stop - round((ends[-1].stop - ends[-1].start) / 3)
    index = [slice(None)] * 3
    index[axis] = slice(low, high)
    crop = tuple(slice(*part.indices(n)) for part, n in zip(index, case.image.array.shape, strict=True))
    grid = cropped_geometry(case.image.geometry, (crop[0], crop[1], crop[2]))
    image = replace(case.image, array=case.image.array[crop], geometry=grid)
    seen = np.zeros_like(case.reference.array)
    seen[crop] = case.reference.array[crop]
    return replace(case, image=image, reference=replace(case.reference, array=seen))


def _contrast(case: Case, rng: np.random.Generator) -> Case | None:
    if case.modality != CT:
        return None
    array = case.image.array.astype(np.float32)
    value = float(rng.uniform(*CONTRAST_HU))
    canal = canal_along(case.reference)
    if not canal.any():
        return None
    # Nerves and partial volume: not as bright at the edge, and not everywhere.
    spacing = case.reference.geometry.spacing[::-1]
    depth = ndimage.distance_transform_edt(canal, sampling=spacing)
    texture = ndimage.gaussian_filter(rng.standard_normal(array.shape, dtype=np.float32), 1.5 / np.array(spacing))
    texture /= max(float(texture.std()), 1e-6)
    amount = np.clip(depth / 1.5, 0, 1) * np.clip(1 + 0.2 * texture, 0.3, 1.3)
    array += canal * amount * np.maximum(value - array, 0)
    return replace(case, image=replace(case.image, array=as_type(array, case.image.array.dtype)))


def canal_of(reference: Volume, level: int) -> tuple[tuple[slice, ...], np.ndarray]:
    """Return the part of the spinal canal at the height of a vertebra: a box, and the mask in it.

    In each axial plane of the reference's grid it is what is free and enclosed by vertebrae, with gaps between these of
    up to `GAP_MM` closed: the laminae of one plane often belong to two. Smaller holes than `SMALLEST_CANAL_MM2` are not
    canal.
    """
    axis = slice_axis(reference.geometry, UP)
    boxes = label_boxes(reference.array)
    if level not in boxes:
        return (slice(0, 0),) * 3, np.zeros((0, 0, 0), bool)
    steps = [step for number, step in enumerate(reference.geometry.spacing[::-1]) if number != axis]
    around = [0 if number == axis else round(20 / step) for number, step in enumerate(reference.geometry.spacing[::-1])]
    box = tuple(
        slice(max(0, part.start - more), min(size, part.stop + more))
        for part, size, more in zip(boxes[level], reference.array.shape, around, strict=True)
    )
    bone = reference.array[box] > 0
    canal = np.zeros_like(bone)
    for number in range(bone.shape[axis]):
        index: list[Any] = [slice(None)] * 3
        index[axis] = number
        canal[tuple(index)] = enclosed(bone[tuple(index)], steps)
    # What joins the vertebra's own planes, and not a hole beside it.
    own = [part for number, part in enumerate(boxes[level]) if number != axis]
    shown = np.ones(canal.shape, bool)
    for number, part in zip((n for n in range(3) if n != axis), own, strict=True):
        place: list[Any] = [np.newaxis] * 3
        place[number] = slice(None)
        inside = np.arange(box[number].start, box[number].stop)
        shown &= ((inside >= part.start) & (inside < part.stop))[tuple(place)]
    return box, canal & shown


def canal_along(reference: Volume) -> np.ndarray:
    """Return the spinal canal along a column, shape (z, y, x): that of the vertebrae, and what joins it from one on."""
    canal = np.zeros(reference.array.shape, bool)
    for level in label_boxes(reference.array):
        if level in ORDER:
            box, own = canal_of(reference, level)
            canal[box] |= own
    if not canal.any():
        return canal
    axis = slice_axis(reference.geometry, UP)
    profile = np.flatnonzero(canal.any(axis=tuple(other for other in range(3) if other != axis)))
    moved = np.moveaxis(canal, axis, 0)
    # Between two arches, the canal is as wide as the shape that is halfway between the two planes.
    for first, second in zip(profile[:-1], profile[1:], strict=True):
        if second - first > 1:
            signed = [_signed(moved[plane]) for plane in (first, second)]
            for plane in range(first + 1, second):
                part = (plane - first) / (second - first)
                moved[plane] = (1 - part) * signed[0] + part * signed[1] < 0
    return canal & (reference.array == 0)


def _signed(mask: np.ndarray) -> np.ndarray:
    return ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)


KINDS: dict[str, Callable[[Case, np.random.Generator], Case | None]] = {
    "thick3": _thick(3.0),
    "thick5": _thick(5.0),
    "thick7": _thick(7.0),
    "sagittal": _sagittal,
    "noise40": _noise(40.0),
    "noise80": _noise(80.0),
    "noise120": _noise(120.0),
    "metal": _metal,
    "cut": _cut,
    "contrast": _contrast,
}


def _measure(options: argparse.Namespace) -> None:
    from segmamba.inference.pipeline import segment
    from segmamba.models.manifest import load_manifest
    from segmamba.request import Options

    if options.answers:
        from kept_answers import keep_answers

        keep_answers(options.answers)
    model = load_manifest(options.manifest).default(VERTEBRAE_TASK)
    result = json.loads(options.second.read_text()) if options.second.exists() else []
    known = {row["case"] for row in result}
    for case in chosen(find_cases([options.first], VERTEBRAE_TASK), options.part):
        if case.name in known:
            continue
        image, reference = read_volume(case.image), read_reference(case.reference, case.ids)
        spacing = max(0.5, min(reference.geometry.spacing))
        asked = Options(device=options.device, output_spacing=spacing, refine=not options.no_refine)
        found = segment(resolve_modality(image, case.modality or "auto"), model, asked, checkpoint=options.checkpoint)
        assert found.isotropic is not None
        fine = Volume(found.isotropic.labels, found.isotropic.geometry)
        seconds = sum(found.report["timings_s"].values())
        result.append(
            {"case": case.name, "seconds": seconds, "levels": scores(on_reference(fine, reference), reference)}
        )
        options.second.write_text(json.dumps(result))
        print(case.name, json.dumps(means(result[-1]["levels"].values())), flush=True)


def on_reference(labels: Volume, reference: Volume) -> np.ndarray:
    """Return labels on the grid of a reference (nearest neighbour)."""
    return on_grid(labels, reference.geometry)[0].array


def scores(labels: np.ndarray, reference: Volume) -> dict[str, dict[str, float]]:
    """Return what is measured of each whole vertebra of a reference, by its name.

    ``dice``; ``assd_mm``, the mean surface distance (the far end of the column's box where nothing was found);
    ``matched_assd_mm``, that of the vertebra found that overlaps most, whatever its level (`MISSED_MM` where none
    does); ``canal``, the voxels of any vertebra in the canal of this one, as a part of its volume.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x), on the reference's grid.
    reference : Volume
    """
    truth, spacing = reference.array, reference.geometry.spacing[::-1]
    found: dict[str, dict[str, float]] = {}
    around = bounding_box(truth > 0)
    assert around is not None
    farthest = float(np.linalg.norm([(part.stop - part.start) * s for part, s in zip(around, spacing, strict=True)]))
    for level, reason in ineligible_reasons(truth).items():
        if reason is not None or level not in ORDER:
            continue
        own, predicted = truth == level, labels == level
        both = int(own.sum() + predicted.sum())
        box, canal = canal_of(reference, level)
        inside = int(((labels[box] > 0) & canal).sum())
        distance = surface_distances(predicted, own, spacing)[0] if predicted.any() else farthest
        overlaps = np.bincount(labels[own], minlength=256)
        matched, match = MISSED_MM, max(ORDER, key=overlaps.__getitem__)
        if overlaps[match]:
            matched = distance if match == level else surface_distances(labels == match, own, spacing)[0]
        found[level_name(level)] = {
            "dice": 2 * float((own & predicted).sum()) / max(1, both),
            "assd_mm": distance,
            "matched_assd_mm": matched,
            "canal": inside / max(1, int(own.sum())),
        }
    return found


def means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each measure, and the median surface distance: a wrong level is far away."""
    rows = list(rows)
    if not rows:
        return {}
    figures = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    figures["assd_median_mm"] = float(np.median([row["assd_mm"] for row in rows]))
    return {name: round(value, 4) for name, value in figures.items()}


def _compare(options: argparse.Namespace) -> None:
    first, second = (read_results(path) for path in (options.first, options.second))
    print("| kind | cases | measure | first | second | difference | 95 % interval |\n|" + " --- |" * 7)
    for kind, rows in differences(first, second).items():
        for measure, row in rows.items():
            low, high = row["interval"]
            values = f"{row['first']:.4f} | {row['second']:.4f} | {row['difference']:+.4f} | {low:+.4f} to {high:+.4f}"
            print(f"| {kind} | {row['cases']} | {measure} | {values} |")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the results of a file, or of all parts in a folder."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return [row for file in files for row in json.loads(file.read_text())]


def differences(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return by kind and measure the means of two results and their paired difference, with its bootstrap interval.

    A case is the mean over its vertebrae, and one of a kind is one person: the bootstrap draws people.
    """
    others = {row["case"]: row for row in second}
    pairs: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in first:
        if row["case"] in others and row["levels"]:
            kind = row["case"].rsplit("-", 1)[1]
            before, after = (means(each["levels"].values()) for each in (row, others[row["case"]]))
            for measure in before:
                pairs.setdefault(kind, {}).setdefault(measure, []).append((before[measure], after[measure]))
    return {kind: {measure: paired(some) for measure, some in by.items()} for kind, by in pairs.items()}


def paired(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    values = np.array(pairs)
    gains = values[:, 1] - values[:, 0]
    rng = np.random.default_rng(0)
    drawn = rng.choice(gains, (2000, len(gains))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    before, after = values.mean(axis=0).tolist()
    return {
        "cases": len(pairs),
        "first": before,
        "second": after,
        "difference": after - before,
        "interval": (low, high),
    }


def chosen(items: list[Any], part: str) -> Iterator[Any]:
    """Give every N-th item from the K-th on; ``part`` is K/N."""
    first, step = map(int, part.split("/"))
    yield from items[first::step]


if __name__ == "__main__":
    main()
