"""A vertebra in its own frame: what a network that refines one vertebra sees, and how its answer gets back.

The frame is the pose of the statistical model that was fitted to the vertebra's mask: its grid has twice the points of
the model's along each axis, over the same extent. So the mean shape of a level lies at the same place in every patch.
The network changes logits; interpolated back, the change leaves what the network for whole images draws finely.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from degraded import enclosed
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from segmamba.io.volume import Geometry
from segmamba.spine.fit_together import fit_together
from segmamba.spine.frames import Frame, column_frames
from segmamba.spine.levels import ORDER, SACRUM, T12, T13
from segmamba.spine.shape_model import FURTHEST, Fit, ShapeModel, region_of
from segmamba.utils.arrays import label_boxes

# Points of a patch along the frame's axes: up, to posterior and to the left.
SIZE = (56, 80, 80)
# Logits are clipped here: beyond, the network for whole images is sure.
SURE = 5.0
# Masks with less are not fitted.
SMALLEST_ML = 2.0
# Widths of slices are in these units, in mm, at most this many of them.
SLICE_MM, WIDEST = 5.0, 2.0
# The thin arches of a mean shape (C1) are closed only if what is this far outside of it belongs to it.
WALLS_MM = (0.0, 1.0, 2.0, 3.0)
# Channels of a patch: image (2), logits of this vertebra and of all others, whether a point lies in the image, and
# slices' widths along the three axes; then those of the shape model: the fitted shape, and the mean canal.
IMAGE, OWN, OTHERS, SEEN, WIDTHS, SHAPE = slice(0, 2), 2, 3, 4, slice(5, 8), slice(8, 10)
CHANNELS = 10


def fits_of(labels: np.ndarray, spacing_mm: float, model: ShapeModel, device: torch.device) -> dict[int, Fit]:
    """Return the fits of the shape model to all vertebrae of a label map (z, y, x) that are large enough."""
    frames = column_frames(labels, spacing_mm)
    masks = {}
    for level, box in label_boxes(labels).items():
        mask = labels[box] == level
        if level in ORDER and mask.sum() * spacing_mm**3 / 1000 >= SMALLEST_ML:
            masks[level] = (box, mask)
    return fit_together(masks, labels.shape, model, {level: frames[level] for level in masks}, spacing_mm, device)


def half_extent(level: int, model: ShapeModel) -> np.ndarray:
    """Return half the extent (3,) of a level's patch, in local mm."""
    return model.half_extents[region_of(T12 if level == T13 else level)]


def in_frame(values: Tensor, frame: Frame, half: np.ndarray, spacing_mm: float, padding: str = "zeros") -> Tensor:
    """Return values (c, z, y, x) of an isotropic grid at the points of a patch, linearly: (c, *SIZE).

    ``padding`` as for `torch.nn.functional.grid_sample`.
    """
    axes = [
        torch.linspace(-extent, extent, count, device=values.device) for extent, count in zip(half, SIZE, strict=True)
    ]
    local = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    turned = torch.as_tensor(frame.axes * (frame.scale / spacing_mm), dtype=torch.float32, device=values.device)
    places = local @ turned + torch.as_tensor(frame.centre / spacing_mm, dtype=torch.float32, device=values.device)
    return _at(values, places, padding)


def from_frame(
    values: Tensor, frame: Frame, half: np.ndarray, box: Sequence[slice], spacing_mm: float, padding: str = "zeros"
) -> Tensor:
    """Return values (c, *SIZE) of a patch at the voxels of a box of an isotropic grid: (c, z, y, x)."""
    axes = [torch.arange(part.start, part.stop, dtype=torch.float32, device=values.device) for part in box]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    turned = torch.as_tensor(frame.axes.T / frame.scale, dtype=torch.float32, device=values.device)
    centre = torch.as_tensor(frame.centre, dtype=torch.float32, device=values.device)
    local = (voxels * spacing_mm - centre) @ turned
    extent = torch.as_tensor(half, dtype=torch.float32, device=values.device)
    last = torch.tensor(SIZE, device=values.device) - 1
    return _at(values, (local / extent + 1) / 2 * last, padding)


def _at(values: Tensor, places: Tensor, padding: str) -> Tensor:
    """Return values (c, z, y, x) at places (..., 3) in voxels along z, y, x, linearly."""
    last = torch.tensor(values.shape[1:], device=values.device, dtype=torch.float32) - 1
    scaled = (places * (2 / last.clamp(min=1)) - 1).flip(-1)
    found: Tensor = functional.grid_sample(values[None].float(), scaled[None], align_corners=True, padding_mode=padding)
    return found[0]


def widths_along(frame: Frame, geometry: Geometry) -> np.ndarray:
    """Return how wide an image's voxels are along the axes of a frame, in mm: (3,).

    The frame's world is z, y, x along superior, posterior and left.
    """
    columns = np.reshape(geometry.direction, (3, 3))
    along = frame.axes[:, ::-1] @ columns
    widths: np.ndarray = np.sqrt((along**2) @ np.square(geometry.spacing))
    return widths


def canals(model: ShapeModel) -> np.ndarray:
    """Return the signed distance to the canal that each level's mean shape encloses, in local mm: (25, *SIZE).

    Planes that enclose none have that of the next one that does: the canal runs through. Clipped as the shapes are;
    the furthest where a mean encloses nothing.
    """
    found = np.full((len(model.means), *SIZE), FURTHEST, np.float32)
    for number, mean in enumerate(model.means):
        steps = 2 * half_extent(number + 1, model) / (np.array(SIZE) - 1)
        fine = ndimage.zoom(mean, np.array(SIZE) / mean.shape, order=1, grid_mode=False)
        for wall in WALLS_MM:
            canal = np.stack([_largest(enclosed(plane < wall, steps[1:])) for plane in fine])
            planes = np.flatnonzero(canal.any(axis=(1, 2)))
            if len(planes):
                break
        else:
            continue
        nearest = planes[np.abs(planes - np.arange(SIZE[0])[:, None]).argmin(axis=1)]
        canal = canal[nearest] & (fine >= 0)
        distance = ndimage.distance_transform_edt(~canal, sampling=steps)
        distance -= ndimage.distance_transform_edt(canal, sampling=steps)
        found[number] = np.clip(distance, -FURTHEST, FURTHEST)
    return found


def _largest(plane: np.ndarray) -> np.ndarray:
    """Return the largest piece of a mask: transverse foramina and gaps beside ribs are no canal."""
    pieces, count = ndimage.label(plane)
    largest: np.ndarray = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if count else plane
    return largest


def logit(probability: Tensor) -> Tensor:
    """Return the logit of a probability, clipped."""
    return torch.logit(probability.float(), eps=1e-4).clamp(-SURE, SURE)


def patch_of(
    image: Tensor, probabilities: Tensor, number: int, found: Fit, half: np.ndarray, spacing_mm: float
) -> tuple[Tensor, Tensor]:
    """Return what lies in a vertebra's frame: channels up to `SEEN` (5, *SIZE), and its fitted shape (*SIZE) in mm.

    Parameters
    ----------
    image : Tensor
        Shape (2, z, y, x), as networks get it.
    probabilities : Tensor
        Shape (classes, z, y, x), the background first; of each vertebra as inference gives them.
    number : int
        The vertebra's class.
    found : Fit
        Of the vertebra.
    half : ndarray
        See `half_extent`.
    spacing_mm : float
        Of the isotropic grid.
    """
    own = probabilities[number].float()
    others = 1 - probabilities[0].float() - own
    seen = torch.ones_like(own)
    given = in_frame(torch.stack([*image.float(), own, others, seen]), found.frame, half, spacing_mm)
    given[OWN : OTHERS + 1] = logit(given[OWN : OTHERS + 1])
    given[IMAGE] *= given[SEEN]
    corner = np.array([part.start for part in found.box]) * spacing_mm
    inner = Frame(found.frame.centre - corner, found.frame.axes, found.frame.scale)
    distance = torch.as_tensor(np.ascontiguousarray(found.distance), dtype=torch.float32, device=image.device)[None]
    return given, in_frame(distance, inner, half, spacing_mm, "border")[0]


def channels(given: Tensor, distance: Tensor, canal: Tensor, widths: Tensor, with_shape: bool) -> Tensor:
    """Return the input of a `Refiner`, (n, CHANNELS, *SIZE), from what patches hold.

    Parameters
    ----------
    given : Tensor (n, 5, *SIZE)
        Channels up to `SEEN`.
    distance, canal : Tensor (n, *SIZE)
        Signed distances in mm to the fitted shape and to the mean canal.
    widths : Tensor (n, 3)
        Of the image's voxels along the frame's axes in mm.
    with_shape : bool
        False sets the channels of the shape model to zero.
    """
    wide = (widths / SLICE_MM).clamp(max=WIDEST)[:, :, None, None, None].expand(-1, -1, *SIZE)
    shape = torch.stack([distance, canal], dim=1).clamp(-FURTHEST, FURTHEST) / FURTHEST
    return torch.cat([given, wide, shape if with_shape else torch.zeros_like(shape)], dim=1)


def refined(probabilities: Tensor, changes: Sequence[tuple[int, Fit, np.ndarray, Tensor]], spacing_mm: float) -> Tensor:
    """Return class probabilities (classes, z, y, x), float16, after changes of vertebrae's logits.

    Parameters
    ----------
    probabilities : Tensor
        Shape (classes, z, y, x), the background first.
    changes : sequence of tuple
        Of each vertebra its class, its fit, half the extent of its patch and the change of its logit (*SIZE).
    spacing_mm : float
        Of the isotropic grid.
    """
    found = probabilities.float()
    for number, fit, half, change in changes:
        back = from_frame(change[None], fit.frame, half, fit.box, spacing_mm)[0]
        view = found[(number, *fit.box)]
        # What is not changed keeps its probability exactly.
        view.copy_(torch.where(back.abs() > 1e-3, torch.sigmoid(logit(view) + back), view))
    total = found[1:].sum(dim=0)
    found[1:] /= total.clamp(min=1)
    found[0] = (1 - total).clamp(min=0)
    return found.half()


class Refiner(nn.Module):
    """A small U-Net that changes the logit of one vertebra: (n, CHANNELS, *SIZE) -> (n, *SIZE)."""

    def __init__(self, features: Sequence[int] = (16, 32, 64, 96)) -> None:
        super().__init__()
        wide = [CHANNELS, *features]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(wide[:-1], wide[1:], strict=True))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(features[:0:-1], features[-2::-1], strict=True))
        self.last = nn.Conv3d(features[0], 1, 1)
        # An untrained network changes nothing.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, given: Tensor) -> Tensor:
        """Return the change of the logit."""
        kept = []
        values = given
        for block in self.down[:-1]:
            values = block(values)
            kept.append(values)
            values = functional.max_pool3d(values, 2)
        values = self.down[-1](values)
        for block in self.up:
            values = functional.interpolate(values, scale_factor=2.0, mode="nearest")
            values = block(torch.cat([values, kept.pop()], dim=1))
        change: Tensor = self.last(values)[:, 0]
        return change


def _block(before: int, after: int) -> nn.Sequential:
    norm = partial(nn.InstanceNorm3d, after, affine=True)
    first, second = (nn.Conv3d(n, after, 3, padding=1, bias=False) for n in (before, after))
    return nn.Sequential(first, norm(), nn.ReLU(inplace=True), second, norm(), nn.ReLU(inplace=True))


def vertebrae_in(values: Sequence[int]) -> dict[int, int]:
    """Return the class of each vertebra (not of the sacrum) among label values, the background's first."""
    return {value: number for number, value in enumerate(values) if value in ORDER and value != SACRUM}
