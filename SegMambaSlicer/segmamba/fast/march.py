"""Launch of `march_kernel`: programs march along z and read every input plane once."""

from __future__ import annotations

import torch
from torch import Tensor

from segmamba.fast import kernels
from segmamba.fast.conv_weights import Convolution, column_blocks
from segmamba.fast.kernels import specialize
from segmamba.fast.maps import FeatureMap
from segmamba.fast.tiles import FULL, TILE_X, Tiles, fitting_stages
from segmamba.scan.launching import launch


def launch_march(
    x: FeatureMap, convolution: Convolution, target: FeatureMap, tiles: Tiles, sums: bool
) -> Tensor | None:
    """Write a convolution of ``x`` to ``target``; return the sums for a norm, if wanted and supported by the tiles."""
    conv_kernels = kernels.triton_kernels()[0]  # type: ignore[index]
    out, channels, edge = convolution.weight.shape[:3]
    group = tiles.columns
    weights = convolution.pack_rotated_planes(tiles.depth, group)
    depth, height, width = target.size
    tile_y = tiles.rows // TILE_X
    plane_tiles = -(-height // tile_y) * -(-width // TILE_X)
    dilation = convolution.dilation
    planes = -(-depth // dilation)
    slots = FULL * 4 // tiles.warps
    segment = segment_length(planes, out // group * x.batch * plane_tiles * dilation, edge, slots)
    runs = -(-planes // segment) * dilation
    result = None
    if sums and tiles.sums:
        result = torch.empty((x.batch, runs * plane_tiles * edge, 2, out), dtype=torch.float32, device=x.data.device)
    launch(
        conv_kernels.march_kernel, (out // group, plane_tiles, x.batch * runs),
        x.start(convolution.margin), weights, target.start(), weights if result is None else result,
        depth, height, width, segment, weights.shape[2] // tiles.depth, *x.strides, *target.strides,
        *specialize(channels, x.stored, out, target.stored), group, edge, dilation,
        tile_y, TILE_X, *column_blocks(edge * group), tiles.depth, result is not None,
        num_warps=tiles.warps, num_stages=fitting_stages(tiles, sum(column_blocks(edge * group)), x.data.device),
    )  # fmt: skip
    return result


def segment_length(planes: int, columns: int, edge: int, slots: int) -> int:
    """Return the number of planes that a program marches through, for few waves of the GPU and few planes read twice.

    ``columns`` is the number of programs side by side, ``slots`` that of concurrent programs. Each program reads
    ``edge - 1`` planes more than it writes.
    """
    best, least = planes, float("inf")
    for parts in range(1, planes + 1):
        segment = -(-planes // parts)
        waves = -(-columns * -(-planes // segment) // slots)
        cost = waves * (segment + edge - 1)
        if cost < least:
            best, least = segment, cost
    return best
