"""The fits of `segmamba.spine.shape_model` for all vertebrae of a column at once, in PyTorch: for a GPU.

One step moves every vertebra, so that a column takes as many kernels as one vertebra does. On a processor
`segmamba.spine.shape_model.fit` is as fast, and needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from segmamba.spine.frames import Frame
from segmamba.spine.levels import T12, T13
from segmamba.spine.shape_model import (
    AROUND_MM,
    CORRELATED_POINTS,
    FURTHEST,
    GRID,
    ITERATIONS,
    LARGEST_WEIGHT,
    LOG_SCALE_SD,
    NEAR_SURFACE,
    RESIDUAL_SD,
    ROTATION_SD,
    TRANSLATION_SD,
    Fit,
    FitTogether,
    ShapeModel,
    apply_pose,
    box_around,
    grid_points,
    region_of,
)

Box = tuple[slice, ...]
# A vertebra may become so much larger than its column says while it is fitted: distances are known as far.
GROWTH = 1.25
# Squared distances beyond those that count. It and its sums are exact, or far enough, in half precision.
FAR = 30000.0


def fits_on(device: torch.device) -> FitTogether | None:
    """Return what fits a column at once on a GPU; None for a processor, where vertebrae are fitted one by one."""
    return partial(fit_together, device=device) if device.type == "cuda" else None


def fit_together(
    masks: Mapping[int, tuple[Box, np.ndarray | torch.Tensor]],
    shape: Sequence[int],
    model: ShapeModel,
    frames: Mapping[int, Frame],
    spacing_mm: float,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
) -> dict[int, Fit]:
    """Fit pose and shape of each level's model to its mask, as `segmamba.spine.shape_model.fit` does one by one.

    Parameters
    ----------
    masks : mapping of int to tuple
        Of each level the box around its mask (slices along z, y, x) and the mask within it.
    shape : sequence of int
        Voxels of the whole grid along z, y, x.
    model, frames, spacing_mm
        As there; frames by level.
    device : device
        What to compute on.
    check : callable
        Called between steps; an exception that it raises ends the fits.

    Returns
    -------
    dict
        The fits by level, in the order of ``masks``.
    """
    if not masks:
        return {}
    levels = list(masks)
    column = _Column.of(masks, shape, spacing_mm, device)
    reach = FURTHEST * GROWTH * max(frames[level].scale for level in levels)
    signed = signed_distances(column, int(np.ceil(reach / spacing_mm)) + 1)
    models = _Models.of(levels, model, device)
    poses = [frames[level] for level in levels]
    weights = np.zeros((len(levels), models.modes.shape[1]))
    for _ in range(ITERATIONS):
        check()
        target = _on_model_grids(signed, column, models, poses)
        change = _step(target, models, weights)
        poses = [apply_pose(pose, row[:7]) for pose, row in zip(poses, change, strict=True)]
        weights = np.clip(weights + change[:, 7:], -LARGEST_WEIGHT, LARGEST_WEIGHT)
    shapes = models.shapes(weights)
    return {
        level: _fit(number, shapes[number], models.half[number], column, poses[number])
        for number, level in enumerate(levels)
    }


@dataclass(frozen=True, eq=False)
class _Column:
    """The masks of a column, each with what is around it, filled up to one size."""

    boxes: list[Box]
    masks: torch.Tensor
    sizes: np.ndarray
    corners: np.ndarray
    spacing_mm: float

    @classmethod
    def of(
        cls,
        masks: Mapping[int, tuple[Box, np.ndarray | torch.Tensor]],
        shape: Sequence[int],
        spacing_mm: float,
        device: torch.device,
    ) -> _Column:
        boxes = [box_around(box, shape, spacing_mm, AROUND_MM) for box, _ in masks.values()]
        sizes = np.array([[part.stop - part.start for part in box] for box in boxes])
        filled = torch.zeros((len(boxes), *sizes.max(axis=0).tolist()), dtype=torch.bool, device=device)
        for own, box, (inner, mask) in zip(filled, boxes, masks.values(), strict=True):
            place = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, box, strict=True))
            own[place] = torch.as_tensor(mask, device=device)
        corners = np.array([[part.start for part in box] for box in boxes]) * spacing_mm
        return cls(boxes, filled, sizes, corners, spacing_mm)

    def own(self, number: int) -> torch.Tensor:
        """Return the mask of a vertebra in its own box."""
        z, y, x = self.sizes[number]
        return self.masks[number, :z, :y, :x]


@dataclass(frozen=True, eq=False)
class _Models:
    """Means (n, *GRID), modes (n, k, points), points (n, points, 3) and half extents (n, 3) of some levels."""

    means: torch.Tensor
    modes: torch.Tensor
    points: torch.Tensor
    half: np.ndarray

    @classmethod
    def of(cls, levels: Sequence[int], model: ShapeModel, device: torch.device) -> _Models:
        known = [T12 if level == T13 else level for level in levels]
        regions = [region_of(level) for level in known]
        means = torch.from_numpy(np.stack([model.means[level - 1] for level in known])).to(device, torch.float32)
        # Regions have different numbers of modes: one that is zero everywhere gets no weight.
        most = max(len(model.modes[region]) for region in regions)
        modes = torch.zeros(len(levels), most, int(np.prod(GRID)), device=device)
        for own, region in zip(modes, regions, strict=True):
            given = torch.from_numpy(np.ascontiguousarray(model.modes[region])).flatten(1)
            own[: len(given)] = given.to(device, torch.float32)
        half = np.stack([model.half_extents[region] for region in regions])
        points = torch.from_numpy(np.stack([grid_points(each).reshape(-1, 3) for each in half]))
        return cls(means, modes, points.to(device, torch.float32), half)

    def shapes(self, weights: np.ndarray) -> torch.Tensor:
        """Return the distances (n, *GRID) of the models with these weights (n, k) of their modes."""
        given = torch.from_numpy(weights).to(self.modes)
        return self.means + torch.bmm(given[:, None], self.modes).view_as(self.means)


def signed_distances(column: _Column, reach: int) -> torch.Tensor:
    """Return the distance of each voxel's centre to the surface of its mask in mm, negative inside.

    Shape (n, z, y, x), float32; exact up to ``reach`` voxels, beyond that too large. Squared distances are added axis
    by axis (Saito and Toriwaki 1994).
    """
    masks = column.masks
    outside = ~masks
    for number, size in enumerate(column.sizes):
        for axis, length in enumerate(size):
            # What is beyond the volume is neither inside nor outside.
            outside[number].narrow(axis, int(length), masks.shape[axis + 1] - int(length)).fill_(False)
    both = torch.stack([masks, outside])
    squared = torch.where(both, 0.0, FAR).to(torch.float16 if both.is_cuda else torch.float32)
    for axis in (2, 3, 4):
        nearest = squared.clone()
        length = squared.shape[axis]
        for step in range(1, min(reach, length - 1) + 1):
            far = length - step
            for first, other in ((step, 0), (0, step)):
                part = nearest.narrow(axis, first, far)
                torch.minimum(part, squared.narrow(axis, other, far) + step**2, out=part)
        squared = nearest
    distance = squared.float().sqrt_() * column.spacing_mm
    return torch.where(masks, column.spacing_mm / 2 - distance[1], distance[0] - column.spacing_mm / 2)


def _interpolated(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return values (n, z, y, x) at places (n, d, h, w, 3) in voxels along z, y, x, linearly."""
    last = torch.tensor(values.shape[1:], device=values.device, dtype=torch.float32) - 1
    scaled = (places * (2 / last) - 1).flip(-1)
    return functional.grid_sample(values[:, None], scaled, align_corners=True, padding_mode="border")[:, 0]


def _on_model_grids(signed: torch.Tensor, column: _Column, models: _Models, poses: Sequence[Frame]) -> torch.Tensor:
    """Return the masks' signed distances at the points of the models' grids, in local mm: shape (n, *GRID)."""
    spacing = column.spacing_mm
    matrices = np.stack([pose.axes.T * (pose.scale / spacing) for pose in poses])
    first = np.stack([pose.centre for pose in poses]) - column.corners
    sizes = torch.from_numpy(column.sizes - 1).to(signed)[:, None]
    centres = torch.from_numpy(first / spacing).to(signed)[:, None]
    places = torch.bmm(models.points, torch.from_numpy(matrices).to(signed).transpose(1, 2)) + centres
    places = torch.minimum(places.clamp_(min=0), sizes)
    values = _interpolated(signed, places.view(len(signed), *GRID, 3))
    scales = torch.tensor([pose.scale for pose in poses], device=signed.device)
    return (values / scales[:, None, None, None]).clamp_(-FURTHEST, FURTHEST)


def _step(target: torch.Tensor, models: _Models, weights: np.ndarray) -> np.ndarray:
    """Return the change of pose and modes' weights (n, 7 + k) that brings each model closest to its target.

    See `segmamba.spine.shape_model._gauss_newton_step`.
    """
    shape = models.shapes(weights)
    steps = torch.from_numpy(2 * models.half / (np.array(GRID) - 1)).to(target)
    slopes = torch.stack(torch.gradient(target, dim=(1, 2, 3)), dim=1).flatten(2) / steps[:, :, None]
    target, shape = target.flatten(1), shape.flatten(1)
    near = (shape.abs() < FURTHEST * NEAR_SURFACE) | (target.abs() < FURTHEST * NEAR_SURFACE)
    difference = shape - target
    robust = near / ((1 + (difference / (2 * RESIDUAL_SD)) ** 2) * (CORRELATED_POINTS * RESIDUAL_SD**2))
    positions = models.points.transpose(1, 2)
    log_scale = (slopes * positions).sum(dim=1, keepdim=True) - target[:, None]
    design = torch.cat([slopes, torch.linalg.cross(positions, slopes, dim=1), log_scale, -models.modes], dim=1)
    weighted = design * robust[:, None]
    normal = torch.bmm(weighted, torch.cat([design, difference[:, None]], dim=1).transpose(1, 2))
    found: np.ndarray = normal.double().cpu().numpy()
    count = weights.shape[1]
    prior = np.r_[np.full(3, TRANSLATION_SD), np.full(3, ROTATION_SD), LOG_SCALE_SD, np.ones(count)] ** -2.0
    goal = found[:, :, -1] - prior * np.concatenate([np.zeros((len(weights), 7)), weights], axis=1)
    change: np.ndarray = np.linalg.solve(found[:, :, :-1] + np.diag(prior), goal[:, :, None])[:, :, 0]
    return change


def _fit(number: int, shape: torch.Tensor, half: np.ndarray, column: _Column, pose: Frame) -> Fit:
    """Return one of the fits from its shape (GRID): its signed distance in its box, and how much it overlaps."""
    mask = column.own(number)
    device = shape.device
    matrix = pose.axes * (column.spacing_mm / pose.scale)
    first = pose.to_local(column.corners[number])
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in mask.shape]
    rows = torch.from_numpy(matrix).to(shape)
    local = (
        axes[0][:, None, None, None] * rows[:, 0]
        + axes[1][None, :, None, None] * rows[:, 1]
        + (axes[2][None, None, :, None] * rows[:, 2] + torch.from_numpy(first).to(shape))
    )
    extent = torch.from_numpy(half).to(shape)
    inner = torch.minimum(torch.maximum(local, -extent), extent)
    to_grid = torch.tensor([(count - 1) / 2 for count in GRID], device=device) / extent
    distance = _interpolated(shape[None], ((inner + extent) * to_grid)[None])[0]
    distance = (distance + torch.linalg.vector_norm(local - inner, dim=-1)) * pose.scale
    inside = distance < 0
    counts = torch.stack([inside.sum(), mask.sum(), (inside & mask).sum()]).tolist()
    return Fit(column.boxes[number], distance.cpu().numpy(), 2 * counts[2] / max(1, counts[0] + counts[1]), pose)
