"""The CUDA kernel of the optional ``mamba-ssm`` package, when a user has it."""

from __future__ import annotations

import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-untyped, import-not-found]
from torch import Tensor


@torch.compiler.disable
def selective_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Selective scan; shapes as in :func:`segmamba.scan.selective_scan`. CUDA only."""
    with torch.autocast(x.device.type, enabled=False):
        arguments = [value.float().contiguous() for value in (x, delta, A, B, C, D)]
        return selective_scan_fn(*arguments).to(x.dtype)
