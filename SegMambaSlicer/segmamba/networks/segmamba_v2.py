"""SegMamba-V2 as released (IEEE TMI 2025, doi 10.1109/TMI.2025.3589797), variant ``release``.

The structure and the parameter names are those of the authors' released code, so their checkpoints load strictly. The
paper's figure shows another network: :mod:`segmamba.networks.segmamba_v2_paper`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from segmamba.networks.blocks import (
    Conv3d,
    ConvBlock,
    DecoderBlock,
    EncoderBlock,
    OutputBlock,
    instance_norm,
    pad_to_stride,
    to_channels_last,
)
from segmamba.networks.mamba import TriOrientedMambaLayer

STRIDE = 16
# Stages (of 0 to 3) with Mamba layers; the finer ones have convolutions only.
MAMBA_STAGES = (2, 3)


class SqueezeExcite(nn.Module):
    """Scale the channels by a gate computed from their means. (B, C, D, H, W), same shape out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 8), nn.ReLU(), nn.Linear(channels // 8, channels), nn.Sigmoid()
        )

    def forward(self, volume: Tensor) -> Tensor:
        return volume * self.fc(volume.mean(dim=(2, 3, 4)))[:, :, None, None, None]


class LargeKernelBlock(nn.Module):
    """A deep path (5^3, 3^3, dilated 3^3) plus a shortcut path (3^3, 1^3) plus the input, then squeeze-excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deep_path = nn.Sequential(
            ConvBlock(channels, kernel=5), ConvBlock(channels, kernel=3), ConvBlock(channels, kernel=3, dilation=2)
        )
        self.shortcut_path = nn.Sequential(ConvBlock(channels, kernel=3), ConvBlock(channels, kernel=1))
        self.se = SqueezeExcite(channels)

    def forward(self, volume: Tensor) -> Tensor:
        return self.se(self.deep_path(volume) + self.shortcut_path(volume) + volume)


class TriOrientedResidual(TriOrientedMambaLayer):
    """x plus the Mamba of its layer norm over three orders."""

    def forward(self, volume: Tensor) -> Tensor:
        return volume + super().forward(volume)


class PointwiseMLP(nn.Module):
    """1^3 convolutions C -> 2C -> C with GELU between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = Conv3d(channels, 2 * channels, 1)
        self.fc2 = Conv3d(2 * channels, channels, 1)

    def forward(self, volume: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(volume)))


class Encoder(nn.Module):
    """Four stages of downsampling, large-kernel blocks and, in the deeper two, tri-orientated Mamba.

    (B, feat_size[0], D, H, W) -> four volumes at 1/2, 1/4, 1/8 and 1/16 with the channels of `feat_size`.
    """

    def __init__(self, depths: tuple[int, ...], feat_size: tuple[int, ...]) -> None:
        super().__init__()
        inputs = (feat_size[0], *feat_size[:-1])
        self.downsample_layers = nn.ModuleList(
            nn.Sequential(nn.Conv3d(fine, coarse, 3, stride=2, padding=1))
            for fine, coarse in zip(inputs, feat_size, strict=True)
        )
        self.gscs = nn.ModuleList(
            nn.Sequential(*(LargeKernelBlock(channels) for _ in range(depth)))
            for channels, depth in zip(feat_size, depths, strict=True)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(TriOrientedResidual(channels) for _ in range(depth if stage in MAMBA_STAGES else 0)))
            for stage, (channels, depth) in enumerate(zip(feat_size, depths, strict=True))
        )
        self.mlps = nn.ModuleList(PointwiseMLP(channels) for channels in feat_size)

    def forward(self, volume: Tensor) -> list[Tensor]:
        outputs = []
        for downsample, gsc, stage, mlp in zip(self.downsample_layers, self.gscs, self.stages, self.mlps, strict=True):
            volume = stage(gsc(downsample(volume)))
            outputs.append(mlp(instance_norm(volume)))
        return outputs


class SegMambaV2(nn.Module):
    """The released SegMamba-V2: 138.77 M parameters with 1 input and 2 output channels.

    (B, in_channels, D, H, W) of any size -> logits (B, out_channels, D, H, W).

    Parameters
    ----------
    in_channels, out_channels : int
        Input and output channels.
    depths : tuple of 4 int
        Blocks in each stage.
    feat_size : tuple of 4 int
        Channels of the stages; the first one also of the full resolution. Multiples of 8.
    hidden_size : int
        Channels of the bottleneck.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        depths: tuple[int, int, int, int] = (2, 2, 2, 2),
        feat_size: tuple[int, int, int, int] = (48, 96, 192, 384),
        hidden_size: int = 768,
    ) -> None:
        super().__init__()
        first, second, third, fourth = feat_size
        self.vit = Encoder(depths, feat_size)
        self.encoder1 = EncoderBlock(in_channels, first)
        self.encoder2 = EncoderBlock(first, second)
        self.encoder3 = EncoderBlock(second, third)
        self.encoder4 = EncoderBlock(third, fourth)
        self.encoder5 = EncoderBlock(fourth, hidden_size)
        self.decoder5 = DecoderBlock(hidden_size, fourth)
        self.decoder4 = DecoderBlock(fourth, third)
        self.decoder3 = DecoderBlock(third, second)
        self.decoder2 = DecoderBlock(second, first)
        self.decoder1 = EncoderBlock(first, first)
        self.out = OutputBlock(first, out_channels)

    def forward(self, image: Tensor) -> Tensor:
        depth, height, width = image.shape[2:]
        full = self.encoder1(to_channels_last(pad_to_stride(image, STRIDE)))
        half, quarter, eighth, sixteenth = self.vit(full)
        volume = self.decoder5(self.encoder5(sixteenth), self.encoder4(eighth), last_use=True)
        volume = self.decoder4(volume, self.encoder3(quarter), last_use=True)
        volume = self.decoder3(volume, self.encoder2(half), last_use=True)
        volume = self.decoder1(self.decoder2(volume, full, last_use=True))
        return self.out(volume)[:, :, :depth, :height, :width]
