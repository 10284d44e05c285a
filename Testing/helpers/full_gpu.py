"""A GPU that has little memory left for PyTorch, whatever other tests have taken of it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from segmamba.inference.engine import free_gpu

# The allocator keeps blocks of more than 1 MiB apart from those of up to 1 MiB, and no block is smaller than 512 bytes.
SIZES = (*(2**power for power in range(30, 20, -1)), 2**20 + 512, *(2**power for power in range(20, 8, -1)))


@contextmanager
def memory_left(mebibytes: int) -> Iterator[None]:
    """Let PyTorch take only so much more of the GPU's memory.

    What other tests have left is freed or not counted: networks and CUDA graphs that stay, cuBLAS's workspaces (32 MiB
    a stream on a Hopper), and free blocks between them.
    """
    free_gpu()
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    try:
        _allow(held)
        filling = _free_blocks()
        _allow(held + mebibytes * 2**20)
        yield
        del filling
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def _allow(size: int) -> None:
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.mem_get_info()[1])


def _free_blocks() -> list[torch.Tensor]:
    """Take all that the allocator may still give."""
    taken = []
    for size in SIZES:
        with contextlib.suppress(torch.OutOfMemoryError):
            while True:
                taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    return taken
