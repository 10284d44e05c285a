"""Blocks that the networks share.

The residual, encoder, decoder and output blocks are the UNETR blocks of MONAI in structure and parameter names (the
SegMamba family is built from them), written here so that running a model does not need MONAI. Volumes are (batch,
channels, depth, height, width) throughout.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from segmamba.networks import cpu_blocks
from segmamba.networks.cpu_blocks import LEAKY_SLOPE


def pad_to_stride(volume: Tensor, stride: int) -> Tensor:
    """Pad every axis at its end to a multiple of `stride`, at least two of it, by repeating the border.

    Two strides give the coarsest grid two cells an axis: an instance norm over one cell has no variance to divide by.
    """
    extra = [max(2, -(-size // stride)) * stride - size for size in volume.shape[2:]]
    if not any(extra):
        return volume
    depth, height, width = extra
    return functional.pad(volume, (0, width, 0, height, 0, depth), mode="replicate")


def to_channels_last(volume: Tensor) -> Tensor:
    """Return a network's input (B, C, D, H, W) in channels-last memory format on a CPU, but not to train in float32.

    oneDNN convolves in this format and would reorder any other before and after each convolution: in half precision
    that takes as long as the convolutions, in float32 half of it. All layers keep the format of their input.
    """
    if volume.device.type != "cpu" or (torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")):
        return volume
    # `contiguous` would leave a volume of one channel unchanged.
    return torch.empty_like(volume, memory_format=torch.channels_last_3d).copy_(volume)


def volume_of(tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
    """(B, D*H*W, C) tokens -> (B, C, D, H, W), in the memory format of `to_channels_last`."""
    volume = tokens.transpose(1, 2).unflatten(2, size)
    # Otherwise cuDNN computes the gradient of a depth-wise convolution one channel at a time.
    return to_channels_last(volume) if volume.device.type == "cpu" else volume.contiguous()


def instance_norm(
    volume: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Instance norm of (B, C, D, H, W).

    For one item it equals the batch norm, which on a CPU keeps the channels-last format.
    """
    if cpu_blocks.applies_to(volume):
        return cpu_blocks.instance_norm(volume, weight, bias, eps)
    if len(volume) == 1 and volume.device.type == "cpu":
        return functional.batch_norm(volume, None, None, weight, bias, training=True, eps=eps)
    return functional.instance_norm(volume, weight=weight, bias=bias, eps=eps)


class InstanceNorm(nn.InstanceNorm3d):
    """Instance norm over the window itself, without running statistics. See `instance_norm`."""

    def forward(self, volume: Tensor) -> Tensor:
        return instance_norm(volume, self.weight, self.bias, self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis, always in float32: half precision gives NaN around the scan in practice."""

    def forward(self, values: Tensor) -> Tensor:
        normed = functional.layer_norm(
            values.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return normed.to(values.dtype)


class Conv3d(nn.Conv3d):
    """A convolution. On a CPU one of 1^3 is the matrix product that it is: PyTorch's own takes up to ten times as long.

    (B, in_channels, D, H, W) -> (B, out_channels, D / stride, H / stride, W / stride).
    """

    def forward(self, volume: Tensor) -> Tensor:
        if volume.device.type != "cpu" or self.kernel_size != (1, 1, 1):
            return super().forward(volume)
        z, y, x = self.stride
        return cpu_blocks.pointwise(volume[:, :, ::z, ::y, ::x], self.weight, self.bias)


class ConvBlock(nn.Module):
    """Convolution that keeps channels and size, instance norm without parameters, ReLU: the SegMamba family's block."""

    def __init__(self, channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv3d(channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation),
            InstanceNorm(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, volume: Tensor) -> Tensor:
        if cpu_blocks.applies_to(volume):
            return cpu_blocks.normalised_convolution(self.block, volume, slope=0.0)
        return self.block(volume)


def _named(convolution: nn.Module) -> nn.Sequential:
    """MONAI keeps each convolution under the name ``conv`` in a container of its own."""
    return nn.Sequential(OrderedDict(conv=convolution))


class ResidualBlock(nn.Module):
    """conv 3 - norm - leaky ReLU - conv 3 - norm, plus a shortcut (1^3 conv and norm where the shape changes).

    (B, in_channels, D, H, W) -> (B, out_channels, D / stride, H / stride, W / stride); `affine` gives the norms
    parameters.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, affine: bool = False) -> None:
        super().__init__()
        self.conv1 = _named(Conv3d(in_channels, out_channels, 3, stride, padding=1, bias=False))
        self.conv2 = _named(Conv3d(out_channels, out_channels, 3, padding=1, bias=False))
        self.norm1 = InstanceNorm(out_channels, affine=affine)
        self.norm2 = InstanceNorm(out_channels, affine=affine)
        self.project = in_channels != out_channels or stride != 1
        if self.project:
            self.conv3 = _named(Conv3d(in_channels, out_channels, 1, stride, bias=False))
            self.norm3 = InstanceNorm(out_channels, affine=affine)

    def forward(self, volume: Tensor) -> Tensor:
        if cpu_blocks.applies_to(volume):
            return cpu_blocks.residual_block(self, volume)
        shortcut = self.norm3(self.conv3(volume)) if self.project else volume
        inner = functional.leaky_relu(self.norm1(self.conv1(volume)), LEAKY_SLOPE, inplace=True)
        return functional.leaky_relu(self.norm2(self.conv2(inner)) + shortcut, LEAKY_SLOPE, inplace=True)


class EncoderBlock(nn.Module):
    """One residual block under the name that MONAI's ``UnetrBasicBlock`` gives it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layer = ResidualBlock(in_channels, out_channels)

    def forward(self, volume: Tensor) -> Tensor:
        return self.layer(volume)


class DecoderBlock(nn.Module):
    """Double the size, join the skip, one residual block (MONAI's ``UnetrUpBlock``).

    volume (B, in_channels, D, H, W) and skip (B, out_channels, 2D, 2H, 2W) -> shape of the skip.
    """

    def __init__(self, in_channels: int, out_channels: int, affine: bool = False) -> None:
        super().__init__()
        self.transp_conv = _named(nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2, bias=False))
        self.conv_block = ResidualBlock(2 * out_channels, out_channels, affine=affine)

    def forward(self, volume: Tensor, skip: Tensor, last_use: bool = False) -> Tensor:
        """Return what becomes of a map; with ``last_use``, nobody looks at the skip again."""
        if cpu_blocks.applies_to(volume):
            return cpu_blocks.decoder_block(self, volume, skip, last_use)
        return self.conv_block(torch.cat((self.transp_conv(volume), skip), dim=1))


class OutputBlock(nn.Module):
    """1^3 convolution to the logits, under the name that MONAI's ``UnetOutBlock`` gives it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = _named(Conv3d(in_channels, out_channels, 1))

    def forward(self, volume: Tensor) -> Tensor:
        if cpu_blocks.applies_to(volume):
            return cpu_blocks.channels_first(self.conv, volume)
        return self.conv(volume)
