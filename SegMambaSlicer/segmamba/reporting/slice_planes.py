"""Cutting planes of the patient through a volume, whatever its grid."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from segmamba.io.volume import Geometry, Volume
from segmamba.utils.arrays import label_boxes

MARGIN_MM = 35.0
# Pixels of a plane along its longer side: finer than a page shows.
LONGEST_SIDE = 700
# Where the structures are is known well enough from this many of their voxels.
VOXELS_LOOKED_AT = 1_000_000
# A thin plane must not be chosen for its rounding: profiles are not finer than this.
FINEST_BIN_MM = 1.0


@dataclass(frozen=True)
class View:
    """How a plane of the patient is shown, as radiologists do: the patient's left is on the picture's right.

    Attributes
    ----------
    name : str
    across, right, down : int
        LPS axes (0, 1, 2): the one at right angles to the plane, the one that runs to the right, and the one that
        runs along the rows downwards.
    down_sign : int
        -1 if the rows run against that axis.
    edges : str
        Letters at the left, right, top and bottom.
    """

    name: str
    across: int
    right: int
    down: int
    down_sign: int
    edges: str


AXIAL = View("Axial", across=2, right=0, down=1, down_sign=1, edges="RLAP")
CORONAL = View("Coronal", across=1, right=0, down=2, down_sign=-1, edges="RLSI")
SAGITTAL = View("Sagittal", across=0, right=1, down=2, down_sign=-1, edges="APSI")


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane sampled on square pixels (but for rounding).

    Attributes
    ----------
    view : View
    position : float
        LPS coordinate along ``view.across``, mm.
    right, down : ndarray
        Picture coordinates of the columns and of the rows, mm; both grow.
    image : ndarray
        Intensities, shape (rows, columns).
    masks : dict
        For each label value that the plane cuts: how much of a pixel it fills, 0 to 1, shape (rows, columns).
    references : dict
        The same of a reference, where there is one.
    """

    view: View
    position: float
    right: np.ndarray
    down: np.ndarray
    image: np.ndarray
    masks: dict[int, np.ndarray]
    references: dict[int, np.ndarray] = field(default_factory=dict)


def labelled_points(labels: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Return LPS positions (n, 3) of labelled voxels, evenly thinned out if there are many, and their values (n,)."""
    flat = np.flatnonzero(labels)
    flat = flat[:: max(1, flat.size // VOXELS_LOOKED_AT)]
    index = np.stack(np.unravel_index(flat, labels.shape)[::-1], axis=1)
    matrix = geometry.affine
    return index @ matrix[:3, :3].T + matrix[:3, 3], labels.ravel()[flat]


def most_telling_position(view: View, points: np.ndarray, values: np.ndarray, geometry: Geometry) -> float:
    """Return where a view's plane shows most: an LPS coordinate along ``view.across``.

    A coronal or sagittal plane counts what it cuts of each structure as a part of the most that can be cut of it, so
    that a curved column is met in as many vertebrae as possible. An axial plane cuts the structure in the middle
    where that is largest.
    """
    coordinates = points[:, view.across]
    width = max(FINEST_BIN_MM, float(_voxel_extent(geometry)[view.across]))
    bins = np.rint((coordinates - coordinates.min()) / width).astype(int)
    if view.across == AXIAL.across:
        middle = values[np.abs(coordinates - np.median(coordinates)).argmin()]
        profile = np.bincount(bins[values == middle]).astype(float)
    else:
        profile = np.zeros(bins.max() + 1)
        for value in np.unique(values):
            counts = np.bincount(bins[values == value], minlength=profile.size)
            profile += counts / counts.max()
    return float(coordinates.min() + profile.argmax() * width)


def cut(
    view: View,
    position: float,
    box: tuple[np.ndarray, np.ndarray],
    volume: Volume,
    labels: np.ndarray,
    reference: np.ndarray | None = None,
) -> Plane:
    """Sample a plane within a box (lowest and highest LPS corner, mm)."""
    low, high = box
    pixel = max(high[view.right] - low[view.right], high[view.down] - low[view.down]) / LONGEST_SIDE
    right = _centres(low[view.right], high[view.right], pixel)
    first, last = sorted((view.down_sign * low[view.down], view.down_sign * high[view.down]))
    down = _centres(first, last, pixel)
    points = np.empty((3, down.size, right.size))
    points[view.across] = position
    points[view.right] = right
    points[view.down] = view.down_sign * down[:, None]
    to_index = np.linalg.inv(volume.geometry.affine)
    index = np.einsum("ij,jrc->irc", to_index[:3, :3], points) + to_index[:3, 3, None, None]
    index = index[::-1]
    lowest = float(volume.array.min())
    image = ndimage.map_coordinates(volume.array, index, np.float32, order=1, cval=lowest)
    references = {} if reference is None else _masks(reference, index)
    return Plane(view, position, right, down, image, _masks(labels, index), references)


def shown_box(points: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Return the LPS box around points plus a margin, within the volume; the volume's box if there are no points."""
    corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners[:, :3] = corners[:, :3] * np.array(geometry.size) - 0.5
    corners = (corners @ geometry.affine.T)[:, :3]
    low, high = corners.min(axis=0), corners.max(axis=0)
    if len(points):
        low = np.maximum(low, points.min(axis=0) - MARGIN_MM)
        high = np.minimum(high, points.max(axis=0) + MARGIN_MM)
    return low, high


def _centres(first: float, last: float, pixel: float) -> np.ndarray:
    """Return the centres of pixels of about that size between two ends; at least two, as an outline needs."""
    edges = np.linspace(first, last, max(2, round((last - first) / pixel)) + 1)
    return (edges[:-1] + edges[1:]) / 2


def _voxel_extent(geometry: Geometry) -> np.ndarray:
    """Return how far a voxel reaches along each LPS axis, mm."""
    return np.abs(geometry.affine[:3, :3]).sum(axis=1)


def _masks(labels: np.ndarray, index: np.ndarray) -> dict[int, np.ndarray]:
    found = np.unique(ndimage.map_coordinates(labels, index, order=0))
    boxes = label_boxes(labels)
    return {int(value): _mask(labels, int(value), boxes[int(value)], index) for value in found if value}


def _mask(labels: np.ndarray, value: int, box: tuple[slice, slice, slice], index: np.ndarray) -> np.ndarray:
    # Interpolated rather than taken from the nearest voxel: the outline then follows the surface, not the voxels.
    inside = np.pad((labels[box] == value).astype(np.float32), 1)
    start = np.array([part.start - 1 for part in box])
    return ndimage.map_coordinates(inside, index - start[:, None, None], order=1)
