"""Mamba-1 over the three axes of a volume.

SegMamba's tri-orientated Mamba reads the tokens of a volume in three orders, each with another axis running slowest,
through one Mamba block with shared weights, and sums the results. Everything in the block that works on single tokens
(layer norm, projections, gate) gives the same in every order, so it runs once; only the causal convolution and the
scan run per order, as one batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from segmamba.networks.blocks import LayerNorm
from segmamba.scan import selective_scan

STATE_SIZE = 16
CONV_WIDTH = 4
EXPAND = 2
# Range of step sizes at initialisation, as in Mamba.
SMALLEST_STEP, LARGEST_STEP = 1e-3, 1e-1


def three_orders(volume: Tensor) -> Tensor:
    """Tokens in the orders (d, h, w), (h, d, w) and (w, h, d), last axis fastest.

    (B, C, D, H, W) -> (3B, C, D*H*W), the first order's batch first.
    """
    views = (volume, volume.transpose(2, 3), volume.transpose(2, 4))
    return torch.cat([view.flatten(2) for view in views])


def sum_of_orders(tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Put the tokens of :func:`three_orders` back in their places and add the three.

    (3B, C, D*H*W) -> (B, C, D, H, W) with `size` (D, H, W).
    """
    d, h, w = size
    first, second, third = tokens.chunk(3)
    second = second.unflatten(2, (h, d, w)).transpose(2, 3)
    third = third.unflatten(2, (w, h, d)).transpose(2, 4)
    return first.unflatten(2, (d, h, w)) + second + third


class SelectiveSSM(nn.Module):
    """The selective state-space part of Mamba-1: step size, B and C from each token, then the scan.

    Parameter names and initialisation are Mamba's (x_proj, dt_proj, A_log, D).
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.x_proj = nn.Linear(channels, rank + 2 * STATE_SIZE, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.empty(channels, STATE_SIZE))
        self.D = nn.Parameter(torch.ones(channels))
        # Where shapes are all that is asked for, exp and log would load PyTorch's compiler, which takes two seconds.
        if not self.A_log.is_meta:
            self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        self.A_log.copy_(torch.arange(1.0, STATE_SIZE + 1).log())
        bound = self.rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        log_steps = torch.empty(len(self.D)).uniform_(math.log(SMALLEST_STEP), math.log(LARGEST_STEP))
        # The inverse of softplus, so that the first step sizes are log-uniform in the range.
        self.dt_proj.bias.copy_(torch.log(torch.expm1(log_steps.exp())))

    def scan(self, tokens: Tensor) -> Tensor:
        """(batch, channels, length) -> the same shape in float32."""
        projected = torch.matmul(self.x_proj.weight, tokens)
        step, B, C = projected.split((self.rank, STATE_SIZE, STATE_SIZE), dim=1)
        step = torch.matmul(self.dt_proj.weight, step).float() + self.dt_proj.bias.float()[:, None]
        A = -torch.exp(self.A_log.float())
        return selective_scan(tokens.float(), functional.softplus(step), A, B.float(), C.float(), self.D.float())


class TriOrientedMamba(SelectiveSSM):
    """Mamba-1 (state 16, convolution 4, expansion 2) on the three orders of a volume, summed.

    Parameters are those of one plain Mamba block, so released SegMamba weights fit. (B, L, C) tokens of a (D, H, W)
    volume in, the same shape out. With one orientation it is the plain block: for ablations.
    """

    def __init__(self, channels: int, orientations: int = 3) -> None:
        if orientations not in (1, 3):
            raise ValueError("orientations must be 1 or 3")
        inner = EXPAND * channels
        super().__init__(inner, rank=-(-channels // 16))
        self.orientations = orientations
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, CONV_WIDTH, groups=inner, padding=CONV_WIDTH - 1)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
        inner, gate = self.in_proj(tokens).chunk(2, dim=-1)
        first = inner.transpose(1, 2)
        ordered = three_orders(first.unflatten(2, size)) if self.orientations == 3 else first
        scanned = self.scan(functional.silu(self.conv1d(ordered)[..., : tokens.shape[1]]))
        if self.orientations == 3:
            scanned = sum_of_orders(scanned, size).flatten(2)
        scanned = scanned.transpose(1, 2)
        # out_proj is linear: projecting the sum of the three orders is the sum of their projections.
        return self.out_proj(scanned * functional.silu(gate.float()))


class TriOrientedMambaLayer(nn.Module):
    """``mamba(LayerNorm(x))`` of a volume over three orders, without the residual. (B, C, D, H, W), same shape out."""

    def __init__(self, channels: int, orientations: int = 3) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.mamba = TriOrientedMamba(channels, orientations)

    def forward(self, volume: Tensor) -> Tensor:
        depth, height, width = volume.shape[2:]
        tokens = self.norm(volume.flatten(2).transpose(1, 2))
        mixed = self.mamba(tokens, (depth, height, width))
        return mixed.transpose(1, 2).unflatten(2, (depth, height, width))
