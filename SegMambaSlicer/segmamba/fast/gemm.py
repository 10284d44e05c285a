"""Launch of `gemm_kernel`: a convolution as one matrix product (implicit GEMM)."""

from __future__ import annotations

import torch
from torch import Tensor

from segmamba.fast import kernels
from segmamba.fast.conv_weights import Convolution
from segmamba.fast.kernels import specialize
from segmamba.fast.maps import FeatureMap
from segmamba.fast.tiles import FULL, Tiles, fitting_stages
from segmamba.scan.launching import launch


def launch_gemm(
    x: FeatureMap, convolution: Convolution, target: FeatureMap, tiles: Tiles, sums: bool, gelu: bool = False
) -> Tensor | None:
    """Write a convolution of ``x``, with a GELU if wanted, to ``target``; return the sums for a norm, if wanted."""
    conv_kernels = kernels.triton_kernels()[0]  # type: ignore[index]
    out, channels, edge = convolution.weight.shape[:3]
    weights = convolution.pack_gemm(tiles.depth)
    depth, height, width = target.size
    voxels = depth * height * width
    steps = weights.shape[0] // tiles.depth
    blocks, across = -(-voxels // tiles.rows), -(-out // tiles.columns)
    splits = 1
    if target.border == 0 and target.stored == out and convolution.bias is None and not gelu:
        splits = max(1, min(FULL // (blocks * across * x.batch), steps // 8))
    device = x.data.device
    result = torch.empty((x.batch, blocks, 2, out), dtype=torch.float32, device=device) if sums else None
    partial = torch.empty((x.batch, splits, voxels, out), dtype=torch.float32, device=device) if splits > 1 else None
    unused = weights
    launch(
        conv_kernels.gemm_kernel, (across, blocks, x.batch * splits),
        x.start(convolution.margin), weights, convolution.bias, target.start(),
        unused if partial is None else partial, unused if result is None else result,
        depth, height, width, *x.strides, *target.strides, 1, steps,
        *specialize(channels, x.stored, out, target.stored), splits, edge, convolution.dilation, convolution.stride,
        tiles.rows, tiles.columns, tiles.depth, partial is not None, int(gelu), result is not None,
        num_warps=tiles.warps, num_stages=fitting_stages(tiles, tiles.columns, device),
    )  # fmt: skip
    if partial is None:
        return result
    rows = 32
    blocks = -(-voxels // rows)
    result = torch.empty((x.batch, blocks, 2, out), dtype=torch.float32, device=device)
    launch(
        conv_kernels.add_parts_kernel,
        (-(-out // 64), blocks, x.batch),
        partial,
        target.start(),
        result,
        voxels,
        *specialize(out),
        splits,
        rows,
        64,
    )
    return result
