"""Which label is nearest."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree


def nearest_labels(labels: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the label nearest to each of some places outside of all labels, and how far it is.

    For few places: a distance map of the whole grid takes two to five times as long.

    Parameters
    ----------
    labels : ndarray of int
        Shape (z, y, x), not all 0.
    places : ndarray of int
        Shape (n, 3), voxels whose label is 0.

    Returns
    -------
    owners : ndarray
        Shape (n,): the labels; of labels equally near, any.
    distances : ndarray
        Shape (n,), in voxels.
    """
    inside = labels > 0
    # From outside, what is nearest lies at the edge.
    edge = np.argwhere(inside & ~ndimage.binary_erosion(inside))
    distances, nearest = KDTree(edge).query(places)
    return labels[tuple(edge[nearest].T)], distances
