"""Pieces of spine as the shape model has them, on grids that lie in any way in the patient."""

from __future__ import annotations

import numpy as np

from helpers.modelled_spine import distance_at
from segmamba.models.resources import SHAPES, resource_root
from segmamba.spine.frames import Frame
from segmamba.spine.shape_model import load_shapes, region_of

TURN, TILT = np.deg2rad(25), np.deg2rad(-15)
ABOUT_Z = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
ABOUT_X = np.array([[1, 0, 0], [0, np.cos(TILT), -np.sin(TILT)], [0, np.sin(TILT), np.cos(TILT)]])
# Turns of the voxel axes, RAS, and voxel sizes; the second and the third are left-handed.
GRIDS = {
    "straight": (np.eye(3), (1.5, 1.5, 1.5)),
    "oblique": (ABOUT_Z @ ABOUT_X, (-1.2, 1.5, 2.5)),
    "permuted": (np.eye(3)[[1, 2, 0]], (1.6, -1.4, 2.0)),
    "thick": (np.eye(3), (1.2, 1.2, 5.0)),
}
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CENTRE = np.array([10.0, -20.0, 300.0])
T12, L1, L2 = 19, 20, 21


class Column:
    """T12, L1 and L2.

    Parameters
    ----------
    name : str
        Of one of `GRIDS`.

    Attributes
    ----------
    labels : ndarray of uint8
        Shape (z, y, x): levels.
    matrix, to_lps : ndarray
        4 x 4, from index (x, y, z, 1) to RAS and to LPS millimetres.
    places : ndarray
        Shape (z, y, x, 3): LPS positions of the voxels.
    """

    def __init__(self, name: str) -> None:
        turn, spacing = GRIDS[name]
        box = np.array([100.0, 110.0, 130.0])
        shape = np.ceil(np.abs(turn).T @ box / np.abs(spacing)).astype(int)[::-1]
        self.matrix = np.eye(4)
        self.matrix[:3, :3] = turn @ np.diag(spacing)
        self.matrix[:3, 3] = RAS_TO_LPS[:3, :3] @ CENTRE - self.matrix[:3, :3] @ ((shape[::-1] - 1) / 2)
        self.to_lps = RAS_TO_LPS @ self.matrix
        index = np.moveaxis(np.indices(shape), 0, -1)[..., ::-1]
        self.places = index @ self.to_lps[:3, :3].T + self.to_lps[:3, 3]
        self.labels = np.zeros(shape, np.uint8)
        model = load_shapes(resource_root() / SHAPES)
        for level, up in ((T12, 33.0), (L1, 0.0), (L2, -33.0)):
            frame = Frame((CENTRE + [0, 0, up])[::-1], np.eye(3), 1.0)
            local = frame.to_local(self.places[..., ::-1])
            distance = distance_at(model.means[level - 1], model.half_extents[region_of(level)], local)
            self.labels[(distance < 0) & (self.labels == 0)] = level

    def ball(self, offset: list[float], radius: float) -> np.ndarray:
        """Return the voxels around a point, given in LPS millimetres from the middle of L1."""
        return np.linalg.norm(self.places - CENTRE - offset, axis=-1) < radius

    def edited(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return labels whose L1 has a hole in its body and a loose piece to the left; the hole; the piece."""
        # The middle of body and arch lies behind the body.
        hole, piece = self.ball([0, -18, 0], 5.5), self.ball([42, -25, 0], 4.5)
        assert (self.labels[hole] == L1).all() and hole.any() and piece.any() and not self.labels[piece].any()
        return np.where(hole, 0, np.where(piece, L1, self.labels)).astype(np.uint8), hole, piece
