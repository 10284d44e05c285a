"""Instance norm of feature maps, with the activations and sums that follow it, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segmamba.fast import kernels
from segmamba.fast.kernels import specialize
from segmamba.fast.maps import FeatureMap
from segmamba.scan.launching import launch

APPLY_ROWS = 64
# Voxels that a program sums at a time, how many times at most, and programs that fill a GPU.
SUM_ROWS, SUM_TURNS = 128, 8
FULL = 1056
FINISH_COLUMNS, FINISH_ROWS = 8, 512


def channel_sums(x: FeatureMap) -> Tensor:
    """Return the sums and the sums of squares of the channels, in parts: (B, parts, 2, C), float32."""

    def kernel() -> Tensor:
        norm_kernels = kernels.triton_kernels()[1]  # type: ignore[index]
        voxels = x.strides[0]  # with the border, whose zeros add nothing
        columns = min(64, max(16, 1 << (x.channels - 1).bit_length()))
        across = -(-x.channels // columns)
        turns = max(1, min(SUM_TURNS, voxels * across * x.batch // (SUM_ROWS * FULL)))
        parts = -(-voxels // (SUM_ROWS * turns))
        sums = torch.empty((x.batch, parts, 2, x.channels), dtype=torch.float32, device=x.data.device)
        launch(
            norm_kernels.sums_kernel,
            (parts, across, x.batch),
            x.start(x.border),
            sums,
            voxels,
            turns,
            *specialize(x.channels, x.stored),
            columns,
            SUM_ROWS,
        )
        return sums

    def plain() -> Tensor:
        values = x.inner().float()
        return torch.stack([values.sum(dim=(1, 2, 3)), values.square().sum(dim=(1, 2, 3))], dim=1)[:, None]

    return kernels.run("channel sums", kernel, plain, x.data.device)


def finish(
    x: FeatureMap, sums: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Return the factors (B, 2, C), float32, of the instance norm of a map: ``factors[0] x + factors[1]``.

    ``sums`` are those of `channel_sums`, taken here where None.
    """
    parts = channel_sums(x) if sums is None else sums
    depth, height, width = x.size
    count = depth * height * width
    device = x.data.device

    def kernel() -> Tensor:
        norm_kernels = kernels.triton_kernels()[1]  # type: ignore[index]
        factors = torch.empty((x.batch, 2, x.channels), dtype=torch.float32, device=device)
        launch(
            norm_kernels.finish_kernel,
            (-(-x.channels // FINISH_COLUMNS), x.batch),
            parts,
            weight,
            bias,
            factors,
            parts.shape[1],
            count,
            eps,
            *specialize(x.channels),
            FINISH_COLUMNS,
            FINISH_ROWS,
            num_warps=8,
        )
        return factors

    def plain() -> Tensor:
        total = parts.sum(dim=1)
        mean = total[:, 0] / count
        scale = (total[:, 1] / count - mean.square()).clamp(min=0).add(eps).rsqrt()
        shift = -mean * scale
        if weight is not None and bias is not None:
            scale, shift = scale * weight, shift * weight + bias
        return torch.stack([scale, shift], dim=1)

    return kernels.run("norm", kernel, plain, device)


@dataclass(frozen=True, eq=False)
class Term:
    """A map with what is done to it before it is added: a norm's factors, then a leaky ReLU (a slope of 1 is none).

    A map of one channel with the factors of several stands for as many.
    """

    map: FeatureMap
    factors: Tensor | None = None
    slope: float = 1.0


def apply(
    first: Term, out: FeatureMap, second: Term | None = None, third: FeatureMap | None = None, slope: float = 1.0
) -> FeatureMap:
    """Write ``leaky_relu(first + second + third)`` to ``out``, and zeros to its border."""
    x = first.map

    def kernel() -> FeatureMap:
        norm_kernels = kernels.triton_kernels()[1]  # type: ignore[index]
        depth, height, width = x.size
        other = second or first
        added = third or x
        border = out.border
        voxels = (height + 2 * border) * (width + 2 * border)
        columns = min(64, max(16, 1 << (x.channels - 1).bit_length()))
        unused = x.data
        grid = (-(-voxels // APPLY_ROWS) * -(-x.channels // columns), depth + 2 * border, x.batch)
        launch(
            norm_kernels.apply_kernel, grid,
            x.start(), unused if first.factors is None else first.factors,
            other.map.start(), unused if other.factors is None else other.factors, added.start(), out.start(),
            depth, height, width, border, *x.strides, *other.map.strides, *added.strides, *out.strides,
            *specialize(x.channels, x.stored, other.map.stored, added.stored, out.stored),
            first.factors is not None, other.factors is not None, second is not None, third is not None,
            other.map.channels < x.channels,
            first.slope, other.slope, slope, APPLY_ROWS, columns,
            num_warps=4,
        )  # fmt: skip
        return out

    def plain() -> FeatureMap:
        total = _plain_term(first)
        if second is not None:
            total = total + _plain_term(second)
        if third is not None:
            total = total + third.inner()
        _zero_border(out)
        out.inner().copy_(torch.nn.functional.leaky_relu(total, slope))
        return out

    return kernels.run("norm and activation", kernel, plain, x.data.device)


def _plain_term(term: Term) -> Tensor:
    values = term.map.inner().float()
    if term.factors is not None:
        values = values * term.factors[:, 0, None, None, None] + term.factors[:, 1, None, None, None]
    return torch.nn.functional.leaky_relu(values, term.slope)


def _zero_border(out: FeatureMap) -> None:
    part = out.data[..., out.first : out.first + out.channels]
    for axis in range(1, 4) if out.border else ():
        part.narrow(axis, 0, out.border).zero_()
        part.narrow(axis, part.shape[axis] - out.border, out.border).zero_()


def affine(layer: nn.InstanceNorm3d) -> tuple[Tensor | None, Tensor | None]:
    """Return a norm's weight and bias in float32, or None for one without."""
    if layer.weight is None:
        return None, None
    return layer.weight.detach().float(), layer.bias.detach().float()


def finish_spread(
    x: FeatureMap, gains: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Return the factors (B, 2, C) of the norm of ``x`` times each of the gains (C,), for a map of one channel."""
    depth, height, width = x.size
    total = channel_sums(x).sum(dim=1)[:, :, 0] / (depth * height * width)
    mean = total[:, :1]
    variance = (total[:, 1:] - mean.square()).clamp(min=0)
    scale = gains * (gains.square() * variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return torch.stack([scale, shift if bias is None else shift + bias], dim=1)
