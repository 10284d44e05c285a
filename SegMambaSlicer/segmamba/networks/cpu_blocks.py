"""The networks' blocks for inference on a processor in float32: the same answers with fewer passes over memory.

Feature maps are channels last, the layout that oneDNN convolves fastest, so a row of a map is a matrix of voxels and
channels. A map of a window is larger than a processor's caches: what is done to each voxel after a convolution is done
in place, slab by slab.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from segmamba.networks.blocks import DecoderBlock, ResidualBlock

LEAKY_SLOPE = 0.01
NORM_EPS = 1e-5
# Values of a slab: its part of three maps fits into a core's cache.
SLAB = 200_000
# From so many coarse voxels a channel on, a transposed convolution joined with the next one saves more than it costs.
JOINED = 5
# oneDNN convolves channels in such groups on a processor with AVX2 and any later one.
GROUP = 8
# Values of a slab that is convolved in its own place, 16 MB at least: a larger map never has a second one beside it.
CONVOLVED = 1 << 22
# PyTorch gives oneDNN a convolution of one window if channels x depth x height exceed this; else it takes ten times as
# long.
SMALLEST_CONVOLVED = 20480


def applies_to(volume: Tensor) -> bool:
    """Tell whether a map (1, C, D, H, W) is computed here: one window on a processor in float32, without gradients."""
    return (
        volume.device.type == "cpu"
        and volume.dtype == torch.float32
        and len(volume) == 1
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def residual_block(block: ResidualBlock, volume: Tensor) -> Tensor:
    """Return what a `ResidualBlock` makes of a map."""
    return _after_first_convolution(
        block, convolve(_only(block.conv1), volume), _only(block.conv3)(volume) if block.project else volume
    )


def normalised_convolution(block: nn.Sequential, volume: Tensor, slope: float) -> Tensor:
    """Return what a block's convolution, instance norm and leaky ReLU give; ``slope`` 0 is that of a ReLU."""
    convolution: Any = block[0]
    norm: Any = block[1]
    convolved = convolve(convolution, volume)
    return scale_(convolved, *norm_scaling(norm, convolved), slope)


def decoder_block(block: DecoderBlock, volume: Tensor, skip: Tensor, last_use: bool = False) -> Tensor:
    """Return what a `DecoderBlock` makes of a map and a skip.

    Nothing lies between its transposed convolution and the next one, so the two are one, from the coarse map to each
    of the eight fine voxels of a coarse one. That is half of the arithmetic, and neither the map at double size nor
    its union with the skip is ever made. At its ``last_use`` a skip is overwritten: else a third map of its size would
    lie beside it.
    """
    inner = block.conv_block
    width = skip.shape[1]
    if volume[0, 0].numel() < JOINED * width:
        joined = _channels_last(torch.cat((_only(block.transp_conv)(volume), skip), dim=1))
        return residual_block(inner, joined)
    spread = _only(block.transp_conv).weight
    weight, projection = _only(inner.conv1).weight, _only(inner.conv3).weight
    shortcut = pointwise(skip, projection[:, width:])
    if last_use:
        total = _convolve_over(_channels_last(skip), weight[:, width:])
    else:
        total = _channels_last(functional.conv3d(skip, weight[:, width:], padding=1))
    weights = _joined_weights(spread, weight[:, :width])
    projections = torch.einsum("imzyx,om->zyxoi", spread, projection[:, :width, 0, 0, 0])
    for parity in itertools.product((0, 1), repeat=3):
        z, y, x = (slice(odd, None, 2) for odd in parity)
        down, back, left = (slice(odd, odd + length) for odd, length in zip(parity, volume.shape[2:], strict=True))
        total[..., z, y, x] += functional.conv3d(volume, weights[parity], padding=1)[..., down, back, left]
        shortcut[..., z, y, x] += pointwise(volume, projections[parity])
    return _after_first_convolution(inner, total, shortcut)


def _joined_weights(spread: Tensor, weight: Tensor) -> Tensor:
    """Return the weights (2, 2, 2, out, in, 2, 2, 2) from coarse voxels to the fine ones, by the fine ones' parity.

    Of the three fine voxels along an axis that a fine voxel sees, an even one's lie in the coarse voxel before its own
    and in its own, an odd one's in its own and the one behind.
    """
    products = torch.einsum("omzyx,imabc->zyxabcoi", weight, spread)
    joined = weight.new_zeros(2, 2, 2, 2, 2, 2, len(weight), len(spread))
    for parity in itertools.product((0, 1), repeat=3):
        for tap in itertools.product((0, 1, 2), repeat=3):
            seen = [odd + step - 1 for odd, step in zip(parity, tap, strict=True)]
            coarse = tuple(place // 2 + 1 - odd for place, odd in zip(seen, parity, strict=True))
            child = tuple(place % 2 for place in seen)
            joined[parity + coarse] += products[tap + child]
    return joined.movedim((3, 4, 5), (5, 6, 7))


def _after_first_convolution(block: ResidualBlock, convolved: Tensor, shortcut: Tensor) -> Tensor:
    """Finish a residual block; ``convolved`` is overwritten, and so is a ``shortcut`` of its own."""
    inner = scale_(convolved, *norm_scaling(block.norm1, convolved), LEAKY_SLOPE)
    outer = _convolve_over(inner, _only(block.conv2).weight)
    scale, shift = norm_scaling(block.norm2, outer)
    if not block.project:
        return scale_(outer, scale, shift, LEAKY_SLOPE, shortcut)
    shortcut_scale, shortcut_shift = norm_scaling(block.norm3, shortcut)
    return scale_(outer, scale, shift + shortcut_shift, LEAKY_SLOPE, shortcut, shortcut_scale)


def convolve(convolution: nn.Conv3d, volume: Tensor) -> Tensor:
    """Return a 3^3 convolution; one of few channels, which oneDNN does slowly, with neighbours along x as channels."""
    aligned = volume.shape[1] % GROUP == 0
    if aligned or convolution.stride != (1, 1, 1) or convolution.kernel_size != (3, 3, 3):
        return _channels_last(convolution(volume))
    padded = functional.pad(volume, (1, 1))
    shifted = [padded[..., first : first + volume.shape[-1]] for first in range(3)]
    weight = convolution.weight.movedim(-1, 1).flatten(1, 2)[..., None]
    missing = -weight.shape[1] % GROUP
    packed = _channels_last(torch.zeros(1, weight.shape[1] + missing, *volume.shape[2:]))
    packed[:, : weight.shape[1]] = torch.cat(shifted, dim=1)
    weight = functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, missing))
    return _channels_last(functional.conv3d(packed, weight, convolution.bias, padding=(1, 1, 0)))


def _convolve_over(volume: Tensor, weight: Tensor) -> Tensor:
    """Return a 3^3 convolution that keeps a map's channels, in its place: slab by slab."""
    channels, depth, height = volume.shape[1:4]
    planes = max(CONVOLVED // volume[:, :, 0].numel(), SMALLEST_CONVOLVED // (channels * height)) + 1
    count = depth // planes
    if count < 2:
        return _channels_last(functional.conv3d(volume, weight, padding=1))
    late: Tensor | None = None
    for number in range(count):
        first, last = (depth * part // count for part in (number, number + 1))
        seen = volume[:, :, max(0, first - 1) : last + 1]
        if number in (0, count - 1):
            seen = _channels_last(functional.pad(seen, (0, 0, 0, 0, int(number == 0), int(number > 0))))
        found = functional.conv3d(seen, weight, padding=(0, 1, 1))
        if late is not None:
            volume[:, :, first - 1] = late
        # The next slab sees the last plane as it was.
        late = found[:, :, -1].clone()
        volume[:, :, first : last - 1] = found[:, :, :-1]
    assert late is not None
    volume[:, :, -1] = late
    return volume


def pointwise(volume: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a 1^3 convolution as a matrix product; ``weight`` is (out, in, ...)."""
    return functional.linear(volume.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def channels_first(container: nn.Sequential, volume: Tensor) -> Tensor:
    """Return a 1^3 convolution in PyTorch's own memory format, in which logits are blended."""
    voxels = _channels_last(volume)[0].permute(1, 2, 3, 0).flatten(0, 2)
    convolution = _only(container)
    weight, bias = convolution.weight.flatten(1), convolution.bias
    logits: Tensor = weight @ voxels.T if bias is None else torch.addmm(bias[:, None], weight, voxels.T)
    return logits.view(1, -1, *volume.shape[2:])


def cross_update(features: Tensor, prior: Tensor, sharpness: Tensor) -> Tensor:
    """Return what a `CrossUpdate` makes of features (1, C, D, H, W) and a prior (1, classes, D, H, W).

    A normed map sums to zero, so what is subtracted from a channel to norm it does not change the correlation.
    """
    maps = prior.flatten(2)[0]
    normed = functional.layer_norm(maps, maps.shape[1:])
    voxels = _channels_last(features)[0].permute(1, 2, 3, 0).flatten(0, 2)
    variance = _moments(features)[1]
    correlation = (normed @ voxels) * (variance + NORM_EPS).rsqrt().float() / maps.shape[1]
    weights = torch.softmax(sharpness * correlation, dim=0)
    return torch.addmm(voxels, maps.T, weights).view(*features.shape[2:], -1).permute(3, 0, 1, 2)[None]


def instance_norm(volume: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return the instance norm of a map, which stays as it is."""
    return scale_(_channels_last(volume).clone(), *_scaling(volume, weight, bias, eps))


def norm_scaling(norm: nn.InstanceNorm3d, volume: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand that an instance norm has for each channel of a map, shape (channels,)."""
    return _scaling(volume, norm.weight, norm.bias, norm.eps)


def _scaling(volume: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    mean, variance = _moments(volume)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    return scale.float(), shift.float()


def _moments(volume: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel of a map, float64 (channels,).

    The sums of slabs are in float32 and added up in float64: over a window, float32 alone would lose four digits.
    """
    rows = _rows(_channels_last(volume))
    sums = torch.zeros(2, rows.shape[1], dtype=torch.float64)
    slabs = list(_slabs(rows))
    squares, ones = torch.empty_like(slabs[0]), torch.ones(len(slabs[0]))
    for slab in slabs:
        count = len(slab)
        torch.mul(slab, slab, out=squares[:count])
        sums[0] += ones[:count] @ slab
        sums[1] += ones[:count] @ squares[:count]
    mean, square = sums.view(2, -1, volume.shape[1]).sum(dim=1) / volume[0, 0].numel()
    return mean, (square - mean.square()).clamp(min=0)


def scale_(
    volume: Tensor,
    scale: Tensor,
    shift: Tensor,
    slope: float = 1.0,
    added: Tensor | None = None,
    added_scale: Tensor | None = None,
) -> Tensor:
    """Return ``leaky_relu(scale volume + shift + added_scale added)`` in place of ``volume``.

    Parameters
    ----------
    volume, added : Tensor
        Maps (1, C, D, H, W), channels last.
    scale, shift, added_scale : Tensor
        Shape (C,); without ``added_scale``, ``added`` is added as it is.
    slope : float
        Of the leaky ReLU; 1 for none.
    """
    rows = _rows(volume)
    width = volume.shape[-1]
    scale, shift = scale.repeat(width), shift.repeat(width)
    others = _slabs(_rows(added)) if added is not None else None
    factor = added_scale.repeat(width) if added_scale is not None else None
    for slab in _slabs(rows):
        torch.addcmul(shift, slab, scale, out=slab)
        if others is not None:
            other = next(others)
            slab.add_(other) if factor is None else slab.addcmul_(other, factor)
        if slope != 1:
            functional.leaky_relu_(slab, slope)
    return volume


def _only(container: nn.Sequential) -> Any:
    """Return the convolution in a container that gives it MONAI's name."""
    return container[0]


def _channels_last(volume: Tensor) -> Tensor:
    """Return a map in this memory format, which small ones lose in a convolution."""
    return volume.contiguous(memory_format=torch.channels_last_3d)


def _rows(volume: Tensor) -> Tensor:
    """Return a channels-last map (1, C, D, H, W) as a matrix (D H, W C) of the same memory."""
    depth, height = volume.shape[2:4]
    return volume.permute(0, 2, 3, 4, 1).view(depth * height, -1)


def _slabs(rows: Tensor) -> Iterator[Tensor]:
    return iter(rows.split(max(1, SLAB // rows.shape[1])))
