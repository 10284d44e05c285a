"""A statistical shape model of vertebrae by their signed distances, and its fit to a mask.

The model is linear (mean and principal modes of signed distances: Leventon et al. 2000, Tsai et al. 2003), with one
mean a level and modes that the levels of a region share, because the label maps that it is learned from are few. Pose
and modes are fitted together by regularised, robust least squares. The construction is our own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy import ndimage
from scipy.spatial.transform import Rotation

from segmamba.errors import ModelError
from segmamba.spine.frames import Frame
from segmamba.spine.levels import L6, T12, T13
from segmamba.utils.arrays import bounding_box

# Levels that share modes.
REGIONS = ((1, 1), (2, 2), (3, 7), (8, 13), (14, 19), (20, L6))
GRID = (28, 40, 40)
# Signed distances (local mm, negative inside) are clipped here.
FURTHEST = 10.0
ITERATIONS = 6
# Prior standard deviations of a fit's pose: translation in local mm, rotation in radians, logarithm of the scale.
TRANSLATION_SD, ROTATION_SD, LOG_SCALE_SD = 6.0, 0.2, 0.1
# Standard deviation of the distances that the model does not explain, in local mm; and how many neighbouring points
# count as one independent observation.
RESIDUAL_SD, CORRELATED_POINTS = 1.5, 30.0
# Points count whose distance, in the mask or in the model, is below this part of the furthest; and the weight of a mode
# has at most this many standard deviations.
NEAR_SURFACE, LARGEST_WEIGHT = 0.8, 3.0
# A fit covers the mask and this margin.
AROUND_MM = 12.0


@dataclass(frozen=True)
class ShapeModel:
    """Signed distances of vertebrae on local grids.

    Attributes
    ----------
    means : ndarray of float32
        Shape ``(25, *GRID)``: of each level; C1 first.
    modes : tuple of ndarray
        One a region, shape ``(k, *GRID)``: change of the distance for one standard deviation.
    half_extents : ndarray
        Shape (regions, 3): half the extent of a region's grid in local mm.
    """

    means: np.ndarray
    modes: tuple[np.ndarray, ...]
    half_extents: np.ndarray


@dataclass(frozen=True)
class Fit:
    """The shape of the model that fits a mask best.

    Attributes
    ----------
    box : tuple of slice
        The part of the mask's grid that it covers.
    distance : ndarray
        Signed distance in mm, of the shape of ``box``, negative inside.
    dice : float
        Overlap of its inside with the mask.
    frame : Frame
        Its pose.
    """

    box: tuple[slice, ...]
    distance: np.ndarray
    dice: float
    frame: Frame


# Fits a whole column, as `segmamba.spine.fit_together.fit_together` does on a device.
FitTogether = Callable[..., dict[int, Fit]]


def load_shapes(path: str | os.PathLike[str]) -> ShapeModel:
    """Read a model written by `segmamba.training.vertebrae.shape_model`.

    Raises
    ------
    ModelError
        The file is missing or not a shape model.
    """
    try:
        arrays = load_file(path)
        means = arrays["means"].astype(np.float32) * (FURTHEST / 127)
        modes = tuple(
            arrays[f"modes{index}"].astype(np.float32) * arrays[f"steps{index}"][:, None, None, None]
            for index in range(len(REGIONS))
        )
        half_extents = arrays["halves"].astype(float)
    except (OSError, KeyError, ValueError, IndexError, SafetensorError) as error:
        raise ModelError(f"{path} is not a shape model ({error}): install the software again.") from error
    if means.shape != (L6, *GRID) or half_extents.shape != (len(REGIONS), 3):
        raise ModelError(f"{path} is a shape model of another version: install the software again.")
    return ShapeModel(means, modes, half_extents)


def fit(mask: np.ndarray, level: int, model: ShapeModel, frame: Frame, spacing_mm: float) -> Fit:
    """Fit pose and shape of a level's model to a mask.

    Parameters
    ----------
    mask : ndarray of bool
        Shape (z, y, x).
    level : int
        1 to 25; T13, which the model does not have, is taken for T12.
    model : ShapeModel
        With or without modes.
    frame : Frame
        Where the vertebra is, roughly (`segmamba.spine.frames.column_frames`).
    spacing_mm : float
        Of the mask's isotropic grid.
    """
    box = _box(mask, spacing_mm, AROUND_MM)
    corner = np.array([part.start for part in box]) * spacing_mm
    signed = signed_distance(mask[box], spacing_mm)
    level = T12 if level == T13 else level
    region = region_of(level)
    mean, modes = model.means[level - 1], model.modes[region]
    half = model.half_extents[region]
    points = grid_points(half)
    weights = np.zeros(len(modes))
    for _ in range(ITERATIONS):
        target = _on_model_grid(signed, half, frame, corner, spacing_mm)
        shape = mean + np.tensordot(weights, modes, axes=1)
        pose, change = _gauss_newton_step(np.clip(target, -FURTHEST, FURTHEST), shape, modes, weights, points)
        frame = apply_pose(frame, pose)
        weights = np.clip(weights + change, -LARGEST_WEIGHT, LARGEST_WEIGHT)
    shape = mean + np.tensordot(weights, modes, axes=1)
    distance = _in_box(shape, half, frame, corner, signed.shape, spacing_mm)
    inside = distance < 0
    together = int(inside.sum()) + int(mask[box].sum())
    dice = 2 * int((inside & mask[box]).sum()) / max(1, together)
    return Fit(box, distance, float(dice), frame)


def fit_one(
    together: FitTogether | None, mask: np.ndarray, level: int, model: ShapeModel, frame: Frame, spacing_mm: float
) -> Fit:
    """Return what `fit` does, by what fits a whole column where there is that (it runs on a GPU)."""
    if together is None:
        return fit(mask, level, model, frame, spacing_mm)
    box = bounding_box(mask)
    assert box is not None
    return together({level: (box, mask[box])}, mask.shape, model, {level: frame}, spacing_mm)[level]


def part_near(mask: np.ndarray, found: Fit, most_mm: float) -> np.ndarray:
    """Return the voxels of a mask (z, y, x) that lie in a fitted shape, or at most so far outside of it."""
    near = np.zeros_like(mask)
    near[found.box] = mask[found.box] & (found.distance <= most_mm)
    return near


def region_of(level: int) -> int:
    """Return the number of the region that a level belongs to."""
    return next(index for index, (first, last) in enumerate(REGIONS) if first <= level <= last)


def grid_points(half: np.ndarray) -> np.ndarray:
    """Return the local points, shape ``(*GRID, 3)``, of a region's grid."""
    axes = [np.linspace(-extent, extent, count) for extent, count in zip(half, GRID, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def signed_distance(mask: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return the distance of each voxel's centre to the surface in mm, negative inside."""
    signed = _distance_to(mask, spacing_mm) - spacing_mm / 2
    box = _box(mask, spacing_mm, 2 * spacing_mm)  # the nearest voxel to any inside lies within this box
    own = mask[box]
    signed[box][own] = spacing_mm / 2 - _distance_to(~own, spacing_mm)[own]
    return signed


def _distance_to(mask: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return the distance of each voxel's centre outside a mask to the nearest one inside, in mm, float32.

    Equal to `scipy.ndimage.distance_transform_edt`, in less than half of its time (Maurer et al. 2003).
    """
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    squared = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=True, useImageSpacing=False)
    return np.sqrt(np.maximum(sitk.GetArrayViewFromImage(squared), 0)) * np.float32(spacing_mm)


def interpolate(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return values at points (..., 3) given in voxels, linearly; outside the grid, those at its border."""
    return ndimage.map_coordinates(values, np.moveaxis(points, -1, 0), order=1, mode="nearest")


def apply_pose(frame: Frame, pose: Sequence[float] | np.ndarray) -> Frame:
    """Return a frame after a small change of its pose.

    Parameters
    ----------
    frame : Frame
    pose : sequence of float
        Translation (3, in local mm), rotation (3, a rotation vector in radians about the frame's axes) and logarithm of
        the scale.
    """
    rotation = Rotation.from_rotvec(np.asarray(pose[3:6])).as_matrix()
    return Frame(frame.to_world(np.asarray(pose[:3])), rotation.T @ frame.axes, frame.scale * float(np.exp(pose[6])))


def without_modes(model: ShapeModel) -> ShapeModel:
    """Return a model with only the mean shape of each level: its fit finds the pose."""
    return replace(model, modes=tuple(modes[:0] for modes in model.modes))


def _gauss_newton_step(
    target: np.ndarray, shape: np.ndarray, modes: np.ndarray, weights: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the change of the pose (7,) and of the modes' weights that brings the model closest to the target."""
    spacing = [points[1, 0, 0, 0] - points[0, 0, 0, 0], points[0, 1, 0, 1] - points[0, 0, 0, 1]]
    spacing.append(points[0, 0, 1, 2] - points[0, 0, 0, 2])
    near = (np.abs(shape) < FURTHEST * NEAR_SURFACE) | (np.abs(target) < FURTHEST * NEAR_SURFACE)
    slopes = np.stack([slope[near] for slope in np.gradient(target, *spacing)], axis=-1)
    positions = points[near]
    log_scale = (slopes * positions).sum(axis=-1, keepdims=True) - target[near][:, None]
    difference = (shape - target)[near]
    robust = 1 / (1 + (difference / (2 * RESIDUAL_SD)) ** 2)
    design = np.concatenate([slopes, np.cross(positions, slopes), log_scale, -modes[:, near].T], axis=1)
    weighted = design * (robust / (CORRELATED_POINTS * RESIDUAL_SD**2))[:, None]
    prior = np.r_[np.full(3, TRANSLATION_SD), np.full(3, ROTATION_SD), LOG_SCALE_SD, np.ones(len(modes))] ** -2.0
    goal = weighted.T @ difference - prior * np.r_[np.zeros(7), weights]
    solution = np.linalg.solve(weighted.T @ design + np.diag(prior), goal)
    return solution[:7], solution[7:]


def _on_model_grid(
    signed: np.ndarray, half: np.ndarray, frame: Frame, corner: np.ndarray, spacing_mm: float
) -> np.ndarray:
    """Return a mask's signed distances at the points of the model's grid, in local mm: shape GRID.

    ``corner`` (z, y, x) in mm is where the first voxel of ``signed`` lies.
    """
    steps = 2 * half / (np.array(GRID) - 1)
    matrix = frame.axes.T * steps * (frame.scale / spacing_mm)
    first = (frame.to_world(-half) - corner) / spacing_mm
    values: np.ndarray = ndimage.affine_transform(signed, matrix, first, GRID, order=1, mode="nearest")
    return values / frame.scale


def _in_box(
    shape: np.ndarray, half: np.ndarray, frame: Frame, corner: np.ndarray, size: tuple[int, ...], spacing_mm: float
) -> np.ndarray:
    """Return the model's signed distance in mm at the voxels of a box.

    Beyond the model's grid it is that at the border of the grid plus the distance to it.
    """
    matrix = frame.axes * (spacing_mm / frame.scale)
    first = frame.to_local(corner)
    to_grid = (np.array(GRID) - 1) / (2 * half)
    distance = ndimage.affine_transform(
        shape, matrix * to_grid[:, None], (first + half) * to_grid, size, np.float64, order=1, mode="nearest"
    )
    index = np.ogrid[tuple(slice(0, n) for n in size)]
    outside = np.zeros(size)
    for axis in range(3):
        z, y, x = (part * along for part, along in zip(index, matrix[axis], strict=True))
        outside += np.maximum(np.abs(z + y + (x + first[axis])) - half[axis], 0.0) ** 2
    distance += np.sqrt(outside)
    return distance * frame.scale


def box_around(box: Sequence[slice], shape: Sequence[int], spacing_mm: float, around_mm: float) -> tuple[slice, ...]:
    """Return a box (slices along z, y, x) with a margin, within a grid of this shape."""
    around = int(np.ceil(around_mm / spacing_mm))
    return tuple(
        slice(max(0, part.start - around), min(size, part.stop + around)) for part, size in zip(box, shape, strict=True)
    )


def _box(mask: np.ndarray, spacing_mm: float, around_mm: float) -> tuple[slice, ...]:
    box = bounding_box(mask)
    assert box is not None
    return box_around(box, mask.shape, spacing_mm, around_mm)
