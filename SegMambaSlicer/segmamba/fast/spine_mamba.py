"""`segmamba.networks.spine_mamba.SpineMamba` on feature maps; its Mamba layers and shape prior stay PyTorch's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from segmamba.fast.blocks import Decoder, Output, Residual
from segmamba.fast.maps import as_map, as_volume
from segmamba.networks.blocks import pad_to_stride
from segmamba.networks.spine_mamba import STRIDE, SpineMamba


class FastSpineMamba:
    """(B, C, D, H, W), half precision, of any size -> logits (B, classes, D, H, W). See `segmamba.fast.accelerate`."""

    def __init__(self, network: SpineMamba) -> None:
        layers: Any = network
        self.encoders = [Residual(encoder) for encoder in layers.encoders]
        self.mamba_layers = list(layers.mamba_layers)
        self.shape_prior = network.shape_prior
        self.decoders = [Decoder(decoder) for decoder in layers.decoders]
        self.out = Output(network.out)

    def __call__(self, image: Tensor) -> Tensor:
        depth, height, width = image.shape[2:]
        x = as_map(pad_to_stride(image, STRIDE).to(image.dtype), border=1)
        # The finest skip is written where its decoder joins it.
        both, skip = self.decoders[-1].buffer(x.data, x.batch, x.size)
        x = self.encoders[0](x, out=skip)
        scales = []
        for encoder, mamba in zip(self.encoders[1:], self.mamba_layers[1:], strict=True):
            x = encoder(x, border=1)
            if len(mamba):
                x = as_map(mamba(as_volume(x)).to(image.dtype), border=1)
            scales.append(as_volume(x))
        skips = scales[-2::-1]
        if self.shape_prior is not None:
            skips = self.shape_prior(skips)
        del scales
        for decoder, refined in zip(self.decoders[:-1], skips, strict=True):
            size = (refined.shape[2], refined.shape[3], refined.shape[4])
            joined, place = decoder.buffer(x.data, x.batch, size)
            place.inner().copy_(refined.movedim(1, -1))
            x = decoder(x, joined)
        return self.out(self.decoders[-1](x, both))[:, :, :depth, :height, :width]
