"""A vertebra in its own frame: what a network that draws it again sees, and how its answer gets back.

The frame is the pose of the statistical model that was fitted to the vertebra's mask. A patch has twice the points of
the model's grid along each axis, over the same extent, so that the mean shape of a level lies at the same place in
every patch. The network changes logits; interpolated back, the change leaves what the network for whole images draws
finely.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segmamba.spine.frames import Frame
from segmamba.spine.levels import ORDER, T12, T13
from segmamba.spine.shape_model import FURTHEST, GRID, Fit, ShapeModel, region_of
from segmamba.utils.arrays import LabelBox, label_boxes

# Points of a patch along the frame's axes: up, to posterior and to the left.
SIZE = (2 * GRID[0], 2 * GRID[1], 2 * GRID[2])
# Smaller masks are too little of a vertebra.
SMALLEST_ML = 2.0
# Logits are clipped here: beyond, the network for whole images is sure.
SURE = 5.0
# Changes of a logit below this are none.
SMALLEST_CHANGE = 1e-3
# Widths of slices are in these units, in mm, at most this many of them.
SLICE_MM, WIDEST = 5.0, 2.0
# Channels of a patch: image (2), logits of this vertebra and of all others, whether a point lies in the image, and
# slices' widths along the three axes; then those of the shape model: the fitted shape, and the mean canal.
IMAGE, OWN, OTHERS, SEEN, WIDTHS, SHAPE = slice(0, 2), 2, 3, 4, slice(5, 8), slice(8, 10)
CHANNELS = 10


def as_modelled(level: int) -> int:
    """Return the level whose shape stands for one: the model has no T13."""
    return T12 if level == T13 else level


def large_vertebrae(labels: np.ndarray, spacing_mm: float) -> dict[int, LabelBox]:
    """Return the boxes of the vertebrae of a label map (z, y, x) that are large enough to place their frames."""
    return {
        level: box
        for level, box in label_boxes(labels).items()
        if level in ORDER and np.count_nonzero(labels[box] == level) * spacing_mm**3 / 1000 >= SMALLEST_ML
    }


def half_extent(level: int, model: ShapeModel) -> np.ndarray:
    """Return half the extent (3,) of a level's patch, in local mm."""
    return model.half_extents[region_of(as_modelled(level))]


def patch_of(
    image: Tensor, probabilities: Tensor, number: int, found: Fit, half: np.ndarray, spacing_mm: float
) -> tuple[Tensor, Tensor]:
    """Return what lies in a vertebra's frame: channels up to `SEEN` ``(5, *SIZE)``, and its fit in mm ``(*SIZE)``.

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
    box = _around(found.frame, half, image.shape[1:], spacing_mm)
    part = probabilities[(slice(None), *box)]
    own = part[number].float()
    others = 1 - part[0].float() - own
    inside = torch.stack([*image[(slice(None), *box)].float(), own, others, torch.ones_like(own)])
    given = in_frame(inside, _from_corner(found.frame, box, spacing_mm), half, spacing_mm)
    given[OWN : OTHERS + 1] = logit(given[OWN : OTHERS + 1])
    given[IMAGE] *= given[SEEN]
    distance = torch.as_tensor(np.ascontiguousarray(found.distance), dtype=torch.float32, device=image.device)[None]
    return given, in_frame(distance, _from_corner(found.frame, found.box, spacing_mm), half, spacing_mm, "border")[0]


def _around(frame: Frame, half: np.ndarray, shape: Sequence[int], spacing_mm: float) -> tuple[slice, ...]:
    """Return the part of a grid that a patch lies in; at least a voxel."""
    reach = half * frame.scale @ np.abs(frame.axes)
    low = np.floor((frame.centre - reach) / spacing_mm).astype(int)
    high = np.ceil((frame.centre + reach) / spacing_mm).astype(int) + 1
    low = np.clip(low, 0, np.array(shape) - 1)
    return tuple(slice(int(a), int(max(a + 1, b))) for a, b in zip(low, np.minimum(high, shape), strict=True))


def _from_corner(frame: Frame, box: Sequence[slice], spacing_mm: float) -> Frame:
    """Return a frame in a part of its grid."""
    return Frame(frame.centre - np.array([part.start for part in box]) * spacing_mm, frame.axes, frame.scale)


def in_frame(values: Tensor, frame: Frame, half: np.ndarray, spacing_mm: float, padding: str = "zeros") -> Tensor:
    """Return values (c, z, y, x) of an isotropic grid at the points of a patch, linearly: ``(c, *SIZE)``.

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
    """Return values ``(c, *SIZE)`` of a patch at the voxels of a box of an isotropic grid: (c, z, y, x)."""
    axes = [torch.arange(part.start, part.stop, dtype=torch.float32, device=values.device) for part in box]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    turned = torch.as_tensor(frame.axes.T / frame.scale, dtype=torch.float32, device=values.device)
    centre = torch.as_tensor(frame.centre, dtype=torch.float32, device=values.device)
    local = (voxels * spacing_mm - centre) @ turned
    extent = torch.as_tensor(half, dtype=torch.float32, device=values.device)
    last = torch.tensor(values.shape[1:], device=values.device) - 1
    return _at(values, (local / extent + 1) / 2 * last, padding)


def _at(values: Tensor, places: Tensor, padding: str) -> Tensor:
    """Return values (c, z, y, x) at places (..., 3) in voxels along z, y, x, linearly."""
    last = torch.tensor(values.shape[1:], device=values.device, dtype=torch.float32) - 1
    scaled = (places * (2 / last.clamp(min=1)) - 1).flip(-1)
    found: Tensor = functional.grid_sample(values[None].float(), scaled[None], align_corners=True, padding_mode=padding)
    return found[0]


def canal_patch(canal: Tensor) -> Tensor:
    """Return the signed distance to a mean canal, known at the model's grid ``(*GRID)``, at the points of a patch."""
    fine: Tensor = functional.interpolate(canal[None, None].float(), size=SIZE, mode="trilinear", align_corners=True)
    return fine[0, 0]


def widths_along(frame: Frame, spacing_mm: Sequence[float], direction: Sequence[float]) -> np.ndarray:
    """Return how wide an image's voxels are along the axes of a frame, in mm: (3,).

    Its spacing and direction are those of `segmamba.io.volume.Geometry`; the frame's world is z, y, x along superior,
    posterior and left.
    """
    along = frame.axes[:, ::-1] @ np.reshape(direction, (3, 3))
    widths: np.ndarray = np.sqrt((along**2) @ np.square(spacing_mm))
    return widths


def logit(probability: Tensor) -> Tensor:
    """Return the logit of a probability, clipped."""
    return torch.logit(probability.float(), eps=1e-4).clamp(-SURE, SURE)


def channels(given: Tensor, distance: Tensor, canal: Tensor, widths: Tensor) -> Tensor:
    """Return the input of a network, ``(n, CHANNELS, *SIZE)``, from what patches hold.

    Parameters
    ----------
    given : Tensor
        Shape ``(n, 5, *SIZE)``: channels up to `SEEN`.
    distance, canal : Tensor
        Shape ``(n, *SIZE)``: signed distances in mm to the fitted shape and to the mean canal.
    widths : Tensor
        Shape (n, 3): of the image's voxels along the frame's axes in mm.
    """
    wide = (widths / SLICE_MM).clamp(max=WIDEST)[:, :, None, None, None].expand(-1, -1, *SIZE)
    shape = torch.stack([distance, canal], dim=1).clamp(-FURTHEST, FURTHEST) / FURTHEST
    return torch.cat([given, wide, shape], dim=1)


def changed(
    probabilities: Tensor, number: int, change: Tensor, found: Fit, half: np.ndarray, spacing_mm: float
) -> Tensor:
    """Return the probability of a vertebra in the box of its fit once a network has changed its logit ``(*SIZE)``.

    The other parameters are those of `patch_of`. What is not changed keeps its probability exactly.
    """
    back = from_frame(change[None], found.frame, half, found.box, spacing_mm)[0]
    own = probabilities[number][tuple(found.box)]
    return torch.where(back.abs() > SMALLEST_CHANGE, torch.sigmoid(logit(own) + back).to(own.dtype), own)


def share(probabilities: Tensor, box: Sequence[slice], numbers: Sequence[int]) -> Tensor:
    """Make class probabilities add up to 1 in a box, in place: classes that have more give way alike.

    ``numbers`` are the classes that are there, the background's 0 first. Returns the number of each voxel's most
    probable class (z, y, x), where the probabilities are.
    """
    view, some = probabilities[(slice(None), *box)], list(numbers)
    part = view[some].float()
    total = part[1:].sum(dim=0)
    part[1:] /= total.clamp(min=1)
    part[0] = (1 - total).clamp(min=0)
    stored = part.to(view.dtype)
    view[some] = stored
    # A tenth of the time of `argmax` on a processor.
    return torch.tensor(some, device=part.device)[stored.max(dim=0).indices]
