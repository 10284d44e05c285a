"""How convolutions are divided into programs of the GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from segmamba.fast.conv_weights import Convolution

# Programs that fill a large GPU; with fewer, the sum over taps is split.
FULL = 264
# Voxels of a plane for a marching program, and of an output block.
TILE_Y, TILE_X = 8, 16
# Bytes of shared memory of a block on the smaller GPUs.
SMALLEST_SHARED = 99 * 1024
# A march needs enough tiles in the plane to fill the GPU.
SMALLEST_MARCH = 32**3


@dataclass(frozen=True)
class Tiles:
    """Tiling of a convolution.

    Attributes
    ----------
    march : bool
        `march_kernel`, else `gemm_kernel`.
    rows, columns : int
        Output voxels and channels of a program.
    depth : int
        Taps times input channels of a step of its loop.
    warps, stages : int
        Of a program.
    sums : bool
        Whether the kernel can return the sums for a norm.
    """

    march: bool
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    sums: bool = True


def choose_tiles(convolution: Convolution, voxels: int) -> Tiles:
    """Return the tiles for a convolution with a number of output voxels."""
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
    """Return the number of pipeline stages: that of the tiles, if their blocks fit into shared memory."""
    if device.type != "cuda":
        return tiles.stages
    most = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", SMALLEST_SHARED)
    return max(1, min(tiles.stages, most // (2 * tiles.depth * (tiles.rows + columns))))
