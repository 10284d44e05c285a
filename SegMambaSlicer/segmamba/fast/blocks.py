"""The networks' blocks on feature maps. Each has the weights of a plain block, and its output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from segmamba.fast.conv_weights import Convolution, TransposedConv
from segmamba.fast.convolution import convolve, transposed_convolve
from segmamba.fast.maps import FeatureMap, clear_border, empty_map
from segmamba.fast.norm import Term, affine, apply, channel_sums, finish, finish_spread
from segmamba.networks import blocks as plain
from segmamba.networks.blocks import LEAKY_SLOPE
from segmamba.networks.segmamba_v2 import LargeKernelBlock


class Normed:
    """A convolution and the factors of the instance norm after it, which are not applied yet."""

    def __init__(self, convolution: nn.Conv3d, norm: nn.InstanceNorm3d) -> None:
        self.convolution = Convolution.of(convolution, normed=True)
        self.weight, self.bias = affine(norm)
        self.eps = norm.eps

    @property
    def margin(self) -> int:
        """The border that the input needs."""
        return self.convolution.margin

    def __call__(self, x: FeatureMap, slope: float = 1.0) -> Term:
        convolution = self.convolution
        if x.channels == 1 and convolution.kernel == 1 and convolution.stride == 1:
            # Each channel is the input times a number: its norm follows without computing it.
            gains = convolution.weight.flatten().float()
            return Term(x, finish_spread(x, gains, self.weight, self.bias, self.eps), slope)
        answer, sums = convolve(x, self.convolution, sums=True)
        return Term(answer, finish(answer, sums, self.weight, self.bias, self.eps), slope)


class Residual:
    """`segmamba.networks.blocks.ResidualBlock`. The input needs a border of 1."""

    def __init__(self, block: plain.ResidualBlock) -> None:
        layers: Any = block
        self.first = Normed(layers.conv1.conv, layers.norm1)
        self.second = Normed(layers.conv2.conv, layers.norm2)
        self.shortcut = Normed(layers.conv3.conv, layers.norm3) if layers.project else None

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.second.convolution.weight.shape[0]

    def __call__(self, x: FeatureMap, border: int = 0, out: FeatureMap | None = None) -> FeatureMap:
        inner = self.first(x, LEAKY_SLOPE)
        size = inner.map.size
        shortcut = Term(x) if self.shortcut is None else self.shortcut(x)
        del x
        activated = apply(inner, empty_map(inner.map.data, inner.map.batch, size, self.channels, 1))
        del inner
        term = self.second(activated)
        del activated
        target = out or empty_map(term.map.data, term.map.batch, size, self.channels, border)
        return apply(term, target, shortcut, slope=LEAKY_SLOPE)


class Decoder:
    """`segmamba.networks.blocks.DecoderBlock`: the upsampled map and the skip share one buffer."""

    def __init__(self, block: plain.DecoderBlock) -> None:
        layers: Any = block
        self.upsampling = TransposedConv(layers.transp_conv.conv.weight.detach())
        self.residual = Residual(block.conv_block)

    def buffer(self, like: Tensor, batch: int, size: tuple[int, int, int]) -> tuple[FeatureMap, FeatureMap]:
        """Return the buffer for both, and its part for the skip."""
        channels = self.upsampling.weight.shape[1]
        both = empty_map(like, batch, size, 2 * channels, 1)
        clear_border(both)
        return both, both.part(channels, channels)

    def __call__(self, x: FeatureMap, both: FeatureMap, border: int = 0) -> FeatureMap:
        transposed_convolve(x, self.upsampling, both.part(0, self.upsampling.weight.shape[1]))
        return self.residual(both, border)


class LargeKernel:
    """`segmamba.networks.segmamba_v2.LargeKernelBlock`. Takes and gives a map with a border of 2."""

    border = 2

    def __init__(self, block: LargeKernelBlock) -> None:
        layers: Any = block
        self.deep = [Normed(part.block[0], part.block[1]) for part in layers.deep_path]
        self.short = [Normed(part.block[0], part.block[1]) for part in layers.shortcut_path]
        self.gate = layers.se.fc

    def __call__(self, x: FeatureMap) -> FeatureMap:
        deep, short = run_path(self.deep, x), run_path(self.short, x)
        summed = apply(deep, empty_map(x.data, x.batch, x.size, x.channels), short, x)
        depth, height, width = x.size
        means = channel_sums(summed)[:, :, 0].sum(dim=1) / (depth * height * width)
        with torch.autocast(means.device.type, enabled=False):
            gate = self.gate(means.to(x.data.dtype)).float()
        factors = torch.stack([gate, torch.zeros_like(gate)], dim=1)
        return apply(Term(summed, factors), empty_map(x.data, x.batch, x.size, x.channels, self.border))


def run_path(path: list[Normed], x: FeatureMap) -> Term:
    """Convolution, norm and ReLU in turn; the last norm and ReLU are left to the caller."""
    term = path[0](x, 0.0)
    for layer in path[1:]:
        size, channels = term.map.size, term.map.channels
        term = layer(apply(term, empty_map(x.data, x.batch, size, channels, layer.margin)), 0.0)
    return term


class Pointwise:
    """1^3 convolutions as matrix products: a chain of linear layers with GELU between, on (..., C)."""

    def __init__(self, *layers: nn.Conv3d | nn.Linear) -> None:
        self.layers = [
            (layer.weight.detach().flatten(1), None if layer.bias is None else layer.bias.detach()) for layer in layers
        ]

    def __call__(self, values: Tensor) -> Tensor:
        for index, (weight, bias) in enumerate(self.layers):
            values = functional.linear(functional.gelu(values) if index else values, weight, bias)
        return values


class Output:
    """`segmamba.networks.blocks.OutputBlock`: logits (B, C, D, H, W) of a map, in half precision, channels last."""

    def __init__(self, block: plain.OutputBlock) -> None:
        layers: Any = block
        self.convolution = Convolution.of(layers.conv.conv)

    def __call__(self, x: FeatureMap) -> Tensor:
        answer, _ = convolve(x, self.convolution)
        return answer.inner().movedim(-1, 1)
