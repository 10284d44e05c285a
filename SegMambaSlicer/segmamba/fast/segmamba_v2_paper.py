"""`segmamba.networks.segmamba_v2_paper.SegMambaV2Paper` on feature maps; its Mamba layers stay PyTorch's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from segmamba.fast.blocks import Decoder, Normed, Output, Pointwise, Residual, run_path
from segmamba.fast.conv_weights import Convolution
from segmamba.fast.convolution import convolve, depthwise
from segmamba.fast.maps import FeatureMap, as_map, as_volume, empty_map
from segmamba.fast.norm import Term, affine, apply, finish
from segmamba.networks import segmamba_v2_paper as plain
from segmamba.networks.blocks import pad_to_stride


class Downsampling:
    """`HierarchicalDownsampling` or `StridedDownsampling`: the branches share one buffer."""

    border = 2

    def __init__(self, block: nn.Module) -> None:
        layers: Any = block
        if isinstance(block, plain.HierarchicalDownsampling):
            self.branches = [Convolution.of(branch) for branch in layers.branches]
            self.last = Normed(layers.fusion, layers.norm)
        else:
            self.branches = []
            self.last = Normed(layers[0], layers[1])

    def __call__(self, x: FeatureMap) -> Term:
        if self.branches:
            widths = [branch.weight.shape[0] for branch in self.branches]
            depth, height, width = (length // 2 for length in x.size)
            joined = empty_map(x.data, x.batch, (depth, height, width), sum(widths))
            for index, branch in enumerate(self.branches):
                convolve(x, branch, out=joined.part(sum(widths[:index]), widths[index]))
            x = joined
        return self.last(x)


class Depthwise:
    """`DepthwiseBlock`. Takes a map with a border of at least 1."""

    def __init__(self, block: plain.DepthwiseBlock) -> None:
        layers: Any = block.layers
        self.weight: Tensor = layers[0].weight.detach()
        self.gain, self.bias = affine(layers[1])
        self.mlp = Pointwise(layers[2], layers[4])

    def __call__(self, x: FeatureMap) -> FeatureMap:
        filtered = depthwise(x, self.weight)
        factors = finish(filtered, None, self.gain, self.bias)
        normed = apply(Term(filtered, factors), empty_map(x.data, x.batch, x.size, x.channels))
        mixed = FeatureMap(self.mlp(normed.data), 0, 0, x.channels)
        return apply(Term(mixed), empty_map(x.data, x.batch, x.size, x.channels, Downsampling.border), third=x)


class TSMamba:
    """`TSMambaBlock`."""

    def __init__(self, block: plain.TSMambaBlock) -> None:
        gsc: Any = block.gsc
        self.spatial = [Normed(part.block[0], part.block[1]) for part in gsc.spatial]
        self.pointwise = Normed(gsc.pointwise.block[0], gsc.pointwise.block[1])
        self.fusion = Normed(gsc.fusion.block[0], gsc.fusion.block[1])
        self.mamba, self.mlp = block.mamba, block.mlp

    def __call__(self, x: FeatureMap) -> FeatureMap:
        spatial, pointwise = run_path(self.spatial, x), self.pointwise(x, 0.0)
        summed = apply(spatial, empty_map(x.data, x.batch, x.size, x.channels), pointwise)
        fused = self.fusion(summed, 0.0)
        volume = as_volume(apply(fused, empty_map(x.data, x.batch, x.size, x.channels), third=x))
        volume = volume + self.mamba(volume)
        volume = volume + self.mlp(volume.movedim(1, -1)).movedim(-1, 1)
        return as_map(volume.to(x.data.dtype), Downsampling.border)


class FastSegMambaV2Paper:
    """(B, C, D, H, W), half precision, of any size -> logits (B, classes, D, H, W). See `segmamba.fast.accelerate`."""

    def __init__(self, network: plain.SegMambaV2Paper) -> None:
        self.downsamplings = [Downsampling(block) for block in network.downsamplings]
        stages: Any = network.stages
        self.stages = [[_block(block) for block in stage] for stage in stages]
        self.full = Residual(network.full)
        decoders: Any = network.decoders
        self.decoders = [Decoder(decoder) for decoder in decoders]
        self.out = Output(network.out)

    def __call__(self, image: Tensor) -> Tensor:
        depth, height, width = image.shape[2:]
        x = as_map(pad_to_stride(image, plain.STRIDE).to(image.dtype), Downsampling.border)
        skips = [self.full(x)]
        for downsampling, stage in zip(self.downsamplings, self.stages, strict=True):
            term = downsampling(x)
            x = apply(term, empty_map(x.data, x.batch, term.map.size, term.map.channels, Downsampling.border))
            for block in stage:
                x = block(x)
            skips.append(x)
        x = skips.pop()
        for decoder in self.decoders:
            skip = skips.pop()
            both, place = decoder.buffer(x.data, x.batch, skip.size)
            place.inner().copy_(plain.enhance_certain_features(as_volume(skip)).movedim(1, -1))
            x = decoder(x, both)
        return self.out(x)[:, :, :depth, :height, :width]


def _block(block: nn.Module) -> Depthwise | TSMamba:
    if isinstance(block, plain.DepthwiseBlock):
        return Depthwise(block)
    assert isinstance(block, plain.TSMambaBlock)
    return TSMamba(block)
