"""Weights of convolutions, packed once for the kernels of `segmamba.fast.conv_kernels`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(eq=False)
class Convolution:
    """The weights of a convolution.

    Attributes
    ----------
    weight : Tensor
        Shape (out, in, K, K, K), half precision.
    bias : Tensor or None
        Shape (out,), float32.
    stride, dilation : int
    margin : int
        Padding, in voxels: how far beyond its edge a map is read.
    packed : dict
        Cache of the packed weights.
    """

    weight: Tensor
    bias: Tensor | None
    stride: int = 1
    dilation: int = 1
    margin: int = 1
    packed: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: nn.Conv3d, normed: bool = False) -> Convolution:
        """Take a layer's weights; without the bias if a norm follows, which would subtract it."""
        bias = None if layer.bias is None or normed else layer.bias.detach().float()
        weight = layer.weight.detach().contiguous(memory_format=torch.channels_last_3d)
        return cls(weight, bias, layer.stride[0], layer.dilation[0], int(layer.padding[0]))

    @property
    def kernel(self) -> int:
        """Edge of the kernel."""
        return self.weight.shape[2]

    def pack_gemm(self, block: int) -> Tensor:
        """Return the weights for `gemm_kernel`: (K^3 in, out), zero-padded to a multiple of ``block`` rows."""
        if (block, 0) not in self.packed:
            rows = self.weight.permute(2, 3, 4, 1, 0).flatten(0, 3)
            self.packed[block, 0] = functional.pad(rows, (0, 0, 0, -len(rows) % block)).contiguous()
        return self.packed[block, 0]

    def pack_rotated_planes(self, block: int, group: int) -> Tensor:
        """Return the weights for `march_kernel`: (out / group, K, K^2 in, columns), zero-padded.

        The second axis has the K rotations of the planes of taps; see the kernel for why. The rows are padded to a
        multiple of ``block``, the columns as `column_blocks` says.
        """
        if (block, group) not in self.packed:
            edge = self.kernel
            planes = self.weight.permute(2, 3, 4, 1, 0).flatten(1, 3)  # (K, K^2 in, out)
            rotations = []
            for rotation in range(edge):
                order = [(rotation - plane) % edge for plane in range(edge)]
                # (K, rows, parts, group) to (parts, rows, K group)
                parts = planes[order].unflatten(2, (-1, group)).permute(2, 1, 0, 3).flatten(2)
                rotations.append(parts)
            packed = torch.stack(rotations, dim=1)
            padding = (0, sum(column_blocks(edge * group)) - edge * group, 0, -packed.shape[2] % block)
            self.packed[block, group] = functional.pad(packed, padding).contiguous()
        return self.packed[block, group]


@dataclass(eq=False)
class TransposedConv:
    """The weights of a transposed convolution with kernel and stride 2: (in, out, 2, 2, 2), half precision."""

    weight: Tensor
    packed: dict[int, Tensor] = field(default_factory=dict)

    def pack_gemm(self, block: int) -> Tensor:
        """Return the weights for `double_kernel`: (8, in, out), zero-padded to a multiple of ``block`` rows."""
        if block not in self.packed:
            channels, out = self.weight.shape[:2]
            rows = self.weight.permute(2, 3, 4, 0, 1).reshape(8, channels, out)
            self.packed[block] = functional.pad(rows, (0, 0, 0, -channels % block)).contiguous()
        return self.packed[block]


def column_blocks(count: int) -> tuple[int, int]:
    """Return two powers of two, the second may be 0, that hold ``count`` columns: Triton's blocks have such widths."""
    first = 1 << (count.bit_length() - 1)
    rest = count - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest else 0
