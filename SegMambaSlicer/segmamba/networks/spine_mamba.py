"""SpineMamba (arXiv 2408.15887; Comput. Med. Imaging Graph. 2025, 102531), our reconstruction.

No code or weights of SpineMamba are public. Stated in its abstract: a U-shaped hybrid of convolutions and visual
state-space blocks, residual visual Mamba layers for the deep features, and a learnable shape prior module that
refines the boundaries. The layer follows LightM-UNet (residual form) and VMamba (inner block), the prior explicit
shape priors; widths, depths, scan orders and the place of every block are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from segmamba.networks.blocks import (
    DecoderBlock,
    LayerNorm,
    OutputBlock,
    ResidualBlock,
    pad_to_stride,
    to_channels_last,
    volume_of,
)
from segmamba.networks.mamba import SelectiveSSM, sum_of_orders, three_orders
from segmamba.networks.shape_prior import ShapePrior

STRIDE = 16
# Channels of a vertebra network's answer: logits of background, vertebra and sacrum; the way from each voxel to its
# vertebra's centre, z, y, x in units of 20 mm; and, in the first of two stages, logits of the 26 levels (VerSe) and the
# logit of a rib.
MASK, OFFSET, LEVELS, RIB = slice(0, 3), slice(3, 6), slice(6, 32), slice(32, 33)
OFFSET_UNIT_MM = 20.0


class VisualStateSpace(nn.Module):
    """VMamba's inner block in 3-D: depth-wise convolution, scan in three orders, gate.

    (B, D*H*W, C) tokens of a (D, H, W) volume -> the same shape. The inner width equals C; the orders share their
    weights [ours].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(channels, 2 * channels)
        self.conv = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.ssm = SelectiveSSM(channels, rank=-(-channels // 16))
        self.norm = LayerNorm(channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
        inner, gate = self.in_proj(tokens).chunk(2, dim=-1)
        volume = functional.silu(self.conv(volume_of(inner, size)))
        scanned = sum_of_orders(self.ssm.scan(three_orders(volume)), size)
        normed = self.norm(scanned.flatten(2).transpose(1, 2))
        return self.out_proj(normed * functional.silu(gate.float()))


class ResidualVisualMamba(nn.Module):
    """Residual visual Mamba layer (LightM-UNet): ``m = VSS(LN(x)) + s x``, ``y = Linear(LN(m))``. (B, C, D, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.state_space = VisualStateSpace(channels)
        self.scale = nn.Parameter(torch.ones(()))
        self.mixed_norm = LayerNorm(channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, volume: Tensor) -> Tensor:
        depth, height, width = volume.shape[2:]
        size = (depth, height, width)
        tokens = volume.flatten(2).transpose(1, 2)
        mixed = self.state_space(self.norm(tokens), size) + self.scale * tokens
        return volume_of(self.project(self.mixed_norm(mixed)), size)


class SpineMamba(nn.Module):
    """Convolutions at 1, 1/2, 1/4; residual visual Mamba at 1/8 and 1/16; shape prior on the skips at 1/8, 1/4, 1/2.

    (B, in_channels, D, H, W) of any size -> logits (B, out_channels, D, H, W).

    Parameters
    ----------
    in_channels, out_channels : int
        Input and output channels.
    features : tuple of 5 int
        Channels of the five scales, fine to coarse.
    depths : tuple of 2 int
        Residual visual Mamba layers at 1/8 and at 1/16.
    grid : tuple of 3 int
        Cells (z, y, x) of the shape prior.
    shape_prior : bool
        Without it the skips stay as they are: the ablation of the module.
    prior_tokens : int, optional
        Token maps of the shape prior; by default one an output channel.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 27,
        features: tuple[int, int, int, int, int] = (24, 48, 96, 192, 256),
        depths: tuple[int, int] = (2, 2),
        grid: tuple[int, int, int] = (10, 6, 6),
        shape_prior: bool = True,
        prior_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([ResidualBlock(in_channels, features[0], affine=True)])
        for fine, coarse in zip(features[:-1], features[1:], strict=True):
            self.encoders.append(ResidualBlock(fine, coarse, stride=2, affine=True))
        layers = (0, 0, 0, *depths)
        self.mamba_layers = nn.ModuleList(
            nn.Sequential(*(ResidualVisualMamba(width) for _ in range(count)))
            for width, count in zip(features, layers, strict=True)
        )
        self.shape_prior = ShapePrior(features[3:0:-1], prior_tokens or out_channels, grid) if shape_prior else None
        self.decoders = nn.ModuleList(
            DecoderBlock(features[level + 1], features[level], affine=True) for level in (3, 2, 1, 0)
        )
        self.out = OutputBlock(features[0], out_channels)

    def forward(self, image: Tensor) -> Tensor:
        depth, height, width = image.shape[2:]
        volume = to_channels_last(pad_to_stride(image, STRIDE))
        scales = []
        for encoder, mamba in zip(self.encoders, self.mamba_layers, strict=True):
            volume = mamba(encoder(volume))
            scales.append(volume)
        volume = scales.pop()
        finest, *skips = scales
        skips.reverse()
        if self.shape_prior is not None:
            skips = self.shape_prior(skips)
        del scales  # their memory goes as the decoders use them up
        for decoder, skip in zip(self.decoders, (*skips, finest), strict=True):
            volume = decoder(volume, skip, last_use=True)
        return self.out(volume)[:, :, :depth, :height, :width]
