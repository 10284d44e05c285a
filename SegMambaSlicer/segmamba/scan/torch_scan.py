"""The selective scan in plain PyTorch: any device, with gradients.

The sequence is cut into about sqrt(L) chunks of about sqrt(L) steps. All chunks step together, so a scan of length L
costs about 3 sqrt(L) vectorised steps instead of L. States are only ever multiplied by decays in (0, 1]: nothing is
divided by a cumulative product, which would overflow.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# States held at once: 4M float32 values are 16 MB, small enough for memory and still long enough vectors. Twice as
# many are a third slower on a processor, because they leave its caches.
MAX_STATES = 4_000_000


def solve_recurrence(a: Tensor, b: Tensor) -> Tensor:
    """Solve ``h_t = a_t h_(t-1) + b_t`` with ``h_(-1) = 0``.

    Parameters
    ----------
    a, b : Tensor, shape (steps, chunks, ...)
        Time ``t = chunk * steps + step``; every step's slab is contiguous.

    Returns
    -------
    Tensor
        h, shaped like `b`.
    """
    steps, chunks = b.shape[:2]
    end = b[0]
    for t in range(1, steps):
        end = torch.addcmul(b[t], a[t], end)
    decay = a.prod(dim=0)
    start = torch.zeros_like(end)
    for k in range(1, chunks):
        start[k] = torch.addcmul(end[k - 1], decay[k - 1], start[k - 1])
    h = torch.empty_like(b)
    state = start
    for t in range(steps):
        torch.addcmul(b[t], a[t], state, out=h[t])
        state = h[t]
    return h


def shift_forward(value: Tensor, fill: float) -> Tensor:
    """Value of the previous time at every time, in the (steps, chunks, ...) layout; `fill` at time 0."""
    shifted = torch.empty_like(value)
    shifted[1:] = value[:-1]
    shifted[0, 1:] = value[-1, :-1]
    shifted[0, 0] = fill
    return shifted


class LinearRecurrence(torch.autograd.Function):
    """:func:`solve_recurrence` with its gradient, which is the same recurrence run backwards in time."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        """Return `solve_recurrence` of ``a`` and ``b``."""
        h = solve_recurrence(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of ``a`` and ``b``."""
        a, h = ctx.saved_tensors
        # g_t = dy_t + a_(t+1) g_(t+1): flipping both time dimensions reverses time in this layout.
        decay = shift_forward(a.flip(0, 1), fill=0.0)
        grad_b = solve_recurrence(decay, grad_outputs[0].flip(0, 1)).flip(0, 1)
        return grad_b * shift_forward(h, fill=0.0), grad_b


def _scan_channels(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Scan without the D term. x, delta (steps, chunks, batch, channels); B, C (steps, chunks, batch, state)."""
    decay = torch.exp(delta[..., None] * A)
    drive = (delta * x)[..., None] * B[..., None, :]
    states = LinearRecurrence.apply(decay, drive)
    return torch.matmul(states, C[..., None]).squeeze(-1)


def _in_chunks(value: Tensor, steps: int, chunks: int) -> Tensor:
    """(batch, rows, length) -> (steps, chunks, batch, rows), zero-padded at the end."""
    padded = functional.pad(value, (0, steps * chunks - value.shape[-1]))
    return padded.unflatten(-1, (chunks, steps)).permute(3, 2, 0, 1).contiguous()


def selective_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Selective scan; shapes as in :func:`segmamba.scan.selective_scan`. float64 stays float64, else float32."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        values, steps_sizes, A, B, C, D = (v.to(kind) for v in (x, delta, A, B, C, D))
        batch, channels, length = x.shape
        steps = max(1, math.isqrt(length))
        chunks = -(-length // steps)
        xs, deltas, Bs, Cs = (_in_chunks(v, steps, chunks) for v in (values, steps_sizes, B, C))
        width = max(1, MAX_STATES // (steps * chunks * batch * A.shape[1]))
        recompute = torch.is_grad_enabled() and width < channels
        slices = []
        for first in range(0, channels, width):
            part = slice(first, first + width)
            arguments = (xs[..., part], deltas[..., part], A[part], Bs, Cs)
            # With several slices the states of one are recomputed in the backward pass, or they would all be kept.
            if recompute:
                slices.append(checkpoint(_scan_channels, *arguments, use_reentrant=False))
            else:
                slices.append(_scan_channels(*arguments))
        scanned = torch.cat(slices, dim=-1).permute(2, 3, 1, 0).flatten(-2)[..., :length]
        return (scanned + D[:, None] * values).to(x.dtype)
