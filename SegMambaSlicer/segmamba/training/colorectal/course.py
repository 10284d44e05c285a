"""Random courses and widths of the large bowel in the abdomen of a label map.

Few bowels are open data, and a network memorizes their courses. The centreline is bent at random within the room that
other organs leave, and a tube of varying width is laid along it. Our own construction.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from segmamba.training.colorectal.centreline import STEP_MM, centreline_indices, depth_within, lengths_along
from segmamba.training.colorectal.labels import MESENTERY
from segmamba.training.colorectal.seeds import axis_along
from segmamba.training.synthesis.tissue_labels import COLON, FAT, SMALL_BOWEL, SOFT, SPACING

# The lowest part of the bowel stays unchanged, because it has no room.
KEPT_MM = 110.0
# Standard deviation in mm (z, y, x) of bends of about these lengths of bowel.
BENDS = ((100.0, (28.0, 9.0, 26.0)), (40.0, (8.0, 5.0, 8.0)))
# Mean and standard deviation of the logarithm of the width, against the widest ball in the bowel as it was, which is
# narrower than a bowel that is not round; and of stretches of about a length.
WIDTH, STRETCH, STRETCH_MM = (0.14, 0.15), 0.28, 60.0
RADII_MM = (8.0, 38.0)
HAUSTRUM_MM, HAUSTRA = 33.0, 0.13
SURFACE_MM, SURFACE_BUMP_MM = 1.5, 9.0
# The axis stays this far from what is not room; consecutive points farther apart than this are two pieces of bowel.
FROM_WALL_MM, TORN_MM = 7.0, 26.0
# Points of the tube lie this close; loops of bowel that are farther apart along it than this do not melt together.
POINT_MM, FAR_MM = 2.0, 70.0


def random_course(tissues: np.ndarray, cavity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a tissue label map with a random course of the large bowel.

    Parameters
    ----------
    tissues : ndarray of uint8 (z, y, x)
        Of `segmamba.training.synthesis.tissue_labels`, on a grid of `SPACING`; z grows to the head.
    cavity : ndarray of bool (z, y, x)
        Of the abdomen.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of uint8 (z, y, x)
        The old bowel becomes soft tissue. The new one may replace small bowel, but no other organ. A bowel of less
        than `KEPT_MM` stays unchanged.
    """
    large = tissues == COLON
    depth = depth_within(large, SPACING)
    length = lengths_along(large, depth, SPACING)
    known = np.isfinite(length)
    centreline_index = centreline_indices(length)
    axis, radius = axis_along(known, depth, centreline_index)
    steps = slice(int(KEPT_MM / STEP_MM), int(centreline_index.max()) + 1)
    if steps.stop - steps.start < 2:
        return tissues.copy()
    room = cavity & np.isin(tissues, (COLON, SMALL_BOWEL, SOFT, FAT, MESENTERY))
    points, radii = _points(_bent(axis[steps], room, rng), _widths(radius[steps], rng), axis[steps])
    result = tissues.copy()
    result[large] = SOFT
    result[_tube(points, radii, room, rng)] = COLON
    result[known & (length <= KEPT_MM)] = COLON
    return result


def _bent(axis: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an axis (n, 3) in voxels that is bent within the room, least where it begins."""
    begin = np.minimum(np.arange(len(axis)) * STEP_MM / BENDS[0][0], 1.0)[:, None]
    bend = sum(
        np.stack([_wave(len(axis), size, rng) for _ in amplitudes], axis=1) * amplitudes for size, amplitudes in BENDS
    )
    bent = axis + begin * bend / SPACING
    wide = ndimage.distance_transform_edt(room, sampling=SPACING) > FROM_WALL_MM
    if wide.any():
        index = np.clip(np.round(bent).astype(int), 0, np.array(room.shape) - 1)
        nearest = ndimage.distance_transform_edt(~wide, return_distances=False, return_indices=True)
        bent = np.where(wide[tuple(index.T)][:, None], bent, nearest[:, index[:, 0], index[:, 1], index[:, 2]].T)
    return ndimage.gaussian_filter1d(bent, 1.0, axis=0, mode="nearest")


def _widths(radius: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return other radii (n,) in mm."""
    factor = np.exp(rng.normal(*WIDTH) + STRETCH * _wave(len(radius), STRETCH_MM, rng))
    return np.clip(radius * factor, *RADII_MM)


def _points(axis: np.ndarray, radii: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points (m, 3) in voxels, `POINT_MM` apart along the bowel, and radii (m,) in mm with haustra.

    ``before`` is the axis before it was bent: where that is torn, there is no bowel in between.
    """
    fine = np.arange(0, len(axis) - 1, POINT_MM / STEP_MM)
    torn = np.linalg.norm(np.diff(before, axis=0), axis=1) * SPACING > TORN_MM
    fine = fine[~torn[fine.astype(int)]]
    numbers = np.arange(len(axis))
    points = np.stack([np.interp(fine, numbers, column) for column in axis.T], axis=1)
    haustra = 1 + HAUSTRA * np.cos(2 * np.pi * fine * STEP_MM / HAUSTRUM_MM)
    return points, np.interp(fine, numbers, radii) * haustra


def _tube(points: np.ndarray, radii: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the voxels (z, y, x) of a tube within the room; its loops leave a gap where they meet."""
    bumps = ndimage.gaussian_filter(rng.standard_normal(room.shape, np.float32), SURFACE_BUMP_MM / SPACING / 2)
    best = np.zeros(room.shape, np.float32)
    owner = np.full(room.shape, -1, np.int32)
    surface = SURFACE_MM * bumps / bumps.std()
    for number, (point, radius) in enumerate(zip(points, radii, strict=True)):
        reach = int(np.ceil((radius + 3 * SURFACE_MM) / SPACING))
        low = np.maximum(np.round(point).astype(int) - reach, 0)
        high = np.minimum(np.round(point).astype(int) + reach + 1, room.shape)
        if (low >= high).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        grid = np.ogrid[box]
        distance = np.sqrt(sum((axis - centre) ** 2 for axis, centre in zip(grid, point, strict=True))) * SPACING
        field = radius - distance + surface[box]
        nearer = field > best[box]
        best[box][nearer] = field[nearer]
        owner[box][nearer] = number
    owner[~room] = -1
    far = FAR_MM / POINT_MM
    apart = np.zeros(room.shape, bool)
    for axis in range(3):
        one, other = (np.moveaxis(owner, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        meet = (one >= 0) & (other >= 0) & (np.abs(one - other) > far)
        np.moveaxis(apart, axis, 0)[:-1] |= meet
        np.moveaxis(apart, axis, 0)[1:] |= meet
    return (owner >= 0) & ~apart


def _wave(count: int, size_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise (count,) of standard deviation 1 with bumps of about a size along the bowel."""
    sigma = size_mm / STEP_MM / 2
    margin = int(4 * sigma) + 1
    noise = ndimage.gaussian_filter1d(rng.standard_normal(count + 2 * margin), sigma)[margin : margin + count]
    return noise * np.sqrt(2 * np.sqrt(np.pi) * sigma)
