"""Position of voxels along the large bowel, from its lower end up. Our own construction."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

# Steps in which lengths along the large bowel are counted: 255 make 2.04 m (Khashab et al. 2009: 1.89 +- 0.26 m).
STEP_MM = 8.0
# Paths are sought on a grid of this many voxels.
STEP = 2
# Near the wall a path costs more: touching loops share walls, not axes.
WALL_COST_MM, WALL_COST_POWER = 8.0, 5
# Pieces of a label below this are noise.
SMALLEST_ML = 1.0
# A path starts anywhere in the lowest slices of this many mm.
LOWEST_MM = 4.0


def lengths_along(bowel: np.ndarray, depth: np.ndarray, spacing: float) -> np.ndarray:
    """Return the length in mm of the path within the bowel from its lowest point to each voxel.

    Pieces that do not touch go on where the nearest piece that is nearer to the lower end is left.

    Parameters
    ----------
    bowel : ndarray of bool (z, y, x)
        z grows to the head.
    depth : ndarray (z, y, x)
        Distance in mm to the bowel's surface, inside.
    spacing : float
        In mm.

    Returns
    -------
    ndarray of float32 (z, y, x)
        NaN outside the bowel, and in pieces smaller than `SMALLEST_ML`.
    """
    pad = [(0, -n % STEP) for n in bowel.shape]
    coarse_depth = _blocks(np.pad(np.where(bowel, depth, 0.0), pad))
    pieces, count = ndimage.label(coarse_depth > 0, np.ones((3, 3, 3)))
    result = np.full(coarse_depth.shape, np.nan, np.float32)
    unit = spacing * STEP
    least = SMALLEST_ML * 1000 / unit**3
    waiting = [number for number in range(1, count + 1) if (pieces == number).sum() >= least]
    while waiting:
        reached = np.isfinite(result)
        if not reached.any():
            number = min(waiting, key=lambda piece: np.nonzero(pieces == piece)[0].min())
            lowest = np.nonzero(pieces == number)[0].min()
            level = np.arange(len(result))[:, None, None]
            starts, offset = (pieces == number) & (level <= lowest + LOWEST_MM / unit), 0.0
        else:
            gap, nearest = ndimage.distance_transform_edt(~reached, sampling=unit, return_indices=True)
            number = min(waiting, key=lambda piece: gap[pieces == piece].min())
            index = int(np.where(pieces == number, gap, np.inf).argmin())
            starts = np.zeros_like(reached)
            starts.flat[index] = True
            z, y, x = nearest.reshape(3, -1)[:, index]
            offset = float(gap.flat[index] + result[z, y, x])
        waiting.remove(number)
        inside = pieces == number
        result[inside] = offset + _path_lengths(inside, starts, coarse_depth, unit)
    fine = result.repeat(STEP, 0).repeat(STEP, 1).repeat(STEP, 2)
    inner = tuple(slice(n) for n in bowel.shape)
    return np.where(bowel, fine[inner], np.nan)


def depth_within(bowel: np.ndarray, spacing: float) -> np.ndarray:
    """Return the distance (z, y, x) in mm to the bowel's surface, inside; beyond the map there is none."""
    depth: np.ndarray = ndimage.distance_transform_edt(np.pad(bowel, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    return depth


def centreline_indices(length: np.ndarray) -> np.ndarray:
    """Return the index of the step of `STEP_MM` for lengths in mm, uint8; 0 where they are NaN."""
    numbers = np.zeros(length.shape, np.uint8)
    known = np.isfinite(length)
    numbers[known] = np.minimum(length[known] / STEP_MM, 254).astype(np.uint8)
    return numbers


def _blocks(values: np.ndarray) -> np.ndarray:
    """Return the maximum of blocks of ``STEP`` voxels."""
    z, y, x = (n // STEP for n in values.shape)
    return values.reshape(z, STEP, y, STEP, x, STEP).max(axis=(1, 3, 5))


def _path_lengths(inside: np.ndarray, starts: np.ndarray, depth: np.ndarray, unit: float) -> np.ndarray:
    """Return the lengths of the cheapest paths from ``starts`` to the voxels ``inside`` (in their order), in mm."""
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(inside.sum())
    padded, cost = np.pad(number, 1, constant_values=-1), 1 + (WALL_COST_MM / (depth[inside] + 1)) ** WALL_COST_POWER
    rows, columns, steps = [], [], []
    for shift in np.argwhere(np.ones((3, 3, 3))) - 1:
        if tuple(shift) <= (0, 0, 0):
            continue  # the graph has no direction: half of the neighbours are enough
        z, y, x = (slice(1 + s, 1 + s + n) for s, n in zip(shift, inside.shape, strict=True))
        other = padded[z, y, x][inside]
        rows.append(np.flatnonzero(other >= 0))
        columns.append(other[other >= 0])
        steps.append(np.full(len(rows[-1]), unit * np.linalg.norm(shift)))
    row, column, step = (np.concatenate(part) for part in (rows, columns, steps))
    graph = coo_array((step * (cost[row] + cost[column]) / 2, (row, column)), shape=(len(cost), len(cost)))
    spent, before, _ = dijkstra(
        graph.tocsr(), directed=False, indices=number[starts & inside], return_predecessors=True, min_only=True
    )
    places = np.argwhere(inside) * unit
    length = np.zeros(len(cost))
    for voxel in np.argsort(spent):
        if before[voxel] >= 0:
            length[voxel] = length[before[voxel]] + np.linalg.norm(places[voxel] - places[before[voxel]])
    return length
