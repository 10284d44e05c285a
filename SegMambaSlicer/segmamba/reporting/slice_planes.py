"""Axial, coronal and sagittal planes of the patient through a volume on any grid (multiplanar reformatting)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from segmamba.io.volume import Geometry, Volume, corners
from segmamba.utils.arrays import LabelBox, label_boxes

MARGIN_MM = 35.0
# Pixels of a plane along its longer side, more than a page shows.
LONGEST_SIDE = 700
# About this many labelled voxels are enough to locate the structures.
MOST_POINTS = 1_000_000
# Bins of a profile are at least this wide, so that rounding does not decide on a position.
FINEST_BIN_MM = 1.0


@dataclass(frozen=True)
class View:
    """Orientation of a plane in the radiological convention: the patient's left is on the right of the image.

    Attributes
    ----------
    name : str
    across, right, down : int
        LPS axes (0, 1, 2): normal to the plane, along its columns to the right, along its rows downwards.
    down_sign : int
        -1 if the rows run against the axis ``down``.
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
class Section:
    """A structure in a plane: the part of the pixels around it.

    Attributes
    ----------
    mask : ndarray
        The fraction of a pixel that it fills, 0 to 1, shape (rows, columns).
    right, down : ndarray
        Coordinates of these columns and rows in the plane, mm, ascending.
    """

    mask: np.ndarray
    right: np.ndarray
    down: np.ndarray


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane sampled on pixels that are square up to rounding.

    Attributes
    ----------
    view : View
    position : float
        LPS coordinate along ``view.across``, mm.
    right, down : ndarray
        Coordinates of the columns and of the rows in the plane, mm, ascending.
    image : ndarray
        Intensities, shape (rows, columns).
    sections : dict
        For each label value in the plane, the structure's `Section`.
    references : dict
        The same for a reference segmentation, if there is one.
    """

    view: View
    position: float
    right: np.ndarray
    down: np.ndarray
    image: np.ndarray
    sections: dict[int, Section]
    references: dict[int, Section] = field(default_factory=dict)


def labelled_points(labels: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Return LPS positions (n, 3) in mm of labelled voxels and their values (n,), thinned out if there are many."""
    flat = np.flatnonzero(labels)
    flat = flat[:: max(1, flat.size // MOST_POINTS)]
    index = np.stack(np.unravel_index(flat, labels.shape)[::-1], axis=1)
    return _in_patient(index, geometry), labels.ravel()[flat]


def best_slice_position(view: View, points: np.ndarray, values: np.ndarray, geometry: Geometry) -> float:
    """Return the position in mm, an LPS coordinate along ``view.across``, of the plane that shows the structures best.

    A coronal or sagittal plane maximises the sum of the areas of all structures in it, each relative to its largest
    one, so that it passes through as many vertebrae of a curved column as possible. An axial plane passes through the
    middle structure where that is largest.
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


def resample_plane(
    view: View,
    position: float,
    box: tuple[np.ndarray, np.ndarray],
    volume: Volume,
    labels: np.ndarray,
    reference: np.ndarray | None = None,
) -> Plane:
    """Resample a volume and its labels on a plane.

    Parameters
    ----------
    view : View
    position : float
        LPS coordinate along ``view.across``, mm.
    box : tuple of ndarray
        Lowest and highest LPS corner (3,) of the part to show, mm.
    volume : Volume
    labels : ndarray of uint8
        Shape (z, y, x), on the volume's grid.
    reference : ndarray of uint8 or None
        Reference labels on the same grid.
    """
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
    plane = Plane(view, position, right, down, image, {})
    references = {} if reference is None else _sections(reference, index, plane, volume.geometry)
    return replace(plane, sections=_sections(labels, index, plane, volume.geometry), references=references)


def display_box(points: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Return the LPS box to show, lowest and highest corner (3,) in mm: points and a margin, within the volume.

    Without points it is the box of the whole volume.
    """
    ends = _in_patient(corners(np.full(3, -0.5), np.array(geometry.size) - 0.5)[:, :3], geometry)
    low, high = ends.min(axis=0), ends.max(axis=0)
    if len(points):
        low = np.maximum(low, points.min(axis=0) - MARGIN_MM)
        high = np.minimum(high, points.max(axis=0) + MARGIN_MM)
    return low, high


def _centres(first: float, last: float, pixel: float) -> np.ndarray:
    """Return the centres of pixels of about a size between two ends; at least two, because a contour needs them."""
    edges = np.linspace(first, last, max(2, round((last - first) / pixel)) + 1)
    return (edges[:-1] + edges[1:]) / 2


def _in_patient(index: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return the LPS positions (n, 3), mm, of indices (n, 3) along x, y and z."""
    return index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]


def _voxel_extent(geometry: Geometry) -> np.ndarray:
    """Return the extent of a voxel along each LPS axis, mm."""
    return np.abs(geometry.affine[:3, :3]).sum(axis=1)


def _sections(labels: np.ndarray, index: np.ndarray, plane: Plane, geometry: Geometry) -> dict[int, Section]:
    """Return the structures in a plane whose pixels lie at ``index`` (z, y, x; rows; columns) of the labels."""
    found = np.unique(ndimage.map_coordinates(labels, index, order=0))
    boxes = label_boxes(labels) if found.any() else {}
    sections = {}
    for value in found[found > 0].tolist():
        rows, columns = _pixels_around(boxes[value], plane, geometry)
        mask = _interpolated(labels, value, boxes[value], index[:, rows, columns])
        sections[value] = Section(mask, plane.right[columns], plane.down[rows])
    return sections


def _pixels_around(box: LabelBox, plane: Plane, geometry: Geometry) -> tuple[slice, slice]:
    """Return the rows and columns of a plane in which voxels of a box, and those beside it, can show."""
    low, high = (np.array(ends[::-1]) for ends in zip(*((part.start - 1, part.stop) for part in box), strict=True))
    ends = _in_patient(corners(low, high)[:, :3], geometry)
    slices = []
    for centres, places in (
        (plane.down, plane.view.down_sign * ends[:, plane.view.down]),
        (plane.right, ends[:, plane.view.right]),
    ):
        first, last = np.searchsorted(centres, (places.min(), places.max()))
        # One pixel more on each side, so that an outline closes.
        slices.append(slice(max(0, int(first) - 1), int(last) + 1))
    return slices[0], slices[1]


def _interpolated(labels: np.ndarray, value: int, box: LabelBox, index: np.ndarray) -> np.ndarray:
    # Linear interpolation gives outlines that follow the surface, not the voxels.
    inside = np.pad((labels[box] == value).astype(np.float32), 1)
    start = np.array([part.start - 1 for part in box])
    return ndimage.map_coordinates(inside, index - start[:, None, None], np.float32, order=1)
