"""Seeds of tumours and points for metal in a bowel map, drawn once, on the CPU."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from segmamba.training.colorectal.labels import LARGE, RECTUM
from segmamba.training.synthesis.tissue_labels import BONES, OUTSIDE, SPACING

SEEDS, BONE_PLACES = 1200, 40
# Seeds lie this near to the surface, not in the last part of the bowel (the anal canal), and not at the map's border.
SURFACE_MM, CANAL_STEPS, BORDER_MM, STRAIGHT = 1.6, 4, 15.0, 0.4
SMALLEST_RADIUS_MM = 5.0
# Columns of the table of seeds: position (z, y, x in voxels), unit vectors into the bowel and along it, radius of the
# bowel there in mm, centreline index, and whether it is the rectum.
POSITION, INWARD, ALONG, RADIUS, STEP, IN_RECTUM = slice(0, 3), slice(3, 6), slice(6, 9), 9, 10, 11
COLUMNS = 12


def seed_table(
    tissues: np.ndarray, depth: np.ndarray, centreline_index: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return up to `SEEDS` seeds, (n, `COLUMNS`), float32.

    Parameters
    ----------
    tissues, depth, centreline_index : ndarray (z, y, x)
        As in `segmamba.training.colorectal.label_maps`, the depth in mm.
    rng : numpy.random.Generator
    """
    large = np.isin(tissues, LARGE)
    axis, radius = axis_along(large, depth, centreline_index)
    border = int(BORDER_MM / SPACING)
    known = (tissues != OUTSIDE).all(axis=(1, 2))
    allowed = large & (depth < SURFACE_MM) & (centreline_index >= CANAL_STEPS)
    allowed &= (ndimage.binary_erosion(known, iterations=border))[:, None, None]
    voxels = np.argwhere(allowed)
    voxels = voxels[rng.permutation(len(voxels))[:SEEDS]]
    smooth = ndimage.gaussian_filter(np.clip(depth, -6, None), 2 / SPACING)
    inward = np.stack([gradient[tuple(voxels.T)] for gradient in np.gradient(smooth)], axis=1)
    steps = centreline_index[tuple(voxels.T)].astype(int)
    along = _unit(np.gradient(axis, axis=0)[steps])
    inward = _unit(inward - (inward * along).sum(axis=1, keepdims=True) * along)
    table = np.zeros((len(voxels), COLUMNS), np.float32)
    table[:, POSITION], table[:, INWARD], table[:, ALONG] = voxels, inward, along
    table[:, RADIUS], table[:, STEP] = radius[steps], steps
    table[:, IN_RECTUM] = tissues[tuple(voxels.T)] == RECTUM
    table = table[np.isfinite(table).all(axis=1)]
    # Where loops touch, or the bowel turns, the way in may not be the way to its axis: such seeds are left out.
    axis_points = table[:, POSITION] + table[:, RADIUS, None] / SPACING * table[:, INWARD]
    reached = ndimage.map_coordinates(np.where(large, depth, 0), axis_points.T, order=1)
    return table[(reached > STRAIGHT * table[:, RADIUS]) & (table[:, RADIUS] > SMALLEST_RADIUS_MM)]


def axis_along(large: np.ndarray, depth: np.ndarray, centreline_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each centreline index the smoothed centre (256, 3), in voxels, and the largest depth (256,) in mm."""
    number, numbers = centreline_index[large].astype(int), np.arange(256)
    count = np.bincount(number, minlength=256)
    present = np.flatnonzero(count)
    sums = [np.bincount(number, column, minlength=256) for column in np.nonzero(large)]
    centres = np.stack([np.interp(numbers, present, total[present] / count[present]) for total in sums], axis=1)
    radius = np.zeros(256)
    np.maximum.at(radius, number, depth[large])
    radius = np.interp(numbers, present, radius[present])
    return ndimage.gaussian_filter1d(centres, 1.5, axis=0, mode="nearest"), radius


def _unit(vectors: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def bone_points(tissues: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return some points (n, 3) in bones, z, y, x in voxels, float32; empty without bones."""
    voxels = np.argwhere(np.isin(tissues, BONES))
    return voxels[rng.permutation(len(voxels))[:BONE_PLACES]].astype(np.float32)
