"""SegMamba-V2 as its paper's figure shows it (IEEE TMI 2025, doi 10.1109/TMI.2025.3589797), variant ``paper``.

For checkpoints of our own: no released weights have this structure. Each class says what it rests on: the paper's
figure, the authors' code, a related paper, or our decision. Ours are all widths, the inside of the depth-wise blocks,
the decoder and the full-resolution branch, chosen lean: the figure states none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from segmamba.networks.blocks import (
    Conv3d,
    ConvBlock,
    DecoderBlock,
    InstanceNorm,
    LayerNorm,
    OutputBlock,
    ResidualBlock,
    pad_to_stride,
    to_channels_last,
)
from segmamba.networks.mamba import TriOrientedMambaLayer

STRIDE = 16
BRANCH_FRACTION = 4
MLP_FACTOR = 2


class HierarchicalDownsampling(nn.Module):
    """Three parallel stride-2 convolutions (5^3, 3^3, 2^3), joined by a fusion convolution [SegMamba-V2, figure].

    (B, in_channels, D, H, W), even sizes -> (B, out_channels, D/2, H/2, W/2). A quarter of the output width a branch
    and the 1^3 fusion with instance norm are ours.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width = max(1, out_channels // BRANCH_FRACTION)
        self.branches = nn.ModuleList(
            nn.Conv3d(in_channels, width, kernel, stride=2, padding=padding)
            for kernel, padding in ((5, 2), (3, 1), (2, 0))
        )
        self.fusion = Conv3d(3 * width, out_channels, 1, bias=False)
        self.norm = InstanceNorm(out_channels, affine=True)

    def forward(self, volume: Tensor) -> Tensor:
        return self.norm(self.fusion(torch.cat([branch(volume) for branch in self.branches], dim=1)))


class StridedDownsampling(nn.Sequential):
    """One stride-2 convolution (3^3) and a norm in place of `HierarchicalDownsampling`, for ablations [ours]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
            InstanceNorm(out_channels, affine=True),
        )


class DepthwiseBlock(nn.Module):
    """Residual depth-wise convolution block of stages 1 and 2 [SegMamba-V2, figure]; its inside is ours.

    x plus depth-wise 3^3, instance norm, 1^3 to twice the channels, GELU, 1^3 back. (B, C, D, H, W), same shape out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels, channels, 3, padding=1, groups=channels, bias=False),
            InstanceNorm(channels, affine=True),
            Conv3d(channels, MLP_FACTOR * channels, 1),
            nn.GELU(),
            Conv3d(MLP_FACTOR * channels, channels, 1),
        )

    def forward(self, volume: Tensor) -> Tensor:
        return volume + self.layers(volume)


class GatedSpatialConvolution(nn.Module):
    """GSC [authors' code, unused there]: two 3^3 blocks plus a parallel 1^3 block, fused by a 1^3 block, plus x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Sequential(ConvBlock(channels, kernel=3), ConvBlock(channels, kernel=3))
        self.pointwise = ConvBlock(channels, kernel=1)
        self.fusion = ConvBlock(channels, kernel=1)

    def forward(self, volume: Tensor) -> Tensor:
        return volume + self.fusion(self.spatial(volume) + self.pointwise(volume))


class TSMambaBlock(nn.Module):
    """GSC, then x + ToOM(LayerNorm(x)), then x + MLP(LayerNorm(x)) [SegMamba-V2, figure]; keeps (B, C, D, H, W)."""

    def __init__(self, channels: int, orientations: int = 3) -> None:
        super().__init__()
        self.gsc = GatedSpatialConvolution(channels)
        self.mamba = TriOrientedMambaLayer(channels, orientations)
        self.mlp = nn.Sequential(
            LayerNorm(channels),
            nn.Linear(channels, MLP_FACTOR * channels),
            nn.GELU(),
            nn.Linear(MLP_FACTOR * channels, channels),
        )

    def forward(self, volume: Tensor) -> Tensor:
        volume = self.gsc(volume)
        volume = volume + self.mamba(volume)
        return volume + self.mlp(volume.movedim(1, -1)).movedim(-1, 1)


def enhance_certain_features(skip: Tensor) -> Tensor:
    """FUE, feature-level uncertainty estimation [SegMamba v1]: ``skip + skip (1 - u)``, ``u = -p log p``.

    p is the sigmoid of the mean over channels. (B, C, D, H, W), same shape out.
    """
    mean = skip.float().mean(dim=1, keepdim=True)
    uncertainty = -torch.sigmoid(mean) * functional.logsigmoid(mean)
    return skip + skip * (1 - uncertainty).to(skip.dtype)


class SegMambaV2Paper(nn.Module):
    """Hierarchical downsampling and four stages, uncertainty-weighted skips, residual decoder.

    (B, in_channels, D, H, W) of any size -> logits (B, out_channels, D, H, W).

    Parameters
    ----------
    in_channels, out_channels : int
        Input channels, and classes with the background.
    features : tuple of 4 int
        Channels at 1/2, 1/4, 1/8 and 1/16 [ours].
    depths : tuple of 4 int
        Blocks in each stage, as in the released code.
    full_features : int
        Channels at full resolution, where one residual block on the image makes the last skip [ours].
    orientations : int
        3, or 1 for an ablation: the tokens are read in one order only.
    hierarchical : bool
        False for an ablation: one strided convolution in place of the hierarchical downsampling.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        features: tuple[int, int, int, int] = (32, 64, 128, 256),
        depths: tuple[int, int, int, int] = (2, 2, 2, 2),
        full_features: int = 16,
        orientations: int = 3,
        hierarchical: bool = True,
    ) -> None:
        super().__init__()
        ts_mamba = partial(TSMambaBlock, orientations=orientations)
        kinds: tuple[Callable[[int], nn.Module], ...] = (DepthwiseBlock, DepthwiseBlock, ts_mamba, ts_mamba)
        downsampling: type[nn.Module] = HierarchicalDownsampling if hierarchical else StridedDownsampling
        self.downsamplings = nn.ModuleList(
            downsampling(fine, coarse) for fine, coarse in zip((in_channels, *features[:-1]), features, strict=True)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(kind(channels) for _ in range(depth)))
            for kind, channels, depth in zip(kinds, features, depths, strict=True)
        )
        self.full = ResidualBlock(in_channels, full_features, affine=True)
        widths = (full_features, *features)
        self.decoders = nn.ModuleList(
            DecoderBlock(widths[level + 1], widths[level], affine=True) for level in (3, 2, 1, 0)
        )
        self.out = OutputBlock(full_features, out_channels)

    def forward(self, image: Tensor) -> Tensor:
        depth, height, width = image.shape[2:]
        volume = to_channels_last(pad_to_stride(image, STRIDE))
        skips = [self.full(volume)]
        for downsample, stage in zip(self.downsamplings, self.stages, strict=True):
            volume = stage(downsample(volume))
            skips.append(volume)
        volume = skips.pop()
        for decoder in self.decoders:
            volume = decoder(volume, enhance_certain_features(skips.pop()))
        return self.out(volume)[:, :, :depth, :height, :width]
