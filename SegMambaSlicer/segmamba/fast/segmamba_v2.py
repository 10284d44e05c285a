"""`segmamba.networks.segmamba_v2.SegMambaV2` on feature maps."""

from __future__ import annotations

from torch import Tensor

from segmamba.fast.blocks import Decoder, LargeKernel, Output, Pointwise, Residual
from segmamba.fast.convolution import Convolution, convolve
from segmamba.fast.maps import FeatureMap, as_map, as_volume, empty_map
from segmamba.fast.norm import Term, apply, finish
from segmamba.networks.blocks import pad_to_stride
from segmamba.networks.segmamba_v2 import STRIDE, Encoder, SegMambaV2


class FastEncoder:
    """`segmamba.networks.segmamba_v2.Encoder`: four maps with a border of 1, at 1/2 to 1/16."""

    def __init__(self, encoder: Encoder) -> None:
        self.downsamplings = [Convolution.of(layer[0], normed=False) for layer in encoder.downsample_layers]  # type: ignore[index, arg-type]
        self.large = [[LargeKernel(block) for block in stage] for stage in encoder.gscs]  # type: ignore[union-attr]
        self.stages = list(encoder.stages)
        self.mlps = [Pointwise(mlp.fc1, mlp.fc2) for mlp in encoder.mlps]  # type: ignore[union-attr, arg-type]

    def __call__(self, x: FeatureMap) -> list[FeatureMap]:
        outputs = []
        for downsampling, blocks, stage, mlp in zip(
            self.downsamplings, self.large, self.stages, self.mlps, strict=True
        ):
            size = tuple(length // 2 for length in x.size)
            channels = downsampling.weight.shape[0]
            down, _ = convolve(x, downsampling)
            x = apply(Term(down), empty_map(down.data, x.batch, down.size, channels, LargeKernel.border))
            for block in blocks:
                x = block(x)
            if len(stage):  # type: ignore[arg-type]
                x = as_map(stage(as_volume(x)), border=1)
            normed = apply(Term(x, finish(x, None)), empty_map(x.data, x.batch, (size[0], size[1], size[2]), channels))
            mixed = FeatureMap(mlp(normed.data), 0, 0, channels)
            outputs.append(apply(Term(mixed), empty_map(x.data, x.batch, mixed.size, channels, 1)))
        return outputs


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
        # Skips are written where the decoders join them.
        buffer, skip = self.decoders[3].buffer(x.data, x.batch, x.size)
        full = self.encoders[0](x, out=skip)
        half, quarter, eighth, sixteenth = self.vit(full)
        volume = self.encoders[4](sixteenth)
        buffers = [buffer]
        for encoder, decoder, level in zip(
            self.encoders[1:4], self.decoders[2::-1], (half, quarter, eighth), strict=True
        ):
            both, skip = decoder.buffer(level.data, level.batch, level.size)
            encoder(level, out=skip)
            buffers.append(both)
        del half, quarter, eighth, sixteenth, full, skip, both, buffer, x
        for index, decoder in enumerate(self.decoders):
            volume = decoder(volume, buffers.pop(), border=1 if index == 3 else 0)
        volume = self.last(volume)
        return self.out(volume)[:, :, :depth, :height, :width]
