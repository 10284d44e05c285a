"""Vertebrae whose measures are known: a wedge with a shell for a body, and an arch of boxes behind the canal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from helpers.phantoms import positions
from segmamba.inference.model_grid import cropped_geometry
from segmamba.io.volume import Geometry, Volume, corners

AIR_HU, SOFT_HU, TRABECULAR_HU, SHELL_HU, ARCH_HU = -1000, 40, 150, 700, 400
SHELL_MM = 1.5
PATIENT = np.array([[0, 0, 1.0], [0, 1.0, 0], [1.0, 0, 0]])


def turned(sagittal: float = 0, coronal: float = 0, axial: float = 0) -> np.ndarray:
    """Return the axes (up, backwards, left; LPS, one a row) of a vertebra that leans.

    Backwards by ``sagittal`` degrees, to the left by ``coronal``, and is turned to the left by ``axial``.
    """
    a, b, c = np.radians([sagittal, coronal, axial])
    back = np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])
    left = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    round_ = np.array([[1, 0, 0], [0, np.cos(c), np.sin(c)], [0, -np.sin(c), np.cos(c)]])
    axes: np.ndarray = round_ @ back @ left @ PATIENT
    return axes


@dataclass(frozen=True, eq=False)
class Vertebra:
    """A vertebra: the body's centre (LPS mm), its axes, and its measures in mm."""

    centre: tuple[float, float, float]
    axes: np.ndarray
    anterior: float = 26.0
    posterior: float = 26.0
    depth: float = 32.0
    width: float = 42.0

    def height(self, part: float) -> float:
        """Return the height at a part of the depth, from the front."""
        return self.anterior + part * (self.posterior - self.anterior)

    def local(self, points: np.ndarray) -> np.ndarray:
        """Return how far up, backwards and to the left of the centre points (..., 3) are: shape (3, ...)."""
        return np.moveaxis((points - self.centre) @ self.axes.T, -1, 0)

    def body(self, local: np.ndarray, shell: float = 0.0) -> np.ndarray:
        """Tell of points, as `local` gives them, whether they lie in the body, at least ``shell`` below its surface."""
        up, back, left = local
        half = self.height(back / self.depth + 0.5) / 2
        # Squared twice: a power of four takes ten times as long.
        deep, wide = (2 * back / (self.depth - 2 * shell)) ** 2, (2 * left / (self.width - 2 * shell)) ** 2
        ellipse = deep**2 + wide**2 <= 1
        return (np.abs(up) <= half - shell) & ellipse

    def arch(self, local: np.ndarray) -> np.ndarray:
        """Tell of points whether they lie in pedicles, laminae, transverse processes or the spinous process."""
        up, back, left = local
        behind, aside = back - self.depth / 2, np.abs(left)
        pedicles = (behind > -4) & (behind < 12) & (np.abs(aside - 14) < 4) & (up > 0) & (up < 9)
        laminae = (behind > 12) & (behind < 18) & (aside < 18) & (up > -10) & (up < 8)
        transverse = (behind > 6) & (behind < 12) & (aside > 10) & (aside < 32) & (np.abs(up - 4) < 4)
        spinous = (behind > 16) & (behind < 42) & (aside < 3.5) & (np.abs(up + 0.4 * (behind - 16)) < 7)
        return pedicles | laminae | transverse | spinous

    def box(self, geometry: Geometry) -> tuple[slice, slice, slice]:
        """Return the part of a grid (slices along z, y, x) that the vertebra lies in."""
        half = self.height(0.5), self.depth, self.width
        low, high = (-half[0], -half[1] / 2 - 2, -35), (half[0], half[1] / 2 + 44, 35)
        points = corners(low, high)[:, :3] @ self.axes + self.centre
        index = (points - geometry.origin) @ np.linalg.inv(geometry.affine[:3, :3]).T
        first = np.clip(np.floor(index.min(axis=0)), 0, geometry.size).astype(int)
        last = np.clip(np.ceil(index.max(axis=0)) + 1, 0, geometry.size).astype(int)
        x, y, z = (slice(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True))
        return z, y, x


def painted(vertebrae: Mapping[int, Vertebra], geometry: Geometry) -> tuple[np.ndarray, Volume]:
    """Return the labels of vertebrae at the voxels' centres, and their CT: soft tissue around, air at one side."""
    labels = np.zeros(geometry.size[::-1], np.uint8)
    ct = np.full(labels.shape, SOFT_HU, np.int16)
    # Beside the patient: so much that the values alone say that it is a CT.
    ct[:, :, : ct.shape[2] // 8] = AIR_HU
    for value, vertebra in vertebrae.items():
        box = vertebra.box(geometry)
        local = vertebra.local(positions(cropped_geometry(geometry, box)))
        arch, body = vertebra.arch(local), vertebra.body(local)
        labels[box][arch | body] = value
        ct[box][arch] = ARCH_HU
        ct[box][body] = SHELL_HU
        ct[box][vertebra.body(local, SHELL_MM)] = TRABECULAR_HU
    return labels, Volume(ct, geometry, "CT")
