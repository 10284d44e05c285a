"""From the probabilities of a model's grid to labels on the volume's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from segmamba.inference.model_grid import Box, ModelGrid
from segmamba.io.volume import Geometry, corners

if TYPE_CHECKING:
    import torch

# Lead of each class over the next one where they are as probable: more than the rounding of the interpolation.
TIE_BREAKER = 1e-4
# The way back is done in blocks of this many voxels along each axis: it bounds the memory, few classes are found in
# any one block, and blocks with none but the background are passed over.
BLOCK = 64


def resample_to_input(
    probabilities: torch.Tensor,
    grid: ModelGrid,
    channel_values: Sequence[int],
    device: torch.device | str | None = None,
    logits: bool = False,
    regions: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Bring class probabilities on a model's grid back to the volume's own voxels.

    At the centre of each voxel of the volume the probabilities are interpolated trilinearly, and the most probable
    class gives the label; the background wins ties, and then the lower class. Or logits are interpolated, and become
    probabilities there: then a confident voxel reaches further than a less confident neighbour.

    Parameters
    ----------
    probabilities : torch.Tensor
        Shape (classes, z, y, x) on ``grid.geometry``, on any device, in half or single precision; class 0 is the
        background, and the classes sum to one.
    grid : ModelGrid
        From `resample_to_model`.
    channel_values : sequence of int
        Label value of each class.
    device : device, optional
        Where to interpolate, block by block; by default where the probabilities are.
    logits : bool
        ``probabilities`` are logits.
    regions : bool
        The classes after the first may overlap: a voxel has the label of the last one that exceeds the first there.

    Returns
    -------
    labels : ndarray of uint8
        Shape (z, y, x) on ``grid.input``; 0 outside the ROI.
    confidence : ndarray of uint8
        The probability of the label at each labelled voxel, times 255; 0 in the background.
    """
    import torch

    labels = np.zeros(grid.input.size[::-1], dtype=np.uint8)
    confidence = np.zeros_like(labels)
    to_model = np.linalg.inv(grid.geometry.affine) @ grid.input.affine
    region = labelled_region(probabilities, grid)
    if region is None:
        return labels, confidence
    choose = _last_region if regions else _most_probable
    # Both results of all blocks, where they are computed: they leave a GPU at once.
    found: torch.Tensor | None = None
    for block in _blocks(region):
        active, scores = _scores_in_block(probabilities, block, to_model, device, logits)
        if len(active) == 1:
            continue
        classes, probability = choose(active, scores)
        if grid.roi is not None:
            classes *= _inside(grid.roi, block, grid.input).to(classes.device)
        if found is None:
            values = torch.tensor(channel_values, dtype=torch.uint8, device=classes.device)
            shape = (2, *(part.stop - part.start for part in region))
            found = torch.zeros(shape, dtype=torch.uint8, device=classes.device)
        place = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(block, region, strict=True))
        found[0][place] = values[classes]
        found[1][place] = (probability * (classes > 0) * 255).round().to(torch.uint8)
    if found is not None:
        labels[region], confidence[region] = found.cpu().numpy()
    return labels, confidence


def interpolated_blocks(
    probabilities: torch.Tensor,
    grid: ModelGrid,
    device: torch.device | str | None,
    logits: bool,
    least: float,
) -> Iterator[tuple[tuple[slice, slice, slice], torch.Tensor, torch.Tensor]]:
    """Give the probabilities at the volume's voxels block by block, over all of it that the model has seen.

    Parameters
    ----------
    probabilities, grid, device, logits
        As for `resample_to_input`.
    least : float
        A class that is less probable in a whole block is left out of it.

    Yields
    ------
    tuple
        The block (slices along z, y, x of the volume); the classes in it, the first one always; their probabilities
        (classes, z, y, x), which are those of the first class alone outside of a region of interest.
    """
    to_model = np.linalg.inv(grid.geometry.affine) @ grid.input.affine
    z, y, x = grid.crop
    for block in _blocks((z, y, x)):
        active, values = _scores_in_block(probabilities, block, to_model, device, logits, least)
        if grid.roi is not None and len(active) > 1:
            inside = _inside(grid.roi, block, grid.input).to(values.device)
            values = values * inside
            values[0] += (~inside).to(values.dtype)
        yield block, active, values


def _foreground_box(probabilities: torch.Tensor) -> np.ndarray | None:
    """Return the first and last index, shape (2, 3) in x, y, z order, of voxels where the background does not win."""
    if len(probabilities) == 1:  # nothing but background was found
        return None
    foreground = probabilities[1:].amax(dim=0) > probabilities[0]
    if not foreground.any():
        return None
    ends = []
    for axis in (2, 1, 0):
        others = tuple(other for other in range(3) if other != axis)
        inside = foreground.any(dim=others[1]).any(dim=others[0]).nonzero()
        ends.append((int(inside[0]), int(inside[-1])))
    return np.array(ends, dtype=float).T


def labelled_region(probabilities: torch.Tensor, grid: ModelGrid) -> tuple[slice, slice, slice] | None:
    """Return the part of the volume (slices along z, y, x) that can get labels, or None where there is none.

    Where the background wins at all eight surrounding voxels of the model's grid, it wins between them too.

    Parameters
    ----------
    probabilities, grid
        As for `resample_to_input`.
    """
    to_model = np.linalg.inv(grid.geometry.affine) @ grid.input.affine
    box = _foreground_box(probabilities)
    if box is None:
        return None
    indices = corners(box[0] - 1, box[1] + 1) @ np.linalg.inv(to_model).T
    low, high = np.ceil(indices[:, :3].min(axis=0)), np.floor(indices[:, :3].max(axis=0))
    region = []
    for part, first, last in zip(grid.crop, reversed(low), reversed(high), strict=True):
        region.append(slice(max(part.start, int(first)), min(part.stop, int(last) + 1)))
        if region[-1].start >= region[-1].stop:
            return None
    return region[0], region[1], region[2]


def _blocks(region: tuple[slice, slice, slice]) -> Iterator[tuple[slice, slice, slice]]:
    starts = [range(part.start, part.stop, BLOCK) for part in region]
    for z, y, x in itertools.product(*starts):
        ends = [min(start + BLOCK, part.stop) for start, part in zip((z, y, x), region, strict=True)]
        yield slice(z, ends[0]), slice(y, ends[1]), slice(x, ends[2])


def _scores_in_block(
    probabilities: torch.Tensor,
    block: tuple[slice, ...],
    to_model: np.ndarray,
    device: torch.device | str | None,
    logits: bool,
    least: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the classes that can win in a block, the background first, and their probabilities at its voxels.

    With ``least``, those that have at least this probability somewhere.
    """
    import torch

    first = [part.start for part in reversed(block)]
    last = [part.stop - 1 for part in reversed(block)]
    indices = (corners(np.array(first), np.array(last)) @ to_model.T)[:, :3]
    size = np.array(probabilities.shape[:0:-1])
    low = np.clip(np.floor(indices.min(axis=0)), 0, size - 1).astype(int)
    high = np.clip(np.ceil(indices.max(axis=0)), low, size - 1).astype(int)
    x, y, z = (slice(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    part = probabilities[:, z, y, x].to(device)
    if part.device.type not in ("cpu", "cuda"):
        # Other devices (MPS) do not all interpolate in 3-D.
        part = part.cpu()
    # A class that wins has at least an equal share; most classes never get near it in one block. The background stays.
    least = 0.9 / len(part) if least is None else least
    possible = (part.flatten(1).amax(dim=1) > least) | logits
    possible[0] = True
    active = possible.nonzero()[:, 0]
    if len(active) == 1:
        return active, torch.zeros(1, device=part.device)
    coordinates = _positions(block, to_model, low, high, part.device)
    # As a batch of slices: PyTorch spreads a batch over the processors, and not a volume.
    volumes = part[active].float().expand(len(coordinates), -1, -1, -1, -1)
    values = torch.nn.functional.grid_sample(
        volumes, coordinates[:, None], mode="bilinear", padding_mode="border", align_corners=True
    )
    values = values[:, :, 0].transpose(0, 1)
    return active, values.softmax(dim=0) if logits else values


def _most_probable(active: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the winning class and its probability at each voxel; both of shape (z, y, x)."""
    import torch

    # Between two voxels of a sure network ties are common, and rounding must not decide them.
    values -= TIE_BREAKER * torch.arange(len(active), device=values.device)[:, None, None, None]
    probability, winner = values[1:].max(dim=0)
    return torch.where(probability > values[0], active[1:][winner], 0), probability


def _last_region(active: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last region that a voxel is in, or 0, and its probability, as `_most_probable` does."""
    import torch

    classes = torch.zeros(values.shape[1:], dtype=torch.long, device=values.device)
    probability = torch.zeros(values.shape[1:], device=values.device)
    for number, own in zip(active[1:], values[1:], strict=True):
        inside = own > values[0] + TIE_BREAKER
        classes[inside] = number
        probability = torch.where(inside, own, probability)
    return classes, probability


def _positions(
    block: tuple[slice, ...], to_model: np.ndarray, low: np.ndarray, high: np.ndarray, device: torch.device
) -> torch.Tensor:
    """Return where a block's voxels lie in model voxels ``low`` to ``high``, scaled to -1 to 1: shape (z, y, x, 3)."""
    import torch

    scale = 2.0 / np.maximum(high - low, 1)
    matrix = torch.from_numpy(to_model[:3] * scale[:, None]).float().to(device)
    offset = torch.from_numpy((to_model[:3, 3] - low) * scale - 1.0).float().to(device)
    k, j, i = (torch.arange(part.start, part.stop, dtype=torch.float32, device=device) for part in block)
    return (
        k[:, None, None, None] * matrix[:, 2]
        + j[None, :, None, None] * matrix[:, 1]
        + (i[None, None, :, None] * matrix[:, 0] + offset)
    )


def _inside(roi: Box, block: tuple[slice, ...], geometry: Geometry) -> torch.Tensor:
    """Tell which voxels of a block have their centre in a box: a tensor of bool, shape (z, y, x)."""
    import torch

    matrix = geometry.affine
    k, j, i = (torch.arange(part.start, part.stop, dtype=torch.float64) for part in block)
    inside = torch.ones(len(k), len(j), len(i), dtype=torch.bool)
    for axis, (low, high) in enumerate(zip(roi.lps_min, roi.lps_max, strict=True)):
        along_x, along_y, along_z, start = matrix[axis].tolist()
        position = k[:, None, None] * along_z + j[None, :, None] * along_y + (i * along_x + start)
        inside &= (position >= low) & (position <= high)
    return inside
