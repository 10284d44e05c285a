"""The vertebral column of a mask. The rules are our own, not a paper's."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from segmamba.utils.morphology import TOUCHING

# An island is a piece of a label smaller than this: an arch without pedicles is bigger.
ISLAND_MM3 = 1000.0
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
