"""`segmamba.networks.segmamba_v2.SegMambaV2` on feature maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segmamba.fast.blocks import Decoder, LargeKernel, Output, Pointwise, Residual
from segmamba.fast.conv_weights import Convolution
from segmamba.fast.convolution import convolve
from segmamba.fast.maps import FeatureMap, as_map, as_volume, empty_map
from segmamba.fast.norm import Term, apply, finish
from segmamba.networks.blocks import pad_to_stride
from segmamba.networks.segmamba_v2 import STRIDE, Encoder, SegMambaV2


class FastEncoder:
    """`segmamba.networks.segmamba_v2.Encoder`: four maps with a border of 1, at 1/2 to 1/16."""

    def __init__(self, encoder: Encoder) -> None:
        layers: Any = encoder
        self.downsamplings = [Convolution.of(layer[0]) for layer in layers.downsample_layers]
        self.large = [[LargeKernel(block) for block in stage] for stage in layers.gscs]
        self.stages = list(layers.stages)
        self.mlps = [Pointwise(mlp.fc1, mlp.fc2) for mlp in layers.mlps]

    def __call__(self, full: list[FeatureMap]) -> list[FeatureMap]:
        outputs: list[FeatureMap] = []
        x = full[0]
        for downsampling, blocks, stage, mlp in zip(
            self.downsamplings, self.large, self.stages, self.mlps, strict=True
        ):
            x = _downsampled(x.items() if outputs else full, downsampling)
            for block in blocks:
                x = block(x)
            if len(stage):
                x = as_map(stage(as_volume(x)), border=1)
            normed = apply(Term(x, finish(x, None)), empty_map(x.data, x.batch, x.size, x.channels))
            mixed = FeatureMap(mlp(normed.data), 0, 0, x.channels)
            outputs.append(apply(Term(mixed), empty_map(x.data, x.batch, x.size, x.channels, 1)))
        return outputs


def _downsampled(items: list[FeatureMap], downsampling: Convolution) -> FeatureMap:
    """Return the items' strided convolution as one batch, with the border that the large kernels need."""
    depth, height, width = (length // 2 for length in items[0].size)
    channels = downsampling.weight.shape[0]
    down = empty_map(items[0].data, len(items), (depth, height, width), channels)
    for item, place in zip(items, down.items(), strict=True):
        convolve(item, downsampling, out=place)
    return apply(Term(down), empty_map(down.data, down.batch, down.size, channels, LargeKernel.border))


class FastSegMambaV2:
    """(B, C, D, H, W), half precision, of any size -> logits (B, classes, D, H, W). See `segmamba.fast.accelerate`."""

    def __init__(self, network: SegMambaV2) -> None:
        self.vit = FastEncoder(network.vit)
        self.encoders = [
            Residual(encoder.layer)
            for encoder in (network.encoder1, network.encoder2, network.encoder3, network.encoder4, network.encoder5)
        ]
        self.decoders = [
            Decoder(decoder) for decoder in (network.decoder5, network.decoder4, network.decoder3, network.decoder2)
        ]
        self.last = Residual(network.decoder1.layer)
        self.out = Output(network.out)

    def __call__(self, image: Tensor) -> Tensor:
        depth, height, width = image.shape[2:]
        x = as_map(pad_to_stride(image, STRIDE).to(image.dtype), border=1)
        finest, last = self.decoders[3], []
        # At full resolution, where one item fills a GPU, they go one by one: it halves the memory.
        joined = []
        for item in x.items():
            # Skips are written where the decoders join them.
            both, skip = finest.buffer(x.data, 1, x.size)
            self.encoders[0](item, out=skip)
            joined.append((both, skip))
        levels = self.vit([skip for _, skip in joined])
        volume = self.encoders[4](levels.pop())
        for decoder, encoder in zip(self.decoders[:3], self.encoders[3:0:-1], strict=True):
            level = levels.pop()
            both, skip = decoder.buffer(level.data, level.batch, level.size)
            encoder(level, out=skip)
            volume = decoder(volume, both)
        del both, skip, level
        for item in volume.items():
            last.append(self.out(self.last(finest(item, joined.pop(0)[0], border=1))))
        return torch.cat(last)[:, :, :depth, :height, :width]
