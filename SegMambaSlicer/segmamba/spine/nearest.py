"""Find the nearest label, or the nearest of a few points."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from segmamba.utils.morphology import dilated

# Points that are compared with all centres at a time: it bounds the memory.
ROWS = 1 << 16


def nearest_points(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest of a few centres to each point, and its distance.

    For few centres: one matrix product is several times faster than a search tree.

    Parameters
    ----------
    points : ndarray
        Shape (n, 3).
    centres : ndarray
        Shape (k, 3), k >= 1.

    Returns
    -------
    nearest : ndarray of int
        Shape (n,): index of the centre.
    distances : ndarray
        Shape (n,).
    """
    middle = centres.mean(axis=0)
    around = centres - middle
    squares = (around**2).sum(axis=1)
    nearest = np.empty(len(points), np.intp)
    for first in range(0, len(points), ROWS):
        rows = slice(first, first + ROWS)
        nearest[rows] = (squares - 2 * ((points[rows] - middle) @ around.T)).argmin(axis=1)
    return nearest, np.sqrt(((points - centres[nearest]) ** 2).sum(axis=1))


def nearest_labels(labels: np.ndarray, voxels: np.ndarray, within: float) -> np.ndarray:
    """Return the nearest label of some voxels outside all labels, as far as it is near.

    For few voxels: a distance map of the whole grid takes two to five times as long.

    Parameters
    ----------
    labels : ndarray of int
        Shape (z, y, x), not all 0.
    voxels : ndarray of int
        Shape (n, 3): indices of voxels whose label is 0.
    within : float
        The largest distance, in voxels.

    Returns
    -------
    ndarray
        Shape (n,): the labels, any of those at the same distance; 0 where there is none within that distance.
    """
    inside = labels > 0
    # The nearest labelled voxel lies on the surface.
    surface = np.argwhere(inside & dilated(~inside))
    _, nearest = KDTree(surface, balanced_tree=False).query(voxels, distance_upper_bound=np.nextafter(within, np.inf))
    # Beyond the last one is none.
    owners = np.append(labels[tuple(surface.T)], 0)
    return owners[nearest]
