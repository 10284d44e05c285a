"""The synthetic patient in voxels that lie anyhow: on sheared axes, in tilted slices, at uneven distances."""

from __future__ import annotations

import numpy as np

from helpers.phantoms import AIR, BODY_AXES, BODY_CENTRE, BONE, VERTEBRA_AXES, VERTEBRAE, WATER, rotation
from segmamba.io.stored_grid import StoredGrid
from segmamba.io.volume import Geometry

SIZE = (36, 34, 40)


def sheared(shear: float, axes: tuple[int, int] = (1, 2), degrees: int = 0) -> Geometry:
    """Return a grid around the phantom whose axis ``axes[1]`` leans towards ``axes[0]``."""
    matrix = np.reshape(rotation(degrees, -degrees), (3, 3)).copy()
    matrix[:, axes[1]] += shear * matrix[:, axes[0]]
    matrix = matrix * (4.0, 5.0, 5.0)
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = np.subtract(BODY_CENTRE, matrix @ ((np.array(SIZE) - 1) / 2))
    return Geometry.from_affine(SIZE, affine)


def drawn(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the phantom's CT and labels at LPS points (..., 3)."""
    array = np.where((((points - BODY_CENTRE) / BODY_AXES) ** 2).sum(axis=-1) < 1, WATER, AIR).astype(np.int16)
    labels = np.zeros(array.shape, np.uint8)
    for value, centre in VERTEBRAE.items():
        labels[(((points - centre) / VERTEBRA_AXES) ** 2).sum(axis=-1) < 1] = value
    array[labels > 0] = BONE
    return array, labels


def points_of(grid: StoredGrid) -> np.ndarray:
    columns, rows, _ = grid.size
    j, i = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return grid.positions[:, None, None] + np.stack([i, j], axis=-1)[None] @ grid.axes.T
