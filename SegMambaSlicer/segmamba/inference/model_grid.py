"""The model's grid: which part of the patient a network sees, and where its voxels lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from segmamba.errors import InputError, ModelError
from segmamba.io.volume import Geometry, Volume, corners
from segmamba.models.manifest import Model, Preprocessing
from segmamba.option_types import ISO

CROP_MARGIN_MM = 10.0
ROI_CONTEXT_MM = 20.0
DIRECTIONS = {
    "L": (1.0, 0.0, 0.0),
    "R": (-1.0, 0.0, 0.0),
    "P": (0.0, 1.0, 0.0),
    "A": (0.0, -1.0, 0.0),
    "S": (0.0, 0.0, 1.0),
    "I": (0.0, 0.0, -1.0),
}
# Rounding in a header must not add a voxel: parts of a voxel up to this much are left out.
ROUNDING = 0.01
# Networks see voxels of 1 mm and more: a finer isotropic grid than this shows nothing more and takes much memory.
FINEST_MM = 0.5
# Where a run is to be fast, the voxels of the first of two stages are larger by this factor: half as many.
FAST_SCALE = 1.25


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in the patient.

    Attributes
    ----------
    lps_min, lps_max : tuple of float
        Corners in LPS millimetres.
    """

    lps_min: tuple[float, float, float]
    lps_max: tuple[float, float, float]

    def padded(self, margin: float) -> Box:
        """Return the box grown by ``margin`` millimetres on all sides."""
        (x0, y0, z0), (x1, y1, z1) = self.lps_min, self.lps_max
        return Box((x0 - margin, y0 - margin, z0 - margin), (x1 + margin, y1 + margin, z1 + margin))


@dataclass(frozen=True)
class ModelGrid:
    """A model's grid laid over a volume.

    Attributes
    ----------
    geometry : Geometry
        The model's grid: axis-aligned, with the model's orientation and spacing.
    input : Geometry
        The volume's own grid.
    crop : tuple of slice
        The part of the volume, as slices along z, y, x, that the model's grid covers.
    roi : Box or None
        Nothing outside it is labelled.
    """

    geometry: Geometry
    input: Geometry
    crop: tuple[slice, slice, slice]
    roi: Box | None = None


def model_grid(
    volume: Volume, preprocessing: Preprocessing, roi: Box | None = None, context_mm: float = ROI_CONTEXT_MM
) -> ModelGrid:
    """Lay a model's grid over what is to be segmented of a volume.

    The grid is centred on the physical box that it covers, so it does not depend on how the volume's axes are
    stored. An oblique volume gets the grid of its bounding box.

    Parameters
    ----------
    volume : Volume
    preprocessing : Preprocessing
        Of the model. With ``crop_threshold``, the volume is first cropped to the voxels above it, plus 10 mm; with
        ``crop_nonzero``, to those that are not zero (of several channels in any).
    roi : Box, optional
        Limits the grid to this box and its surroundings, which the network sees and which are not labelled.
    context_mm : float
        Width of these surroundings.

    Raises
    ------
    InputError
        Nothing is above ``crop_threshold``, all is zero, or the ROI lies outside the volume.
    ModelError
        The model's orientation is not valid.
    """
    crop = tuple(slice(0, size) for size in volume.array.shape)
    if preprocessing.crop_threshold is not None:
        crop = _box_above(volume, preprocessing.crop_threshold)
    elif preprocessing.crop_nonzero:
        crop = _box_of_nonzero(volume)
    if roi is not None:
        crop = _intersection(crop, _index_box(roi.padded(context_mm), volume.geometry))
    low, high = _physical_box(crop, volume.geometry)
    if roi is not None:
        context = roi.padded(context_mm)
        low, high = np.maximum(low, context.lps_min), np.minimum(high, context.lps_max)
    geometry = _centred_grid(low, high, preprocessing.spacing, _direction(preprocessing.orientation))
    return ModelGrid(geometry, volume.geometry, (crop[0], crop[1], crop[2]), roi)


def cropped_geometry(geometry: Geometry, crop: tuple[slice, slice, slice]) -> Geometry:
    """Return the grid of ``array[crop]`` (slices along z, y, x) of an array on ``geometry``."""
    start = [part.start for part in reversed(crop)]
    x, y, z = (geometry.affine @ [*start, 1.0])[:3]
    size_x, size_y, size_z = (part.stop - part.start for part in reversed(crop))
    return Geometry((size_x, size_y, size_z), geometry.spacing, (x, y, z), geometry.direction)


def isotropic_spacing(geometry: Geometry, spacing: str | float) -> float:
    """Return the voxel size in mm that an output spacing means for a volume.

    ``"iso"`` is the smallest of the volume's three voxel sizes, but not less than 0.5 mm; a number is itself.
    """
    return max(FINEST_MM, min(geometry.spacing)) if spacing == ISO else float(spacing)


def isotropic_geometry(geometry: Geometry, spacing: str | float) -> Geometry:
    """Return the isotropic grid that covers a volume from the outer face of its first voxel on, with its axes."""
    step = isotropic_spacing(geometry, spacing)
    size = [max(1, math.ceil(n * s / step - ROUNDING)) for n, s in zip(geometry.size, geometry.spacing, strict=True)]
    shift = [(step / s - 1) / 2 for s in geometry.spacing]
    x, y, z = (float(value) for value in (geometry.affine @ [*shift, 1.0])[:3])
    return Geometry((size[0], size[1], size[2]), (step, step, step), (x, y, z), geometry.direction)


def _direction(orientation: str) -> np.ndarray:
    try:
        direction = np.array([DIRECTIONS[letter] for letter in orientation]).T
    except KeyError:
        direction = np.zeros((3, 3))
    if direction.shape != (3, 3) or not np.allclose(direction.T @ direction, np.eye(3)):
        raise ModelError(f"The model's orientation '{orientation}' is not one like LPS: correct its manifest entry.")
    return direction


def _box_above(volume: Volume, threshold: float) -> tuple[slice, slice, slice]:
    margins = [math.ceil(CROP_MARGIN_MM / spacing - ROUNDING) for spacing in reversed(volume.geometry.spacing)]
    box = _box(volume.array.shape, lambda plane: bool((volume.array[plane] > threshold).any()), margins)
    if box is None:
        raise InputError(
            f"The volume holds nothing above {threshold:g}, so there is no body in it: check that it is a CT in "
            "Hounsfield units."
        )
    return box


def _box_of_nonzero(volume: Volume) -> tuple[slice, slice, slice]:
    channels = volume.channels or (volume.array,)
    box = _box(volume.array.shape, lambda plane: any(bool(array[plane].any()) for array in channels), (0, 0, 0))
    if box is None:
        raise InputError("The volume holds nothing but zeros: check that it is the right volume.")
    return box


def _box(
    shape: Sequence[int], holds_any: Callable[[tuple[slice | int, ...]], bool], margins: Sequence[int]
) -> tuple[slice, slice, slice] | None:
    """Return the box around what is looked for, grown by so many voxels along z, y, x where the volume has them.

    Planes are looked at from the ends inwards, as a patient fills most of a volume. None where none holds any.
    """
    box: list[slice] = []
    for axis, (length, margin) in enumerate(zip(shape, margins, strict=True)):
        before = (slice(None),) * axis
        planes: list[tuple[slice | int, ...]] = [(*before, number) for number in range(length)]
        first = next((number for number, plane in enumerate(planes) if holds_any(plane)), None)
        if first is None:
            return None
        last = next(number for number in reversed(range(length)) if holds_any(planes[number]))
        box.append(slice(max(0, first - margin), min(length, last + 1 + margin)))
    return box[0], box[1], box[2]


def _index_box(box: Box, geometry: Geometry) -> tuple[slice, slice, slice]:
    """Return the voxels (slices along z, y, x, perhaps beyond the volume) that may touch a box."""
    indices = (corners(box.lps_min, box.lps_max) @ np.linalg.inv(geometry.affine).T)[:, :3]
    low, high = np.floor(indices.min(axis=0)), np.ceil(indices.max(axis=0))
    x, y, z = (slice(int(first), int(last) + 1) for first, last in zip(low, high, strict=True))
    return z, y, x


def _intersection(first: tuple[slice, ...], second: tuple[slice, ...]) -> tuple[slice, ...]:
    both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
    if any(part.start >= part.stop for part in both):
        raise InputError("The region of interest holds no part of the patient: move it over the anatomy.")
    return both


def _physical_box(crop: tuple[slice, ...], geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Return the LPS bounding box of voxels, measured at their outer faces."""
    low = [part.start - 0.5 for part in reversed(crop)]
    high = [part.stop - 0.5 for part in reversed(crop)]
    positions = (corners(low, high) @ geometry.affine.T)[:, :3]
    return positions.min(axis=0), positions.max(axis=0)


def _centred_grid(
    low: np.ndarray, high: np.ndarray, spacing: tuple[float, float, float], direction: np.ndarray
) -> Geometry:
    extent = np.abs(direction.T @ (high - low))
    size = [max(1, math.ceil(length / step - ROUNDING)) for length, step in zip(extent, spacing, strict=True)]
    first = (low + high) / 2 - direction @ ((np.array(size) - 1) / 2 * np.array(spacing))
    x, y, z = map(float, first)
    return Geometry((size[0], size[1], size[2]), spacing, (x, y, z), tuple(map(float, direction.ravel())))


def with_coarser_grid(model: Model) -> Model:
    """Return a model with two stages whose first one has the grid of a fast run; another stays as it is."""
    if model.fine is None:
        return model
    x, y, z = (FAST_SCALE * step for step in model.preprocessing.spacing)
    return replace(model, preprocessing=replace(model.preprocessing, spacing=(x, y, z)))
