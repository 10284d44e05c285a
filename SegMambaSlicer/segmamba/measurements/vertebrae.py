"""Measurements of each vertebra: volume, position, body heights, trabecular density, angles to the next one."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from segmamba.io.modality import CT, resolve_modality
from segmamba.io.volume import Geometry, Volume, corners
from segmamba.labels import Label
from segmamba.measurements.vertebral_body import FINE_MM, Body, Mask, axes_along, find_body
from segmamba.spine.levels import C2, ORDER, SACRUM, from_top, is_next
from segmamba.utils.arrays import label_boxes
from segmamba.utils.atomic import atomic_write
from segmamba.utils.parallel import at_once

# Where the three heights are measured: fractions of the body's depth from the front. The rims themselves are rounded.
BANDS = {"anterior": (0.1, 0.25), "middle": (0.425, 0.575), "posterior": (0.75, 0.9)}
# Heights are averaged over this middle part of the width.
MIDDLE_WIDTH = 1 / 3
# Density is measured at least this far from the surface of a body, inside its shell and the blur of thick slices; in
# small bodies at least this part of the height and of the depth.
SHELL_MM, SHELL_PART = 5.0, 0.25
# Density is not measured in a smaller volume.
SMALLEST_CORE_ML = 0.2
COLUMNS = (
    *("value", "name", "volume_ml", "right_mm", "anterior_mm", "superior_mm", "at_border"),
    *("anterior_height_mm", "middle_height_mm", "posterior_height_mm", "trabecular_hu"),
    *("sagittal_angle_deg", "coronal_angle_deg", "note"),
)
C1_C2 = "C1 and C2 have no body with two end plates."
SACRUM_FUSED = "The sacrum is not a single vertebra."
TRUNCATED = "The image ends within the body."
INSEPARABLE = "The body cannot be separated from the arch."


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
    boxes = label_boxes(labels)
    masks = {
        label.value: mask_in_box(labels[boxes[label.value]] == label.value, boxes[label.value], volume.geometry)
        for label in structures
        if label.value in boxes
    }
    return measure(masks, volume, {label.value: label.name for label in structures})


def mask_in_box(array: np.ndarray, box: tuple[slice, ...], geometry: Geometry) -> Mask:
    """Return a mask from its array in a box (slices along z, y, x) of a grid."""
    to_lps = geometry.affine
    to_lps[:3, 3] = (to_lps @ [*(part.start for part in reversed(box)), 1.0])[:3]
    return Mask(array, to_lps)


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
        ``posterior_height_mm``, ``trabecular_hu`` (None unless the volume is a CT), ``sagittal_angle_deg`` and
        ``coronal_angle_deg`` (to the next lower level, none for the sacrum), and ``note`` (why there are no heights, a
        sentence, else None).
    """
    order = [*from_top(masks), *(level for level in sorted(masks) if level not in ORDER)]
    centres = {level: _centroid(masks[level]) for level in order}
    is_ct = resolve_modality(volume).modality == CT
    bodies: dict[int, Body] = {}

    def row_of(level: int) -> dict[str, Any]:
        mask = masks[level]
        at_border = not _within(_box_corners(mask), volume.geometry)
        body, note = _body_of(level, mask, _direction(level, centres), volume.geometry if at_border else None)
        if body is not None:
            bodies[level] = body
        x, y, z = centres[level]
        return {
            "value": level,
            "name": names[level],
            # A Python float, as in the report: numpy rounds some halves the other way.
            "volume_ml": round(float(np.count_nonzero(mask.array) * abs(np.linalg.det(mask.to_lps[:3, :3]))) / 1000, 3),
            "centroid_ras_mm": [round(-x, 2), round(-y, 2), round(z, 2)],
            "at_border": at_border,
            **{f"{name}_height_mm": None if body is None else _height(body, *BANDS[name]) for name in BANDS},
            "trabecular_hu": _density(body, volume) if body is not None and is_ct else None,
            "sagittal_angle_deg": None,
            "coronal_angle_deg": None,
            "note": note,
        }

    rows = list(at_once(row_of, centres).values())
    for row, below in zip(rows, order[1:], strict=False):
        level = row["value"]
        if level in bodies and below in bodies and is_next(level, below):
            row["sagittal_angle_deg"], row["coronal_angle_deg"] = angles(bodies[level], bodies[below])
    return rows


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
    return round(float(np.degrees(sagittal)), 1), round(float(np.degrees(coronal)), 1)


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write measurements as CSV, whole or not at all; missing values are empty cells.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    with atomic_write(path, (".csv",)) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(flat(row) for row in rows)


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of `measure` with the columns of the table: a number, a text or None in each."""
    right, anterior, superior = row["centroid_ras_mm"]
    cells = {**row, "right_mm": right, "anterior_mm": anterior, "superior_mm": superior}
    return {column: cells[column] for column in COLUMNS}


def _body_of(level: int, mask: Mask, up: np.ndarray, image: Geometry | None) -> tuple[Body | None, str | None]:
    """Return a vertebra's body, or a sentence why there is none; ``image`` is given if the mask reaches its border."""
    if level <= C2:
        return None, C1_C2
    if level == SACRUM:
        return None, SACRUM_FUSED
    body = find_body(mask, up)
    if image is not None and (body is None or not _within(body.points(body.inside), image)):
        return None, TRUNCATED
    return body, None if body is not None else INSEPARABLE


def _centroid(mask: Mask) -> np.ndarray:
    index = [part.mean() for part in np.nonzero(mask.array)][::-1]
    centroid: np.ndarray = (mask.to_lps @ [*index, 1.0])[:3]
    return centroid


def _direction(level: int, centres: Mapping[int, np.ndarray]) -> np.ndarray:
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


def _height(body: Body, first: float, last: float) -> float | None:
    """Return the mean distance of the end plates between two fractions of the depth, mm."""
    depth, width = body.plate_grid
    part = depth / body.size[1] + 0.5
    heights = (body.upper - body.lower)[(part >= first) & (part <= last)][
        :, np.abs(width) <= body.size[2] * MIDDLE_WIDTH / 2
    ]
    heights = heights[np.isfinite(heights)]
    return round(float(np.mean(heights)), 2) if heights.size else None


def _density(body: Body, volume: Volume) -> float | None:
    """Return the mean HU of a CT inside a body, away from its surface."""
    shell = min(SHELL_MM, SHELL_PART * body.size[0], SHELL_PART * body.size[1])
    depth = ndimage.distance_transform_edt(np.pad(body.inside, 1))[1:-1, 1:-1, 1:-1] * FINE_MM
    points = body.points(depth > shell)
    if len(points) * FINE_MM**3 / 1000 < SMALLEST_CORE_ML:
        return None
    index = _index(points, volume.geometry)[:, ::-1]
    values = ndimage.map_coordinates(volume.array, index.T, np.float32, order=1, mode="nearest")
    return round(float(values.mean()), 1)
