"""The selective scan as Triton kernels, forward and backward, for CUDA.

A chunk of :data:`CHUNK` steps by all states is one tile, scanned in parallel over time with an associative scan. The
forward pass walks the chunks of one channel in one program and keeps each chunk's start state. The backward pass
first walks the chunks in reverse for the gradient that enters each chunk; with both ends known every chunk is
independent, so the last kernel runs on all chunks at once, loops over channels inside, and sums the gradients of B
and C in registers: no atomics, so gradients are deterministic. States are float32 whatever the inputs are.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found]
import triton.language as tl  # type: ignore[import-untyped, import-not-found]
from torch import Tensor

from segmamba.errors import ModelError
from segmamba.scan.launching import launch

CHUNK = 64
# Programs of the last backward kernel: enough to fill a large GPU, few enough that the partial sums stay small.
TARGET_PROGRAMS = 2048


@triton.jit
def _follow(decay_first, state_first, decay_then, state_then):  # type: ignore[no-untyped-def]
    """Compose two steps of h -> decay h + drive."""
    return decay_first * decay_then, decay_then * state_first + state_then


# Compiled once for lengths that are multiples of 16, and once for others.
@triton.jit(do_not_specialize=("channels", "chunks"))
def _forward_kernel(  # type: ignore[no-untyped-def]
    x, delta, A, B, C, D, y, starts, channels, length, chunks, STATES: tl.constexpr, N: tl.constexpr, T: tl.constexpr
):
    """One program scans one channel of one batch item."""
    row = tl.program_id(0).to(tl.int64)
    batch = row // channels
    channel = row % channels
    n = tl.arange(0, N)[:, None]
    t = tl.arange(0, T)[None, :]
    rate = tl.load(A + channel * STATES + n, mask=n < STATES, other=0.0)
    direct = tl.load(D + channel)
    state = tl.zeros((N, 1), dtype=tl.float32)
    for k in range(chunks):
        time = k * T + t
        inside = time < length
        xs = tl.load(x + row * length + time, mask=inside, other=0.0).to(tl.float32)
        dt = tl.load(delta + row * length + time, mask=inside, other=0.0).to(tl.float32)
        maps = (batch * STATES + n) * length + time
        mask = (n < STATES) & inside
        bs = tl.load(B + maps, mask=mask, other=0.0).to(tl.float32)
        cs = tl.load(C + maps, mask=mask, other=0.0).to(tl.float32)
        tl.store(starts + (row * chunks + k) * STATES + n, state, mask=n < STATES)
        decay, drive = tl.associative_scan((tl.exp(dt * rate), dt * xs * bs), 1, _follow)
        h = drive + decay * state
        ys = tl.sum(h * cs, axis=0)[None, :] + direct * xs
        tl.store(y + row * length + time, ys, mask=inside)
        state = tl.sum(tl.where(t == T - 1, h, 0.0), axis=1)[:, None]


@triton.jit
def _entering_gradient_kernel(  # type: ignore[no-untyped-def]
    delta, A, C, dy, entering, channels, length, chunks, STATES: tl.constexpr, N: tl.constexpr, T: tl.constexpr
):
    """One program walks one channel backwards and stores the state gradient of the first step after each chunk."""
    row = tl.program_id(0).to(tl.int64)
    batch = row // channels
    n = tl.arange(0, N)[:, None]
    t = tl.arange(0, T)[None, :]
    rate = tl.load(A + (row % channels) * STATES + n, mask=n < STATES, other=0.0)
    gradient = tl.zeros((N, 1), dtype=tl.float32)
    for step in range(chunks):
        k = chunks - 1 - step
        time = k * T + t
        inside = time < length
        tl.store(entering + (row * chunks + k) * STATES + n, gradient, mask=n < STATES)
        dt_next = tl.load(delta + row * length + time + 1, mask=time + 1 < length, other=0.0).to(tl.float32)
        dys = tl.load(dy + row * length + time, mask=inside, other=0.0).to(tl.float32)
        maps = (batch * STATES + n) * length + time
        cs = tl.load(C + maps, mask=(n < STATES) & inside, other=0.0).to(tl.float32)
        decay, drive = tl.associative_scan((tl.exp(dt_next * rate), cs * dys), 1, _follow, reverse=True)
        g = drive + decay * gradient
        gradient = tl.sum(tl.where(t == 0, g, 0.0), axis=1)[:, None]


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    x, delta, A, B, C, D, dy, starts, entering, dx, ddelta, dA, dB, dC,
    batches, channels, length, chunks, width, STATES: tl.constexpr, N: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """One program does one chunk of one batch item for `width` channels."""
    batch = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1)
    part = tl.program_id(2)
    n = tl.arange(0, N)[:, None]
    t = tl.arange(0, T)[None, :]
    time = k * T + t
    inside = time < length
    mask = (n < STATES) & inside
    maps = (batch * STATES + n) * length + time
    bs = tl.load(B + maps, mask=mask, other=0.0).to(tl.float32)
    cs = tl.load(C + maps, mask=mask, other=0.0).to(tl.float32)
    bs_before = tl.load(B + maps - 1, mask=mask & (t > 0), other=0.0).to(tl.float32)
    sum_dB = tl.zeros((N, T), dtype=tl.float32)
    sum_dC = tl.zeros((N, T), dtype=tl.float32)
    for channel in range(part * width, tl.minimum(part * width + width, channels)):
        row = batch * channels + channel
        here = row * length + time
        rate = tl.load(A + channel * STATES + n, mask=n < STATES, other=0.0)
        direct = tl.load(D + channel)
        ends = (row * chunks + k) * STATES + n
        start = tl.load(starts + ends, mask=n < STATES, other=0.0)
        after = tl.load(entering + ends, mask=n < STATES, other=0.0)
        xs = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
        dt = tl.load(delta + here, mask=inside, other=0.0).to(tl.float32)
        dys = tl.load(dy + here, mask=inside, other=0.0).to(tl.float32)
        # The states before each step come from the steps shifted by one; zero steps leave a state as it is.
        xs_before = tl.load(x + here - 1, mask=inside & (t > 0), other=0.0).to(tl.float32)
        dt_before = tl.load(delta + here - 1, mask=inside & (t > 0), other=0.0).to(tl.float32)
        dt_next = tl.load(delta + here + 1, mask=time + 1 < length, other=0.0).to(tl.float32)
        decay, drive = tl.associative_scan((tl.exp(dt_before * rate), dt_before * xs_before * bs_before), 1, _follow)
        h_before = drive + decay * start
        decayed = tl.exp(dt * rate) * h_before
        decay, drive = tl.associative_scan((tl.exp(dt_next * rate), cs * dys), 1, _follow, reverse=True)
        g = drive + decay * after
        sum_dB += g * dt * xs
        sum_dC += (decayed + dt * xs * bs) * dys
        g_drive = tl.sum(g * bs, axis=0)[None, :]
        g_decay = g * decayed
        tl.store(dx + here, dt * g_drive + direct * dys, mask=inside)
        tl.store(ddelta + here, tl.sum(g_decay * rate, axis=0)[None, :] + xs * g_drive, mask=inside)
        tl.store(dA + ends, tl.sum(g_decay * dt, axis=1)[:, None], mask=n < STATES)
    partial = ((part * batches + batch) * STATES + n) * length + time
    tl.store(dB + partial, sum_dB, mask=mask)
    tl.store(dC + partial, sum_dC, mask=mask)


INTERPRETED = not isinstance(_forward_kernel, triton.JITFunction)


def _forward(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """Return y and the chunks' start states (batch, channels, chunks, state)."""
    batch, channels, length = x.shape
    states = A.shape[1]
    chunks = triton.cdiv(length, CHUNK)
    y = torch.empty_like(x)
    starts = x.new_empty((batch, channels, chunks, states), dtype=torch.float32)
    with torch.cuda.device_of(x):
        # Two warps: a scan over time within them is a third faster than over four.
        launch(
            _forward_kernel, (batch * channels,),
            x, delta, A, B, C, D, y, starts, channels, length, chunks, states, triton.next_power_of_2(states), CHUNK,
            num_warps=2,
        )  # fmt: skip
    return y, starts


# What torch.compile traces and autograd differentiates.
_scan = torch.library.custom_op("segmamba::selective_scan", _forward, mutates_args=())


@_scan.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    chunks = (x.shape[2] + CHUNK - 1) // CHUNK
    starts = x.new_empty((x.shape[0], x.shape[1], chunks, A.shape[1]), dtype=torch.float32)
    return torch.empty_like(x), starts


@torch.library.custom_op("segmamba::selective_scan_backward", mutates_args=())
def _scan_backward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, starts: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, delta, A, B and C."""
    batch, channels, length = x.shape
    chunks, states = starts.shape[2:]
    padded = triton.next_power_of_2(states)
    width = triton.cdiv(channels, max(1, min(channels, TARGET_PROGRAMS // (batch * chunks))))
    parts = triton.cdiv(channels, width)
    entering, dA = torch.empty_like(starts), torch.empty_like(starts)
    dx, ddelta = torch.empty_like(x), torch.empty_like(delta)
    dB = B.new_empty((parts, *B.shape), dtype=torch.float32)
    dC = torch.empty_like(dB)
    with torch.cuda.device_of(x):
        _entering_gradient_kernel[(batch * channels,)](
            delta, A, C, dy, entering, channels, length, chunks, states, padded, CHUNK
        )
        _backward_kernel[(batch, chunks, parts)](
            x, delta, A, B, C, D, dy, starts, entering, dx, ddelta, dA, dB, dC,
            batch, channels, length, chunks, width, states, padded, CHUNK,
        )  # fmt: skip
    return dx, ddelta, dA.sum(dim=(0, 2)), dB.sum(dim=0).to(B.dtype), dC.sum(dim=0).to(C.dtype)


@_scan_backward.register_fake
def _(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, starts: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(delta), torch.empty_like(A), torch.empty_like(B), torch.empty_like(C)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _differentiate(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    x, delta, A, B, C, D, starts = ctx.saved_tensors
    dx, ddelta, dA, dB, dC = _scan_backward(x, delta, A, B, C, D, starts, dy.contiguous())
    return dx, ddelta, dA, dB, dC, (dy.float() * x.float()).sum(dim=(0, 2))


_scan.register_autograd(_differentiate, setup_context=_save)


def selective_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Selective scan; shapes as in :func:`segmamba.scan.selective_scan`.

    Raises
    ------
    ModelError
        The tensors are not on CUDA (and Triton's interpreter is off).
    """
    if x.device.type != "cuda" and not INTERPRETED:
        raise ModelError(f"The scan backend 'triton' runs on CUDA only, not on {x.device.type}: use 'torch' there.")
    x, delta, B, C = (value.contiguous() for value in (x, delta, B, C))
    inputs = (x, delta, A.float().contiguous(), B, C, D.float().contiguous())
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(each.requires_grad for each in inputs)):
        return _scan(*inputs)[0]
    # The first call of an operator of our own imports PyTorch's compiler, which takes five seconds.
    return _forward(*inputs)[0]
