"""Polygons back to voxels, by counting how often a ray from each voxel's centre meets an edge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def filled(rings: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the mask (y, x) of the voxels whose centres lie in one of some polygons of points (n, 2) x and y."""
    y, x = np.indices(shape)
    mask = np.zeros(shape, bool)
    for ring in rings:
        inside = np.zeros(shape, bool)
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                between = (y0 > y) != (y1 > y)
                inside ^= between & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        mask |= inside
    return mask
