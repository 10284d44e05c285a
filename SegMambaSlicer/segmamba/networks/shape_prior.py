"""The learnable shape prior of SpineMamba: a token map per class that refines the skips.

The mechanism follows explicit shape priors (arXiv 2303.17967), from which SpineMamba's abstract takes the idea; the
details are our reconstruction, and differ where that work ties the prior to one patch size: the prior's grid is fixed
and interpolated, and the similarity of features and prior is a correlation, so neither depends on the number of
voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from segmamba.networks import cpu_blocks
from segmamba.networks.blocks import Conv3d, LayerNorm

BLOCKS = 2
HEADS = 4
WIDTH = 192
PRIOR_STD = 0.02
# Correlations are at most 1: without a factor, a softmax over 27 classes could never single one out.
SHARPNESS = 8.0


def resample(volume: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate linearly, smoothed when it reduces, one matrix product an axis.

    ``(B, C, D, H, W) -> (B, C, *size)``. Unlike PyTorch's interpolation its gradient is deterministic on every device.
    """
    for axis, wanted in enumerate(size, start=2):
        if volume.shape[axis] != wanted:
            weights = _interpolation_weights(volume.shape[axis], wanted, volume.device).to(volume.dtype)
            volume = torch.matmul(volume.transpose(axis, -1), weights).transpose(axis, -1)
    return volume


def _interpolation_weights(given: int, wanted: int, device: torch.device) -> Tensor:
    """Matrix (given, wanted) whose columns are triangles, as wide as the coarser of the two cells, that sum to 1."""
    step = given / wanted
    centres = (torch.arange(wanted, device=device) + 0.5) * step - 0.5
    distances = (torch.arange(given, device=device)[:, None] - centres).abs() / max(step, 1.0)
    weights = (1 - distances).clamp(min=0)
    return weights / weights.sum(dim=0)


class ClassTransformer(nn.Module):
    """Pre-norm transformer block over class tokens, with a learned relation bias between classes.

    (B, classes, cells) -> the same shape.
    """

    def __init__(self, classes: int, cells: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(cells)
        self.query_key_value = nn.Linear(cells, 3 * WIDTH)
        self.relation = nn.Parameter(torch.zeros(HEADS, classes, classes))
        self.project = nn.Linear(WIDTH, cells)
        self.norm2 = LayerNorm(cells)
        self.mlp = nn.Sequential(nn.Linear(cells, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, cells))

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.query_key_value(self.norm1(tokens)).unflatten(-1, (3, HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.matmul(query, key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        weights = torch.softmax(scores + self.relation.float(), dim=-1).to(value.dtype)
        mixed = torch.matmul(weights, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.project(mixed)
        return tokens + self.mlp(self.norm2(tokens))


class CrossUpdate(nn.Module):
    """Features take up the prior, F' = F + S P with S = softmax over the classes of the correlation of F and P.

    Features (B, C, D, H, W) and prior (B, classes, D, H, W) -> shape of the features. S is (B, C, classes), in float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))

    def forward(self, features: Tensor, prior: Tensor) -> Tensor:
        if cpu_blocks.applies_to(features):
            return cpu_blocks.cross_update(features, prior, self.sharpness)
        with torch.autocast(features.device.type, enabled=False):
            maps = prior.flatten(2).float()
            normed_features = functional.layer_norm(features.flatten(2).float(), maps.shape[2:]).view(features.shape)
            normed_maps = functional.layer_norm(maps, maps.shape[2:]).view(prior.shape)
            # By slices, then summed: as one product over 10^5 cells it keeps a GPU waiting.
            products = torch.einsum("bczs,bnzs->bzcn", normed_features.flatten(3), normed_maps.flatten(3))
            correlation = products.sum(dim=1) / maps.shape[2]
            weights = torch.softmax(self.sharpness.float() * correlation, dim=-1)
            taken = torch.matmul(weights, maps).view_as(features)
        return features + taken.to(features.dtype)


class ShapePrior(nn.Module):
    """Refine skips, coarse to fine, with a learnable prior that is refined with them.

    At each level the prior's class tokens are updated among themselves on the fixed grid (self-update, weights shared
    by the levels), the skip takes up the prior (cross-update), and the prior takes up a projection of the refined
    skip.

    Parameters
    ----------
    channels : sequence of int
        Channels of the skips, coarse to fine.
    classes : int
        Number of token maps: one a class in explicit shape priors.
    grid : tuple of int
        Cells (z, y, x) of the prior.
    """

    def __init__(self, channels: Sequence[int], classes: int, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.prior = nn.Parameter(torch.empty(1, classes, *grid))
        # As in `mamba.SelectiveSSM`.
        if not self.prior.is_meta:
            nn.init.normal_(self.prior, std=PRIOR_STD)
        cells = grid[0] * grid[1] * grid[2]
        self.self_update = nn.Sequential(*(ClassTransformer(classes, cells) for _ in range(BLOCKS)))
        self.cross_updates = nn.ModuleList(CrossUpdate() for _ in channels)
        self.refresh = nn.ModuleList(Conv3d(width, classes, 1) for width in channels[:-1])

    def forward(self, skips: Sequence[Tensor]) -> list[Tensor]:
        prior = self.prior.expand(skips[0].shape[0], -1, -1, -1, -1)
        refined = []
        for level, skip in enumerate(skips):
            tokens = resample(prior, self.grid).flatten(2)
            change = (self.self_update(tokens) - tokens).unflatten(2, self.grid)
            prior = resample(prior, skip.shape[2:]) + resample(change, skip.shape[2:])
            skip = self.cross_updates[level](skip, prior)
            if level < len(self.refresh):
                prior = prior + self.refresh[level](skip)
            refined.append(skip)
        return refined
