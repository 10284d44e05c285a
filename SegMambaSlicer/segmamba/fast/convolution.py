"""Convolutions of feature maps: the choice of a kernel, and PyTorch's operations for the same."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from segmamba.fast import kernels
from segmamba.fast.conv_weights import Convolution, TransposedConv
from segmamba.fast.gemm import launch_gemm
from segmamba.fast.kernels import specialize
from segmamba.fast.maps import FeatureMap, empty_map
from segmamba.fast.march import launch_march
from segmamba.fast.tiles import choose_tiles
from segmamba.scan.launching import launch


def convolve(
    x: FeatureMap,
    convolution: Convolution,
    sums: bool = False,
    gelu: bool = False,
    out: FeatureMap | None = None,
) -> tuple[FeatureMap, Tensor | None]:
    """Convolve with padding, which keeps the size at stride 1.

    Parameters
    ----------
    x : FeatureMap
        Its border is at least as wide as the padding.
    convolution : Convolution
    sums : bool
        Also return the sums for `segmamba.fast.norm.finish`, (B, parts, 2, out), or None if the kernel has none.
    gelu : bool
        Apply a GELU.
    out : FeatureMap, optional
        The result; by default a new map without a border.
    """
    stride = convolution.stride
    size = tuple((length - 1) // stride + 1 for length in x.size)

    def kernel() -> tuple[FeatureMap, Tensor | None]:
        target = out or empty_map(x.data, x.batch, (size[0], size[1], size[2]), convolution.weight.shape[0])
        if tiles.march and convolution.bias is None and not gelu:
            return target, launch_march(x, convolution, target, tiles, sums)
        return target, launch_gemm(x, convolution, target, tiles, sums, gelu)

    voxels = size[0] * size[1] * size[2]
    if out is None and not gelu and convolution.bias is None and library_is_faster(convolution):
        return _library(x, convolution), None
    tiles = choose_tiles(convolution, voxels)
    return kernels.run(
        f"convolution {convolution.kernel}^3",
        kernel,
        lambda: (_plain(x, convolution, gelu, out), None),
        x.data.device,
    )


def library_is_faster(convolution: Convolution) -> bool:
    """Say whether cuDNN or cuBLAS is faster for a layer, measured on an H200: see Docs/contributing/performance.md."""
    if convolution.stride != 1 or convolution.dilation != 1:
        return False
    channels, edge = convolution.weight.shape[1:3]
    return channels >= 192 and edge == 3 or channels >= 16 and edge == 1


def _library(x: FeatureMap, convolution: Convolution) -> FeatureMap:
    """A 1^3 convolution as a matrix product over map and border, whose zeros stay zeros; other ones by cuDNN."""
    if convolution.kernel > 1:
        return _plain(x, convolution, gelu=False, out=None)
    answer = functional.linear(x.data[..., x.first : x.first + x.channels], convolution.weight.flatten(1))
    return FeatureMap(answer, x.border, 0, answer.shape[-1])


def _plain(x: FeatureMap, convolution: Convolution, gelu: bool, out: FeatureMap | None) -> FeatureMap:
    """PyTorch's convolution, which is cuDNN's on a GPU."""
    margin, size = convolution.margin, x.size
    low = x.border - margin
    read = x.data[..., x.first : x.first + x.channels]
    for axis in range(3):
        read = read.narrow(axis + 1, low, size[axis] + 2 * margin)
    bias = None if convolution.bias is None else convolution.bias.to(x.data.dtype)
    answer = functional.conv3d(
        read.movedim(-1, 1), convolution.weight, bias, convolution.stride, dilation=convolution.dilation
    )
    answer = functional.gelu(answer) if gelu else answer
    answer = answer.movedim(1, -1).to(x.data.dtype)
    if out is None:
        return FeatureMap(answer.contiguous(), 0, 0, answer.shape[-1])
    out.inner().copy_(answer)
    return out


def transposed_convolve(x: FeatureMap, convolution: TransposedConv, out: FeatureMap) -> None:
    """Write a transposed convolution of ``x``, a map of twice its size, to ``out``."""

    def kernel() -> None:
        conv_kernels = kernels.triton_kernels()[0]  # type: ignore[index]
        channels, out_channels = convolution.weight.shape[:2]
        depth, height, width = x.size
        columns = min(128, max(16, 1 << (out_channels - 1).bit_length()))
        rows, block = 128, 32 if channels % 32 == 0 else 16
        grid = (8 * -(-out_channels // columns), -(-depth * height * width // rows), x.batch)
        launch(
            conv_kernels.double_kernel, grid,
            x.start(), convolution.pack_gemm(block), out.start(), depth, height, width, *x.strides, *out.strides,
            *specialize(channels, x.stored, out_channels, out.stored), rows, columns, block,
            num_warps=8 if columns == 128 else 4, num_stages=3,
        )  # fmt: skip

    def plain() -> None:
        answer = functional.conv_transpose3d(x.inner().movedim(-1, 1), convolution.weight, stride=2)
        out.inner().copy_(answer.movedim(1, -1))

    kernels.run("transposed convolution", kernel, plain, x.data.device)


def depthwise(x: FeatureMap, weight: Tensor) -> FeatureMap:
    """Convolve each channel with its own 3^3 kernel, weight (C, 1, 3, 3, 3); x needs a border of 1."""

    def kernel() -> FeatureMap:
        conv_kernels = kernels.triton_kernels()[0]  # type: ignore[index]
        target = empty_map(x.data, x.batch, x.size, x.channels)
        taps = weight.flatten(1).t().contiguous()
        depth, height, width = x.size
        grid = (-(-depth * height * width // 32), -(-x.channels // 64), x.batch)
        launch(
            conv_kernels.depthwise_kernel,
            grid,
            x.start(1),
            taps,
            target.data,
            depth,
            height,
            width,
            *x.strides,
            *specialize(x.channels, x.stored),
            32,
            64,
        )
        return target

    def plain() -> FeatureMap:
        low = x.border - 1
        read = x.data[..., x.first : x.first + x.channels]
        for axis in range(3):
            read = read.narrow(axis + 1, low, x.size[axis] + 2)
        answer = functional.conv3d(read.movedim(-1, 1), weight, groups=x.channels)
        return FeatureMap(answer.movedim(1, -1).to(x.data.dtype).contiguous(), 0, 0, x.channels)

    return kernels.run("depth-wise convolution", kernel, plain, x.data.device)
