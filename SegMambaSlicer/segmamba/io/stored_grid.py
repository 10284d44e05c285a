"""Volumes whose voxels do not lie on a rectangular grid: resampled to one, and labels back on their own voxels.

Such are slices of a tilted gantry, sheared transforms, and slices at uneven distances.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from segmamba.errors import InputError
from segmamba.io.volume import Geometry, Volume, are_orthonormal, check_geometry, nearest_orthonormal

if TYPE_CHECKING:
    pass

# A gantry is tilted by 30 degrees at most. Beyond this cosine between two axes, the header is wrong.
LARGEST_SHEAR = 0.71
# Slices this far (mm) from an even spacing lie evenly: headers round positions.
EVEN_MM = 0.02
# Of uneven distances, the distance of the resampled slices: few are smaller.
QUANTILE = 0.25
TOO_SHEARED = "{} has axes that are far from right angles, as no scanner's are: correct the directions in its header."
RESAMPLED = "it was resampled to a rectangular grid"


@dataclass(frozen=True, eq=False)
class StoredGrid:
    """Where the voxels of parallel slices lie, whatever their angles and distances.

    Attributes
    ----------
    size : tuple of int
        Number of voxels along x, y, z.
    axes : ndarray, shape (3, 2)
        LPS millimetres from a voxel to the next one along x and along y.
    positions : ndarray, shape (z, 3)
        LPS millimetres of the first voxel of each slice, in their order along the normal.
    """

    size: tuple[int, int, int]
    axes: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, geometry: Geometry) -> StoredGrid:
        """Return the grid of a geometry that may be sheared."""
        affine = geometry.affine
        positions = affine[:3, 3] + np.arange(geometry.size[2])[:, None] * affine[:3, 2]
        return cls(geometry.size, affine[:3, :2], positions)

    @property
    def geometry(self) -> Geometry | None:
        """Return the grid as a geometry, which may be sheared; None where its slices lie unevenly."""
        steps = np.diff(self.positions, axis=0)
        even = self.positions[0] + np.arange(len(self.positions))[:, None] * steps.mean(axis=0)
        if np.abs(even - self.positions).max() > EVEN_MM:
            return None
        affine = np.eye(4)
        affine[:3, :2], affine[:3, 2], affine[:3, 3] = self.axes, steps.mean(axis=0), self.positions[0]
        return Geometry.from_affine(self.size, affine)

    @property
    def directions(self) -> np.ndarray:
        """The rectangular grid's axes, LPS, one a column: along x, close to y, and along the slices' normal."""
        along_x = self.axes[:, 0] / np.linalg.norm(self.axes[:, 0])
        along_y = self.axes[:, 1] - (self.axes[:, 1] @ along_x) * along_x
        along_y /= np.linalg.norm(along_y)
        normal = np.cross(along_x, along_y)
        if (self.positions[-1] - self.positions[0]) @ normal < 0:
            normal = -normal
        return np.stack([along_x, along_y, normal], axis=1)


def straightened(volume: Volume, name: str) -> Volume:
    """Return a volume on a rectangular grid: itself, or resampled where its axes are at other than right angles.

    Raises
    ------
    InputError
        The axes are too far from right angles for any scanner, or the grid is not sound in another way.
    """
    direction = np.reshape(volume.geometry.direction, (3, 3))
    check_geometry(volume.geometry, name, sheared=True)
    if are_orthonormal(direction):
        return volume
    cosines = np.abs(direction.T @ direction - np.eye(3))
    if not cosines.max() <= LARGEST_SHEAR:
        raise InputError(TOO_SHEARED.format(name))
    angle = np.degrees(np.arcsin(cosines.max()))
    note = (
        f"The volume has axes that are {angle:.1f} degrees off a right angle (a tilted gantry or a sheared transform): "
        f"{RESAMPLED}, and a label map of it lies on its own voxels."
    )
    return resampled(volume, StoredGrid.of(volume.geometry), note)


def resampled(volume: Volume, stored: StoredGrid, note: str) -> Volume:
    """Return a volume on a rectangular grid around all of its voxels, linearly interpolated; air is around them.

    Parameters
    ----------
    volume : Volume
        Its geometry does not matter.
    stored : StoredGrid
        The grid of its voxels.
    note : str
        What to tell the user.
    """
    geometry = _rectangular(stored)
    array, (columns, rows, slices) = volume.array, geometry.size
    frame = _Frame(stored, geometry)
    result = np.empty((slices, rows, columns), array.dtype)
    fill = float(array.min())
    matrix, shear = np.linalg.inv(frame.matrix), frame.offsets
    places = np.interp(np.arange(slices) * geometry.spacing[2], frame.heights, np.arange(len(array)))
    for number, place in enumerate(places):
        below = min(int(place), len(array) - 2)
        part = place - below
        plane = array[below] * (1 - part) + array[below + 1] * part
        offset = shear[below] * (1 - part) + shear[below + 1] * part
        plane = ndimage.affine_transform(
            plane.astype(np.float64 if array.dtype == np.float64 else np.float32, copy=False),
            matrix,
            matrix @ -offset,
            (rows, columns),
            order=1,
            cval=fill,
        )
        result[number] = np.rint(plane) if array.dtype.kind in "iu" else plane
    return replace(volume, array=result, geometry=geometry, notes=(*volume.notes, note), stored=stored)


def labels_as_stored(labels: np.ndarray, geometry: Geometry, stored: StoredGrid) -> np.ndarray:
    """Return labels (z, y, x) on the voxels of the grid that their volume was resampled from: each as the nearest."""
    frame = _Frame(stored, geometry)
    columns, rows, slices = stored.size
    result = np.zeros((slices, rows, columns), labels.dtype)
    numbers = np.rint(frame.heights / geometry.spacing[2]).astype(int)
    for plane, number, offset in zip(result, numbers, frame.offsets, strict=True):
        if 0 <= number < len(labels):
            plane[...] = ndimage.affine_transform(labels[number], frame.matrix, offset, plane.shape, order=0)
    return result


class _Frame:
    """A stored grid as seen from the rectangular one.

    Attributes
    ----------
    heights : ndarray, shape (z,)
        Of the slices above the rectangular grid's first one, mm.
    matrix : ndarray, shape (2, 2)
        From an index (y, x) within a slice to one of the rectangular grid, but for the slice's offset.
    offsets : ndarray, shape (z, 2)
        Rectangular index (y, x) of the first voxel of each slice.
    """

    def __init__(self, stored: StoredGrid, geometry: Geometry) -> None:
        directions = np.reshape(geometry.direction, (3, 3))
        local = (stored.positions - geometry.origin) @ directions
        self.heights = local[:, 2]
        spacing = np.array(geometry.spacing[1::-1])
        self.matrix = (directions.T @ stored.axes)[1::-1, ::-1] / spacing[:, None]
        self.offsets = local[:, 1::-1] / spacing


def _rectangular(stored: StoredGrid) -> Geometry:
    """Return the smallest rectangular grid around all voxels, with their distances."""
    directions = stored.directions
    across = np.array([[x, y] for x in (0, stored.size[0] - 1) for y in (0, stored.size[1] - 1)]) @ stored.axes.T
    corners = (stored.positions[:, None] + across[None]).reshape(-1, 3) @ directions
    low, high = corners.min(axis=0), corners.max(axis=0)
    gaps = np.diff(stored.positions @ directions[:, 2])
    spacing = np.array([*np.linalg.norm(stored.axes, axis=0), np.quantile(gaps, QUANTILE)])
    columns, rows, slices = (np.ceil((high - low) / spacing - 1e-3).astype(int) + 1).tolist()
    x, y, z = (directions @ low).tolist()
    along_x, along_y, along_z = spacing.tolist()
    direction = tuple(nearest_orthonormal(directions).ravel().tolist())
    return Geometry((columns, rows, slices), (along_x, along_y, along_z), (x, y, z), direction)
