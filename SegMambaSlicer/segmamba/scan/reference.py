"""The selective scan as its definition reads: one loop over time, in float64, for tests."""

from __future__ import annotations

import torch
from torch import Tensor


def selective_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Selective scan, step by step. Shapes as in :func:`segmamba.scan.selective_scan`; the result is float64."""
    x, delta, A, B, C, D = (value.double() for value in (x, delta, A, B, C, D))
    state = x.new_zeros(x.shape[0], x.shape[1], A.shape[1])
    outputs = []
    for t in range(x.shape[-1]):
        decay = torch.exp(delta[:, :, t, None] * A)
        state = decay * state + (delta[:, :, t] * x[:, :, t])[..., None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1) + D * x[:, :, t])
    return torch.stack(outputs, dim=-1)
