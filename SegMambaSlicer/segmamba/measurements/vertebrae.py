"""Measurements of each vertebra: volume, position, body heights, trabecular density, angles to the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from segmamba.io.modality import CT, resolve_modality
from segmamba.io.volume import Geometry, Volume, corners
from segmamba.labels import Label
from segmamba.measurements.alignment import BETWEEN, Plates, between, curves, plates_of, sacral_plate
from segmamba.measurements.bone_density import bone_density, scanner_check
from segmamba.measurements.end_plates import end_plates
from segmamba.measurements.fractures import GAP, LARGEST_TORN, OTHER_LEVEL, TORN, UNCERTAIN, Loss, is_graded, losses
from segmamba.measurements.heights import PLACES, Heights, heights_of
from segmamba.measurements.vertebral_body import FINE_MM, Body, Mask, axes_along, find_body
from segmamba.spine.grades import GRADE_KEYS
from segmamba.spine.levels import C2, L4, L6, ORDER, SACRUM, from_top, is_next
from segmamba.utils.arrays import LabelBox, label_boxes, mean_index
from segmamba.utils.csv_file import write_csv
from segmamba.utils.morphology import further_inside
from segmamba.utils.parallel import at_once
from segmamba.utils.processes import helper_processes

# Density is measured at least this far from the surface of a body, inside its shell and the blur of thick slices; in
# small bodies at least this part of the height and of the depth.
SHELL_MM, SHELL_PART = 5.0, 0.25
# Density is not measured in a smaller volume.
SMALLEST_CORE_ML = 0.2
# This much of a body as far below its surface, or more, is metal or cement if it is denser than any bone.
IMPLANT_HU, IMPLANT_ML = 1000, 0.3
HEIGHTS = tuple(f"{place}_height_mm" for place in PLACES)
EXPECTED = tuple(f"expected_{name}" for name in HEIGHTS)
COLUMNS = (
    *("value", "name", "volume_ml", "right_mm", "anterior_mm", "superior_mm", "at_border"),
    *(*HEIGHTS, "height_sd_mm", *EXPECTED, "height_loss_percent", "height_loss_sd_percent", "height_loss_place"),
    *(*GRADE_KEYS, "fracture_shape", "not_judged"),
    *("trabecular_hu", "trabecular_mg_cm3", "sagittal_angle_deg", "coronal_angle_deg", *BETWEEN, "note"),
)
C1_C2 = "C1 and C2 have no body with two end plates."
SACRUM_FUSED = "The sacrum is not a single vertebra."
TRUNCATED = "The image ends within the body."
INSEPARABLE = "The body cannot be separated from the arch."
IMPLANT = "There is metal or cement in the body."
TOO_LARGE = "The mask is larger than any vertebra."
# More is no vertebra (large lumbar ones have some 130 mL), and would take minutes and gigabytes to measure.
LARGEST_ML = 300.0


def measure_labels(labels: np.ndarray, volume: Volume, structures: Sequence[Label]) -> list[dict[str, Any]]:
    """Measure the vertebrae of a label map.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x), on the volume's grid; values as in `segmamba.spine.levels`.
    volume : Volume
    structures : sequence of Label
        Which to measure, if present.

    Returns
    -------
    list of dict
        See `measure`.
    """
    masks = masks_of(labels, volume.geometry, structures)
    return measure(masks, volume, {label.value: label.name for label in structures})


def masks_of(
    labels: np.ndarray, geometry: Geometry, structures: Sequence[Label], boxes: Mapping[int, LabelBox] | None = None
) -> dict[int, Mask]:
    """Return the mask of each structure that is in a label map (z, y, x) on a grid, by its value.

    ``boxes`` are those of `label_boxes`, where they are known.
    """
    boxes = label_boxes(labels) if boxes is None else boxes
    return {
        label.value: mask_in_box(labels[boxes[label.value]] == label.value, boxes[label.value], geometry)
        for label in structures
        if label.value in boxes
    }


def mask_in_box(array: np.ndarray, box: tuple[slice, ...], geometry: Geometry) -> Mask:
    """Return a mask from its array in a box (slices along z, y, x) of a grid."""
    to_lps = geometry.affine
    to_lps[:3, 3] = (to_lps @ [*(part.start for part in reversed(box)), 1.0])[:3]
    return Mask(array, to_lps)


def labels_of(masks: Mapping[int, Mask], geometry: Geometry) -> np.ndarray:
    """Return masks as a label map (z, y, x) of uint8 on a grid, which may be another than theirs: nearest voxels.

    Where masks overlap, the last one counts.
    """
    labels = np.zeros(geometry.size[::-1], np.uint8)
    to_index = np.linalg.inv(geometry.affine)
    for level, mask in masks.items():
        voxels = _box_corners(mask) @ to_index[:3, :3].T + to_index[:3, 3]
        first = np.clip(np.floor(voxels.min(axis=0)), 0, geometry.size).astype(int)
        last = np.clip(np.ceil(voxels.max(axis=0)) + 1, 0, geometry.size).astype(int)
        if (last <= first).any():
            continue
        to_mask = np.linalg.inv(mask.to_lps) @ geometry.affine
        start = (to_mask @ [*first, 1.0])[2::-1]
        box = tuple(slice(a, b) for a, b in zip(first[::-1].tolist(), last[::-1].tolist(), strict=True))
        inside = ndimage.affine_transform(
            mask.array.view(np.uint8), to_mask[2::-1, 2::-1], start, tuple((last - first)[::-1].tolist()), order=0
        )
        labels[box][inside > 0] = level
    return labels


def measure(masks: Mapping[int, Mask], volume: Volume, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Measure vertebrae, each given as its own mask. The definitions are in ``Docs/measurements.md``.

    Parameters
    ----------
    masks : mapping of int to Mask
        By level, and the sacrum's. Their grids may differ from the volume's.
    volume : Volume
        The image that they were segmented on.
    names : mapping of int to str

    Returns
    -------
    list of dict
        One for each mask, from the head down: ``value``, ``name``, ``volume_ml``, ``centroid_ras_mm``, ``at_border``
        (the mask reaches the border of the image), ``anterior_height_mm``, ``middle_height_mm``,
        ``posterior_height_mm``, ``left_height_mm``, ``right_height_mm`` and their largest standard deviation
        ``height_sd_mm``; ``height_sds_mm``: those of each place; ``height_points_ras_mm``: of each place, in this
        order, the points on the upper and on the lower end plate; ``expected_anterior_height_mm`` and so on;
        ``height_loss_percent``, the largest loss, its ``height_loss_sd_percent`` and ``height_loss_place``;
        ``fracture_grade`` (0 to 3, None if it is not judged), ``fracture_grade_lowest`` and ``fracture_grade_highest``
        (within 90 %), ``fracture_shape`` and ``not_judged`` (why there is no grade, a sentence, else None);
        ``trabecular_hu`` (None unless the volume is a CT), ``trabecular_mg_cm3`` (None unless
        `segmamba.measurements.bone_density.calibrated`), ``sagittal_angle_deg`` and ``coronal_angle_deg`` (to the
        next lower level, none for the sacrum), what `segmamba.measurements.alignment.between` says of the disc below,
        and ``note`` (why there are no heights, a sentence, else None).
    """
    rows: list[dict[str, Any]] = measure_spine(masks, volume, names)["measurements"]
    return rows


def measure_spine(masks: Mapping[int, Mask], volume: Volume, names: Mapping[int, str]) -> dict[str, Any]:
    """Measure a column.

    Returns
    -------
    dict
        ``measurements``: the vertebrae, as `measure` returns them; ``curves``: see
        `segmamba.measurements.alignment.curves`; ``bone``: see `segmamba.measurements.bone_density.bone_density`, None
        unless the volume is a CT.
    """
    order = [*from_top(masks), *(level for level in sorted(masks) if level not in ORDER)]
    centres = {level: centroid(masks[level]) for level in order}
    is_ct = resolve_modality(volume).modality == CT
    bodies: dict[int, Body] = {}
    planes: dict[int, Plates] = {}
    heights: dict[int, Heights] = {}
    implants: set[int] = set()

    def row_of(level: int) -> dict[str, Any]:
        mask = masks[level]
        at_border = not _within(_box_corners(mask), volume.geometry)
        core, body, note = np.empty(0), None, _without_body(level, mask)
        if note is None:
            up, image = direction(level, centres), volume.geometry if at_border else None
            body, note, plates = helper_processes.call(_measured_alone, mask, up, image)
            if plates is not None:
                planes[level], heights[level] = plates
        if body is not None:
            bodies[level] = body
            core = _core(body, volume) if is_ct else core
            if _ml(int(np.count_nonzero(core > IMPLANT_HU))) >= IMPLANT_ML:
                implants.add(level)
        x, y, z = centres[level]
        return {
            "value": level,
            "name": names[level],
            "volume_ml": round(volume_ml(mask), 3),
            "centroid_ras_mm": [round(-x, 2), round(-y, 2), round(z, 2)],
            "at_border": at_border,
            "trabecular_hu": round(float(core.mean()), 1) if _ml(len(core)) >= SMALLEST_CORE_ML else None,
            "trabecular_mg_cm3": None,
            "sagittal_angle_deg": None,
            "coronal_angle_deg": None,
            "note": note,
        }

    with ThreadPoolExecutor(1) as beside:
        scanner = beside.submit(scanner_check, volume) if is_ct else None
        # The largest first: one that comes last would be waited for alone.
        by_size = sorted(order, key=lambda level: -masks[level].array.size)
        found_rows = at_once(row_of, by_size, most=helper_processes.at_a_time)
        rows = [found_rows[level] for level in order]
    plates = _with_sacrum(planes, bodies, masks)
    torn = {level for level in heights if heights[level].torn > LARGEST_TORN}
    found = losses({level: heights[level] for level in heights if level not in implants | torn})
    for row in rows:
        level = row["value"]
        row.update(_height_cells(heights.get(level)))
        row.update(_fracture_cells(found.get(level), _not_judged(row, level in implants, level in torn)))
    for row, below in zip(rows, [*order[1:], None], strict=False):
        level = row["value"]
        row.update(between(level, below, plates, heights))
        if level in bodies and below in bodies and is_next(level, below):
            row["sagittal_angle_deg"], row["coronal_angle_deg"] = angles(bodies[level], bodies[below])
    densities = {row["value"]: row["trabecular_hu"] for row in rows if row["trabecular_hu"] is not None}
    bone = bone_density(densities, bodies, volume, scanner.result()) if scanner is not None else None
    return {"measurements": rows, "curves": curves(plates), "bone": bone}


def _with_sacrum(
    plates: Mapping[int, Plates], bodies: Mapping[int, Body], masks: Mapping[int, Mask]
) -> dict[int, Plates]:
    """Return the end plates that can be measured, by level from the head down, and the sacrum's."""
    found = {level: plates[level] for level in from_top(plates)}
    last = next(reversed(found), None)
    if last is not None and L4 <= last <= L6 and SACRUM in masks:
        sacrum = sacral_plate(bodies[last], masks[SACRUM])
        if sacrum is not None:
            found[SACRUM] = sacrum
    return found


def angles(upper: Body, lower: Body) -> tuple[float, float]:
    """Return the sagittal and the coronal angle between two neighbours in degrees.

    Both are angles between the bodies' superior axes, projected on the common sagittal and coronal plane of the two
    bodies. Kyphosis is positive, lordosis negative; the coronal angle is positive if the upper body leans to the
    patient's left relative to the lower one.
    """
    common = axes_along(upper.axes[0] + lower.axes[0], upper.axes[1] + lower.axes[1])
    (up_1, back_1, left_1), (up_2, back_2, left_2) = common @ upper.axes[0], common @ lower.axes[0]
    sagittal = np.arctan2(back_2, up_2) - np.arctan2(back_1, up_1)
    coronal = np.arctan2(left_1, up_1) - np.arctan2(left_2, up_2)
    # No negative zeros.
    return round(float(np.degrees(sagittal)), 1) + 0.0, round(float(np.degrees(coronal)), 1) + 0.0


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write measurements as CSV, whole or not at all; missing values are empty cells.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    write_csv(path, COLUMNS, (flat(row) for row in rows))


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of `measure` with the columns of the table: a number, a text or None in each."""
    right, anterior, superior = row["centroid_ras_mm"]
    cells = {**row, "right_mm": right, "anterior_mm": anterior, "superior_mm": superior}
    return {column: cells[column] for column in COLUMNS}


def _without_body(level: int, mask: Mask) -> str | None:
    """Return a sentence why a structure has no body that can be measured, None if it may have one."""
    if level <= C2:
        return C1_C2
    if level == SACRUM:
        return SACRUM_FUSED
    return TOO_LARGE if volume_ml(mask) > LARGEST_ML else None


def _measured_alone(
    mask: Mask, up: np.ndarray, image: Geometry | None
) -> tuple[Body | None, str | None, tuple[Plates, Heights] | None]:
    """Return what takes most time, and of one vertebra alone: its body, a sentence why there is none, and its plates.

    ``image`` is given if the mask reaches its border.
    """
    body = find_body(mask, up)
    if image is not None and (body is None or not _within(body.points(body.inside), image)):
        return None, TRUNCATED, None
    if body is None:
        return None, INSEPARABLE, None
    surfaces = end_plates(body, mask)
    if surfaces is None:
        return body, None, None
    return body, None, (plates_of(body, surfaces), heights_of(body, surfaces, mask))


def volume_ml(mask: Mask) -> float:
    """Return the volume of a mask's voxels."""
    # A Python float, as in the report: numpy rounds some halves the other way.
    return float(np.count_nonzero(mask.array) * abs(np.linalg.det(mask.to_lps[:3, :3]))) / 1000


def centroid(mask: Mask) -> np.ndarray:
    """Return the mean position of a mask's voxels, LPS mm."""
    centre: np.ndarray = (mask.to_lps @ [*mean_index(mask.array)[::-1], 1.0])[:3]
    return centre


def direction(level: int, centres: Mapping[int, np.ndarray]) -> np.ndarray:
    """Return the direction of the column at a level, LPS, from the nearest levels present below and above."""
    order = from_top(centres)
    index = order.index(level) if level in order else len(order)
    above = order[max(0, index - 1)] if order else level
    below = order[index + 1] if index + 1 < len(order) else level
    up = centres[above] - centres[below]
    return up if up.any() else np.array([0.0, 0.0, 1.0])


def _box_corners(mask: Mask) -> np.ndarray:
    """Return the corners (8, 3) of the bounding box of a mask's voxels, LPS mm."""
    ends = []
    for axis in (2, 1, 0):
        filled = np.flatnonzero(mask.array.any(axis=tuple(other for other in range(3) if other != axis)))
        ends.append((filled[0], filled[-1]))
    first, last = zip(*ends, strict=True)
    return (corners(first, last) @ mask.to_lps.T)[:, :3]


def _index(points: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return the voxel indices (x, y, z) of LPS points (n, 3)."""
    to_index = np.linalg.inv(geometry.affine)
    index: np.ndarray = points @ to_index[:3, :3].T + to_index[:3, 3]
    return index


def _within(points: np.ndarray, geometry: Geometry) -> bool:
    """Say whether points (n, 3) lie in an image, outermost voxels excluded."""
    index = _index(points, geometry)
    return bool((index > 0.5).all() and (index < np.array(geometry.size) - 1.5).all())


def _height_cells(heights: Heights | None) -> dict[str, Any]:
    """Return the heights of a row."""
    sds = np.full(len(PLACES), np.nan) if heights is None else heights.sd
    sd = float(sds.max())
    cells = {name: None if heights is None else heights.at(place) for name, place in zip(HEIGHTS, PLACES, strict=True)}
    points = None if heights is None else np.round(heights.points * (-1, -1, 1), 2).tolist()
    return {
        **cells,
        "height_sd_mm": round(sd, 2) if np.isfinite(sd) else None,
        "height_sds_mm": None
        if heights is None
        else [round(each, 2) if np.isfinite(each) else None for each in sds.tolist()],
        "height_points_ras_mm": points,
    }


def _not_judged(row: Mapping[str, Any], implant: bool, torn: bool) -> str | None:
    """Return a sentence why a vertebra with these heights has no grade; None if nothing here speaks against it."""
    if not is_graded(row["value"]):
        return OTHER_LEVEL
    if row["note"]:
        return str(row["note"])
    if implant:
        return IMPLANT
    if torn:
        return TORN
    return None if all(row[name] is not None for name in HEIGHTS) else GAP


def _fracture_cells(loss: Loss | None, not_judged: str | None) -> dict[str, Any]:
    """Return the loss of height of a row and its grade, or why there is none."""
    known = loss if not_judged is None else None
    judged = known if known is not None and known.grade is not None else None
    expected = [None] * len(EXPECTED) if known is None else known.expected_mm
    return {
        **dict(zip(EXPECTED, expected, strict=True)),
        "height_loss_percent": None if known is None else round(100 * known.part, 1),
        "height_loss_sd_percent": None if known is None else round(100 * known.sd, 1),
        "height_loss_place": None if known is None else known.place,
        "fracture_grade": None if judged is None else judged.grade,
        "fracture_grade_lowest": None if judged is None else judged.lowest,
        "fracture_grade_highest": None if judged is None else judged.highest,
        "fracture_shape": None if judged is None else judged.shape or None,
        "not_judged": not_judged or (UNCERTAIN if judged is None else None),
    }


def _core(body: Body, volume: Volume) -> np.ndarray:
    """Return the values of a volume inside a body, away from its surface, one each cubic mm."""
    shell = min(SHELL_MM, SHELL_PART * body.size[0], SHELL_PART * body.size[1])
    deep = further_inside(body.inside, shell / FINE_MM)
    index = _index(body.points(deep), volume.geometry)[:, ::-1]
    values: np.ndarray = ndimage.map_coordinates(volume.array, index.T, np.float32, order=1, mode="nearest")
    return values


def _ml(samples: int) -> float:
    """Return the volume of samples of a body, mL."""
    return samples * FINE_MM**3 / 1000
