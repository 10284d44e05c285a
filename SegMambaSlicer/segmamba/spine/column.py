"""The vertebral column of a mask. The rules are our own, not a paper's."""

from __future__ import annotations

import numpy as np

from segmamba.utils.runs import runs_of

# A component of a label below this is small; an arch without pedicles is larger.
SMALL_COMPONENT_MM3 = 1000.0
# A component of the column that is separated from the rest (a gap in the labels, a collapsed disc) is kept if it is at
# least this large (the smallest vertebrae, in the neck, have about 10 mL) and its centre lies this close to the course.
COLUMN_COMPONENT_MM3, OFF_COURSE_MM = 5000.0, 40.0
# The course of the column at a height is fitted to the nearest part of this length, to its centres in layers of this
# height. Where it is extrapolated it leans by at most 45 degrees.
COURSE_MM, LAYER_MM, STEEPEST = 80.0, 5.0, 1.0


def extract_column(mask: np.ndarray, index_to_lps: np.ndarray) -> np.ndarray:
    """Return the vertebral column of a mask: its largest component and the components that continue it.

    Components are added one by one, the nearest in height first, so that the curve of the column is followed.

    Parameters
    ----------
    mask : ndarray of bool
        Shape (z, y, x).
    index_to_lps : ndarray
        4x4 matrix from voxel index (x, y, z, 1) to LPS millimetres.
    """
    runs = runs_of(mask, corners=True)
    if len(runs.sizes) < 2:
        return mask
    largest = int(runs.sizes.argmax())
    voxel_volume = abs(float(np.linalg.det(index_to_lps[:3, :3])))
    large = np.flatnonzero(runs.sizes * voxel_volume >= COLUMN_COMPONENT_MM3).tolist()
    candidates = [n for n in large if n != largest]
    numbers = np.arange(len(runs.sizes))
    layers = {
        n: _layers(np.unravel_index(runs.voxels(numbers == n), mask.shape), index_to_lps)
        for n in [largest, *candidates]
    }
    kept = [largest]
    while candidates:
        trunk = np.concatenate([layers[n] for n in kept])
        nearest = min(candidates, key=lambda n: _gap(layers[n], trunk))
        candidates.remove(nearest)
        x, y, z = np.average(layers[nearest][:, :3], axis=0, weights=layers[nearest][:, 3])
        if np.hypot(*(np.array([x, y]) - _course(trunk, z))) <= OFF_COURSE_MM:
            kept.append(nearest)
    column = mask.copy()
    column.reshape(-1)[runs.voxels(~np.isin(numbers, kept))] = False
    return column


def _layers(voxels: tuple[np.ndarray, ...], index_to_lps: np.ndarray) -> np.ndarray:
    """Return the centre (LPS millimetres) and the voxel count of each layer of a component: shape (layers, 4).

    ``voxels`` are its indices along z, y and x.
    """
    positions = np.stack(voxels[::-1], axis=1) @ index_to_lps[:3, :3].T + index_to_lps[:3, 3]
    layer = np.floor(positions[:, 2] / LAYER_MM).astype(int)
    layer -= layer.min()
    counts = np.bincount(layer)
    filled = counts > 0
    sums = [np.bincount(layer, weights=positions[:, axis]) for axis in range(3)]
    return np.stack([*(total[filled] / counts[filled] for total in sums), counts[filled]], axis=1)


def _gap(component: np.ndarray, trunk: np.ndarray) -> float:
    """Return the distance in height between a component and the trunk, in mm; 0 where they overlap."""
    low, high = component[:, 2].min(), component[:, 2].max()
    return max(0.0, trunk[:, 2].min() - high, low - trunk[:, 2].max())


def _course(trunk: np.ndarray, height: float) -> np.ndarray:
    """Return x and y of the column at a height, in mm, from a line through the nearest part of it."""
    heights = trunk[:, 2]
    lowest = heights.min() + COURSE_MM / 2
    middle = np.clip(height, lowest, max(lowest, heights.max() - COURSE_MM / 2))
    near = trunk[np.abs(heights - middle) <= COURSE_MM / 2 + LAYER_MM]
    centre = np.average(near[:, :3], axis=0, weights=near[:, 3])
    spread = near[:, 3] @ (near[:, 2] - centre[2]) ** 2
    if np.ptp(near[:, 2]) < COURSE_MM / 2 or spread == 0:
        # A single vertebra does not show the direction of the column.
        return centre[:2]
    slope = (near[:, 3] * (near[:, 2] - centre[2])) @ (near[:, :2] - centre[:2]) / spread
    return centre[:2] + np.clip(slope, -STEEPEST, STEEPEST) * (height - centre[2])
