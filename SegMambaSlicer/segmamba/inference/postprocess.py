"""Cleaning up a label map: stray pieces, islands and holes. The rules are our own, not a paper's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from segmamba.errors import ModelError
from segmamba.io.labelmap import bounding_box, label_boxes
from segmamba.io.volume import Volume
from segmamba.models.manifest import KEEP_ALL

# A piece of the column that is cut off from the rest (a gap in the labels, a collapsed disc) is kept if it is at least
# this big (the smallest vertebrae, of the neck, are about 10 mL) ...
PIECE_MM3 = 5000.0
# ... and its centre lies this close to where the column runs.
PIECE_OFFSET_MM = 40.0
# The column's course at a height is that of the nearest part of this length.
COURSE_MM = 80.0
# A course is fitted to the column's centres in layers of this height ...
LAYER_MM = 5.0
# ... and leans by at most 45 degrees where it is extrapolated.
STEEPEST = 1.0
# An island is a piece of a label smaller than this: an arch without pedicles is bigger.
ISLAND_MM3 = 1000.0
# No tumour that was painted for training is smaller (`segmamba.training.colorectal`), so a smaller one means nothing.
SMALLEST_TUMOUR_MM3 = 200.0
HOLE_MM3 = 500.0
# Connected air of at least this much is lung where its median is above this many HU: gas in bowel, and the air around
# a patient, have less.
AIR_HU, LUNG_HU, LUNG_MM3 = -500, -950, 300_000.0
# Lungs are looked for on a grid about this coarse.
LUNG_GRID_MM = 3.0
TOUCHING = np.ones((3, 3, 3), dtype=bool)


def postprocess(labels: np.ndarray, volume: Volume, keep: str) -> np.ndarray:
    """Clean up a label map by one of the manifest's rules.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x).
    volume : Volume
        What was labelled, on the same grid.
    keep : str
        "all": nothing is changed. "largest_column": what is not connected to the vertebral column, and no
        piece of it, is dropped; small islands of a label go to the label that they touch most, or to the background
        if they touch none; small holes in a label are filled. "bowel", of a CT: pieces of which more than half is lung
        are dropped; pieces under 0.2 mL of a label go to the label that they touch most, or to the background; small
        holes are filled.

    Returns
    -------
    ndarray of uint8
        A new array, or ``labels`` itself for "all".

    Raises
    ------
    ModelError
        There is no such rule.
    """
    if keep == KEEP_ALL:
        return labels
    if keep not in ("largest_column", "bowel"):
        raise ModelError(f"There is no rule '{keep}' to keep structures by: correct the model's manifest entry.")
    foreground = bounding_box(labels > 0)
    if foreground is None:
        return labels.copy()
    # One voxel of background on all sides, where there is one, lets islands at the border see it.
    box = _grown(foreground, labels.shape)
    part, geometry = labels[box].copy(), volume.geometry
    if keep == "bowel":
        drop_lung(part, volume.array[box], geometry.spacing[::-1])
        merge_islands(part, SMALLEST_TUMOUR_MM3 / geometry.voxel_volume)
    else:
        matrix = geometry.index_to_lps()
        start = [piece.start for piece in reversed(box)]
        matrix[:3, 3] = (matrix @ [*start, 1.0])[:3]
        part[~column(part > 0, matrix)] = 0
        merge_islands(part, ISLAND_MM3 / geometry.voxel_volume)
    fill_holes(part, HOLE_MM3 / geometry.voxel_volume)
    result = np.zeros_like(labels)
    result[box] = part
    return result


def drop_lung(labels: np.ndarray, hounsfield: np.ndarray, spacing: Sequence[float]) -> None:
    """Remove, in place, connected pieces of which more than half is lung; both (z, y, x), spacing in mm alike.

    In a chest the colorectal network may take part of the lungs for a wide colon: few training samples show any.
    """
    coarse = tuple(slice(None, None, max(1, round(LUNG_GRID_MM / mm))) for mm in spacing)
    values = hounsfield[coarse]
    air, _ = ndimage.label(values < AIR_HU)
    voxel = float(np.prod([step.step * mm for step, mm in zip(coarse, spacing, strict=True)]))
    large = [n for n, size in enumerate(np.bincount(air.ravel())) if n and size * voxel >= LUNG_MM3]
    lungs = [n for n in large if np.median(values[air == n]) > LUNG_HU]
    if not lungs:
        return
    pieces, count = ndimage.label(labels > 0, TOUCHING)
    seen = pieces[coarse]
    inside = np.bincount(seen[np.isin(air, lungs)], minlength=count + 1)
    dropped = inside > 0.5 * np.bincount(seen.ravel(), minlength=count + 1)
    dropped[0] = False
    labels[dropped[pieces]] = 0


def column(mask: np.ndarray, index_to_lps: np.ndarray) -> np.ndarray:
    """Return the vertebral column of a mask: its largest component, and the pieces along that one's extension.

    Pieces are added one by one, the nearest in height first, so a chain of them is followed along its curve.

    Parameters
    ----------
    mask : ndarray of bool
        Shape (z, y, x).
    index_to_lps : ndarray
        4x4 matrix from voxel index (x, y, z, 1) to LPS millimetres.
    """
    components, count = ndimage.label(mask, structure=TOUCHING)
    if count < 2:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    largest = int(sizes.argmax())
    voxel_volume = abs(float(np.linalg.det(index_to_lps[:3, :3])))
    candidates = [n for n in np.flatnonzero(sizes * voxel_volume >= PIECE_MM3).tolist() if n != largest]
    boxes = ndimage.find_objects(components)
    layers = {n: _layers(components[boxes[n - 1]] == n, boxes[n - 1], index_to_lps) for n in [largest, *candidates]}
    kept = [largest]
    while candidates:
        trunk = np.concatenate([layers[n] for n in kept])
        nearest = min(candidates, key=lambda n: _gap(layers[n], trunk))
        candidates.remove(nearest)
        x, y, z = np.average(layers[nearest][:, :3], axis=0, weights=layers[nearest][:, 3])
        if np.hypot(*(np.array([x, y]) - _course(trunk, z))) <= PIECE_OFFSET_MM:
            kept.append(nearest)
    chosen = np.zeros(count + 1, dtype=bool)
    chosen[kept] = True
    return chosen[components]


def merge_islands(labels: np.ndarray, smallest: float) -> None:
    """Give pieces of fewer than ``smallest`` voxels to the label that they touch most, in place.

    Pieces join what is no island, or no longer one. Those that touch no such thing go to the background.
    """
    islands, undecided = _islands(labels, smallest)
    while islands:
        left = []
        for place, island in islands:
            grown = _grown(place, labels.shape)
            own = np.zeros([part.stop - part.start for part in grown], dtype=bool)
            own[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(place, grown, strict=True))] = island
            around, open_ = labels[grown], undecided[grown]
            counts = np.bincount(around[ndimage.binary_dilation(own, structure=TOUCHING) & ~open_], minlength=1)
            counts[0] = 0
            if counts.any():
                around[own], open_[own] = counts.argmax(), False
            else:
                left.append((place, island))
        if len(left) == len(islands):
            labels[undecided] = 0
            return
        islands = left


def _islands(labels: np.ndarray, smallest: float) -> tuple[list[tuple[tuple[slice, ...], np.ndarray]], np.ndarray]:
    """Return box and mask of each piece under ``smallest`` voxels, small ones first, and one mask of them all."""
    islands = []
    together = np.zeros(labels.shape, dtype=bool)
    for value, box in label_boxes(labels).items():
        pieces, _ = ndimage.label(labels[box] == value, structure=TOUCHING)
        sizes = np.bincount(pieces.ravel())
        for number, inner in enumerate(ndimage.find_objects(pieces), start=1):
            if sizes[number] < smallest:
                place = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(box, inner, strict=True))
                mask = pieces[inner] == number
                together[place] |= mask
                islands.append((int(sizes[number]), value, place, mask))
    islands.sort(key=lambda island: island[:2])
    return [(place, mask) for _, _, place, mask in islands], together


def fill_holes(labels: np.ndarray, largest: float) -> None:
    """Fill background holes of at most ``largest`` voxels that one label encloses, in place."""
    for value, box in label_boxes(labels).items():
        part = labels[box]
        mask = part == value
        holes, count = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
        if count:
            small = np.bincount(holes.ravel()) <= largest
            small[0] = False
            part[small[holes] & (part == 0)] = value


def _grown(box: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(max(0, part.start - 1), min(size, part.stop + 1)) for part, size in zip(box, shape, strict=True))


def _layers(mask: np.ndarray, box: tuple[slice, ...], index_to_lps: np.ndarray) -> np.ndarray:
    """Return the centre (LPS millimetres) and the voxel count of each layer of a component: shape (layers, 4)."""
    indices = np.argwhere(mask)[:, ::-1] + [part.start for part in reversed(box)]
    positions = indices @ index_to_lps[:3, :3].T + index_to_lps[:3, 3]
    layer = np.floor(positions[:, 2] / LAYER_MM).astype(int)
    layer -= layer.min()
    counts = np.bincount(layer)
    filled = counts > 0
    sums = [np.bincount(layer, weights=positions[:, axis]) for axis in range(3)]
    return np.stack([*(total[filled] / counts[filled] for total in sums), counts[filled]], axis=1)


def _gap(piece: np.ndarray, trunk: np.ndarray) -> float:
    """Return the distance in height between a piece and the trunk; 0 where they overlap."""
    low, high = piece[:, 2].min(), piece[:, 2].max()
    return max(0.0, trunk[:, 2].min() - high, low - trunk[:, 2].max())


def _course(trunk: np.ndarray, height: float) -> np.ndarray:
    """Return x and y of the column at a height, by a line through the part of it nearest to that height."""
    heights = trunk[:, 2]
    lowest = heights.min() + COURSE_MM / 2
    middle = np.clip(height, lowest, max(lowest, heights.max() - COURSE_MM / 2))
    near = trunk[np.abs(heights - middle) <= COURSE_MM / 2 + LAYER_MM]
    centre = np.average(near[:, :3], axis=0, weights=near[:, 3])
    spread = near[:, 3] @ (near[:, 2] - centre[2]) ** 2
    if np.ptp(near[:, 2]) < COURSE_MM / 2 or spread == 0:
        # A single vertebra does not show where the column is heading.
        return centre[:2]
    slope = (near[:, 3] * (near[:, 2] - centre[2])) @ (near[:, :2] - centre[:2]) / spread
    return centre[:2] + np.clip(slope, -STEEPEST, STEEPEST) * (height - centre[2])
