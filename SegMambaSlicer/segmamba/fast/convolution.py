"""Convolutions of feature maps: which kernel, with which tiles, and its launch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from segmamba.fast import kernels
from segmamba.fast.kernels import hinted
from segmamba.fast.maps import FeatureMap, empty_map

# Programs that fill a large GPU; with fewer the sum over taps is split.
FULL = 264
# Voxels of a plane that a marching program works on, and of an output block.
TILE_Y, TILE_X = 8, 16
# Bytes of shared memory of a block on the smaller GPUs.
SMALLEST_SHARED = 99 * 1024
# A march needs columns enough to fill the GPU.
SMALLEST_MARCH = 32**3


@dataclass(eq=False)
class Convolution:
    """A convolution's weights, brought once into the form that its kernel reads.

    Attributes
    ----------
    weight : Tensor
        Shape (out, in, K, K, K), half precision.
    bias : Tensor or None
        Shape (out,), float32.
    stride, dilation : int
    margin : int
        Voxels beyond a map's edge that are read: the padding.
    """

    weight: Tensor
    bias: Tensor | None
    stride: int = 1
    dilation: int = 1
    margin: int = 1
    packed: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: nn.Conv3d, normed: bool = False) -> Convolution:
        """Take a layer's weights; a norm that follows takes the bias away again, so it is left out."""
        bias = None if layer.bias is None or normed else layer.bias.detach().float()
        weight = layer.weight.detach().contiguous(memory_format=torch.channels_last_3d)
        return cls(weight, bias, layer.stride[0], layer.dilation[0], int(layer.padding[0]))

    @property
    def kernel(self) -> int:
        """Edge of the kernel."""
        return self.weight.shape[2]

    def columns(self, block: int) -> Tensor:
        """Return the weights (K^3 in, out), with rows of zeros up to a multiple of ``block``."""
        if block not in self.packed:
            rows = self.weight.permute(2, 3, 4, 1, 0).flatten(0, 3)
            self.packed[block] = functional.pad(rows, (0, 0, 0, -len(rows) % block)).contiguous()
        return self.packed[block]

    def turned(self, block: int, group: int) -> Tensor:
        """Return the weights as `march_kernel` takes them: (out / group, K, K^2 in, columns), filled up with zeros."""
        if -block not in self.packed:
            edge = self.kernel
            planes = self.weight.permute(2, 3, 4, 1, 0).flatten(1, 3)  # (K, K^2 in, out)
            turns = []
            for turn in range(edge):
                order = [(turn - number) % edge for number in range(edge)]
                # (K, rows, parts, group) to (parts, rows, K group)
                parts = planes[order].unflatten(2, (-1, group)).permute(2, 1, 0, 3).flatten(2)
                turns.append(parts)
            packed = torch.stack(turns, dim=1)
            wide = sum(march_columns(edge * group))
            padding = (0, wide - edge * group, 0, -packed.shape[2] % block)
            self.packed[-block] = functional.pad(packed, padding).contiguous()
        return self.packed[-block]


def march_columns(count: int) -> tuple[int, int]:
    """Return two powers of two (the second may be 0) that hold so many columns."""
    first = 1 << (count.bit_length() - 1)
    rest = count - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest else 0


@dataclass(frozen=True)
class Tiles:
    """How a convolution is cut into programs.

    ``march`` says which of the two kernels; ``rows`` by ``columns`` is a program's block of output voxels and channels,
    ``depth`` the step along taps and input channels.
    """

    march: bool
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    sums: bool = True


def choose_tiles(convolution: Convolution, voxels: int) -> Tiles:
    """Return the tiles for a convolution with so many output voxels."""
    out, channels, edge = convolution.weight.shape[:3]
    columns = min(128, max(16, 1 << (out - 1).bit_length()))
    taps = edge**3 * channels
    depth = 64 if taps >= 64 and channels % 8 == 0 else max(16, min(32, 1 << (taps - 1).bit_length()))
    marching = edge > 1 and convolution.stride == 1 and channels % 8 == 0 and out % 8 == 0
    if marching and out <= 64 and channels <= 192 and voxels >= SMALLEST_MARCH:
        if edge == 3:
            return Tiles(True, TILE_Y * TILE_X, out, min(32, depth), 4, 4, sums=False)
        return Tiles(True, TILE_Y * TILE_X, out, depth, 8, 4, sums=False)
    return Tiles(False, 128, columns, depth, 4, 3)


def fitting_stages(tiles: Tiles, columns: int, device: torch.device) -> int:
    """Return how many blocks of both factors are read ahead: those of the tiles, if they fit into shared memory."""
    if device.type != "cuda":
        return tiles.stages
    most = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", SMALLEST_SHARED)
    return max(1, min(tiles.stages, most // (2 * tiles.depth * (tiles.rows + columns))))


def convolve(
    x: FeatureMap,
    convolution: Convolution,
    sums: bool = False,
    gelu: bool = False,
    out: FeatureMap | None = None,
) -> tuple[FeatureMap, Tensor | None]:
    """Convolve, with the padding that keeps the size (at stride 1).

    Parameters
    ----------
    x : FeatureMap
        With a border at least as wide as the kernel reaches.
    convolution : Convolution
    sums : bool
        Also return what `segmamba.fast.norm.finish` needs, shape (B, parts, 2, out); None where the kernel did not.
    gelu : bool
        Apply a GELU.
    out : FeatureMap, optional
        Where to write; by default a new map without a border.
    """
    stride = convolution.stride
    size = tuple((length - 1) // stride + 1 for length in x.size)

    def kernel() -> tuple[FeatureMap, Tensor | None]:
        target = out or empty_map(x.data, x.batch, (size[0], size[1], size[2]), convolution.weight.shape[0])
        return target, launch(x, convolution, target, tiles, sums, gelu)

    voxels = size[0] * size[1] * size[2]
    if out is None and not gelu and convolution.bias is None and library_is_faster(convolution):
        return _library(x, convolution), None
    tiles = choose_tiles(convolution, voxels)
    launch = _march if tiles.march and convolution.bias is None and not gelu else _gemm
    return kernels.run(
        f"convolution {convolution.kernel}^3",
        kernel,
        lambda: (_plain(x, convolution, gelu, out), None),
        x.data.device,
    )


def library_is_faster(convolution: Convolution) -> bool:
    """Tell for which layers cuDNN and cuBLAS are faster: measured on an H200, see Docs/speed.md."""
    if convolution.stride != 1 or convolution.dilation != 1:
        return False
    channels, edge = convolution.weight.shape[1:3]
    return channels >= 192 and edge == 3 or channels >= 16 and edge == 1


def _library(x: FeatureMap, convolution: Convolution) -> FeatureMap:
    """A 1^3 convolution as a matrix product over map and border, whose zeros stay zeros; others by cuDNN."""
    if convolution.kernel > 1:
        return _plain(x, convolution, gelu=False, out=None)
    answer = functional.linear(x.data[..., x.first : x.first + x.channels], convolution.weight.flatten(1))
    return FeatureMap(answer, x.border, 0, answer.shape[-1])


def _plain(x: FeatureMap, convolution: Convolution, gelu: bool, out: FeatureMap | None) -> FeatureMap:
    """PyTorch's convolution, cuDNN's on a GPU."""
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


def _march(
    x: FeatureMap, convolution: Convolution, target: FeatureMap, tiles: Tiles, sums: bool, gelu: bool
) -> Tensor | None:
    conv_kernels = kernels.triton_kernels()[0]  # type: ignore[index]
    out, channels, edge = convolution.weight.shape[:3]
    group = tiles.columns
    weights = convolution.turned(tiles.depth, group)
    depth, height, width = target.size
    tile_y = tiles.rows // TILE_X
    plane_tiles = -(-height // tile_y) * -(-width // TILE_X)
    dilation = convolution.dilation
    planes = -(-depth // dilation)
    slots = FULL * 4 // tiles.warps
    segment = segment_length(planes, out // group * x.batch * plane_tiles * dilation, edge, slots)
    runs = -(-planes // segment) * dilation
    made = None
    if sums and tiles.sums:
        made = torch.empty((x.batch, runs * plane_tiles * edge, 2, out), dtype=torch.float32, device=x.data.device)
    conv_kernels.march_kernel[(out // group, plane_tiles, x.batch * runs)](
        x.start(convolution.margin), weights, target.start(), made if made is not None else weights,
        depth, height, width, segment, weights.shape[2] // tiles.depth, *x.strides, *target.strides,
        *hinted(channels, x.stored, out, target.stored), group, edge, dilation,
        tile_y, TILE_X, *march_columns(edge * group), tiles.depth, made is not None,
        num_warps=tiles.warps, num_stages=fitting_stages(tiles, sum(march_columns(edge * group)), x.data.device),
    )  # fmt: skip
    return made


def segment_length(planes: int, columns: int, edge: int, slots: int) -> int:
    """Return how many planes a program marches through: few turns of the GPU, and few planes read twice.

    ``columns`` is the number of programs side by side, ``slots`` how many run at a time. Each program reads
    ``edge - 1`` planes more than it makes.
    """
    best, least = planes, float("inf")
    for parts in range(1, planes + 1):
        segment = -(-planes // parts)
        turns = -(-columns * -(-planes // segment) // slots)
        cost = turns * (segment + edge - 1)
        if cost < least:
            best, least = segment, cost
    return best


def _gemm(
    x: FeatureMap, convolution: Convolution, target: FeatureMap, tiles: Tiles, sums: bool, gelu: bool
) -> Tensor | None:
    conv_kernels = kernels.triton_kernels()[0]  # type: ignore[index]
    out, channels, edge = convolution.weight.shape[:3]
    weights = convolution.columns(tiles.depth)
    depth, height, width = target.size
    voxels = depth * height * width
    steps = weights.shape[0] // tiles.depth
    blocks, across = -(-voxels // tiles.rows), -(-out // tiles.columns)
    splits = 1
    if target.border == 0 and target.stored == out and convolution.bias is None and not gelu:
        splits = max(1, min(FULL // (blocks * across * x.batch), steps // 8))
    device = x.data.device
    made = torch.empty((x.batch, blocks, 2, out), dtype=torch.float32, device=device) if sums else None
    partial = torch.empty((x.batch, splits, voxels, out), dtype=torch.float32, device=device) if splits > 1 else None
    unused = weights
    conv_kernels.gemm_kernel[(across, blocks, x.batch * splits)](
        x.start(convolution.margin), weights, convolution.bias, target.start(),
        unused if partial is None else partial, unused if made is None else made,
        depth, height, width, *x.strides, *target.strides, 1, steps,
        *hinted(channels, x.stored, out, target.stored), splits, edge, convolution.dilation, convolution.stride,
        tiles.rows, tiles.columns, tiles.depth, partial is not None, int(gelu), made is not None,
        num_warps=tiles.warps, num_stages=fitting_stages(tiles, tiles.columns, device),
    )  # fmt: skip
    if partial is None:
        return made
    rows = 32
    blocks = -(-voxels // rows)
    made = torch.empty((x.batch, blocks, 2, out), dtype=torch.float32, device=device)
    conv_kernels.add_parts_kernel[(-(-out // 64), blocks, x.batch)](
        partial, target.start(), made, voxels, *hinted(out), splits, rows, 64
    )
    return made


@dataclass(eq=False)
class Doubling:
    """A transposed convolution of edge and stride 2: weight (in, out, 2, 2, 2), half precision."""

    weight: Tensor
    packed: dict[int, Tensor] = field(default_factory=dict)

    def columns(self, block: int) -> Tensor:
        """Return the weights (8, in rounded up to ``block``, out)."""
        if block not in self.packed:
            channels, out = self.weight.shape[:2]
            rows = self.weight.permute(2, 3, 4, 0, 1).reshape(8, channels, out)
            self.packed[block] = functional.pad(rows, (0, 0, 0, -channels % block)).contiguous()
        return self.packed[block]


def double(x: FeatureMap, doubling: Doubling, out: FeatureMap) -> None:
    """Write a map of twice the size to ``out``."""

    def kernel() -> None:
        conv_kernels = kernels.triton_kernels()[0]  # type: ignore[index]
        channels, made = doubling.weight.shape[:2]
        depth, height, width = x.size
        columns = min(128, max(16, 1 << (made - 1).bit_length()))
        rows, block = 128, 32 if channels % 32 == 0 else 16
        grid = (8 * -(-made // columns), -(-depth * height * width // rows), x.batch)
        conv_kernels.double_kernel[grid](
            x.start(), doubling.columns(block), out.start(), depth, height, width, *x.strides, *out.strides,
            *hinted(channels, x.stored, made, out.stored), rows, columns, block,
            num_warps=8 if columns == 128 else 4, num_stages=3,
        )  # fmt: skip

    def plain() -> None:
        answer = functional.conv_transpose3d(x.inner().movedim(-1, 1), doubling.weight, stride=2)
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
        conv_kernels.depthwise_kernel[grid](
            x.start(1), taps, target.data, depth, height, width, *x.strides, *hinted(x.channels, x.stored), 32, 64
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
