"""What hides bone in an image: thick slices with a profile, noise, metal, and contrast in the spinal canal.

Part of the scanner model, for a share of the samples (`degraded_share`). How often and how strong are our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.tissue_labels import CORD

# Ranges: slices in mm, noise and contrast in HU.
SLICES_MM, NOISE_HU, CONTRAST_HU = (3.0, 7.5), (40.0, 130.0), (200.0, 700.0)
# How often a degraded CT has each; one that would have none gets slices.
SLICES, NOISE, METAL, CONTRAST = 0.6, 0.35, 0.25, 0.35
# Screws: vertebrae with them at most, half width and length in mm, convergence; HU of streaks and their width in mm.
SCREWED, SCREW_MM, LENGTH_MM, CONVERGENCE = 3, (2.0, 3.5), (35.0, 50.0), (0.0, 0.4)
METAL_HU, STREAK_HU, STREAK_MM = 3000.0, (200.0, 1000.0), (1.5, 4.0)
# The part of the canal beside which a vertebra's pedicles are: this far above its middle, and so high.
PEDICLE_MM, SLAB_MM = 5.0, 5.0
LEVELS = 26


@dataclass(frozen=True)
class Degradation:
    """What a CT is degraded by.

    Attributes
    ----------
    slices_mm : float or None
    noise_hu : tuple of float or None
        Range.
    metal, contrast : bool
    """

    slices_mm: float | None = None
    noise_hu: tuple[float, float] | None = None
    metal: bool = False
    contrast: bool = False


def random_degradation(rng: np.random.Generator) -> Degradation:
    """Return a degradation of a CT; each has at least one."""
    slices, noise, metal, contrast = (rng.random(4) < (SLICES, NOISE, METAL, CONTRAST)).tolist()
    thick = slices or not (noise or metal or contrast)
    return Degradation(float(rng.uniform(*SLICES_MM)) if thick else None, NOISE_HU if noise else None, metal, contrast)


def with_contrast(image: Tensor, tissues: Tensor, context: SamplingContext) -> Tensor:
    """Return an image (z, y, x) in HU with contrast in the canal, less where nerves are."""
    value = context.rng.uniform(*CONTRAST_HU)
    uneven = (1 + 0.3 * context.smooth_noise(1, 6.0)[0]).clamp(0.2, 1.3)
    return torch.where(tissues == CORD, torch.maximum(image, value * uneven), image)


def with_screws(image: Tensor, tissues: Tensor, context: SamplingContext) -> Tensor:
    """Return an image (z, y, x) in HU with screws in the pedicles of up to three vertebrae, and their streaks.

    A screw runs beside the canal from behind to the front; between two it is dark, beside them are bright streaks.
    Nothing is read back from the device: where a vertebra has no canal in view, its screws are nowhere.
    """
    rng, step = context.rng, context.spacing
    grid = [torch.arange(n, device=image.device, dtype=torch.float32) * step for n in image.shape]
    z, y, x = grid[0][:, None, None], grid[1][:, None], grid[2]
    canal = (tissues == CORD).float()
    for height in _heights(tissues, z, context):
        near = canal * ((z - height - PEDICLE_MM).abs() < SLAB_MM)
        volume = near.sum()
        seen = volume * step**3 > 200.0  # mm3
        middle_y, middle_x = ((near * axis).sum() / volume.clamp(min=1) for axis in (y, x))
        # Of a disc, the radius is twice the standard deviation along an axis.
        spread = ((near * (x - middle_x) ** 2).sum() / volume.clamp(min=1)).sqrt()
        half, level = 2 * spread, height + PEDICLE_MM
        radius, length, strength = rng.uniform(*SCREW_MM), rng.uniform(*LENGTH_MM), rng.uniform(*STREAK_HU)
        distance = torch.full_like(image, torch.inf)
        for side in (-1.0, 1.0):
            turn = rng.uniform(*CONVERGENCE)
            norm = float(np.hypot(1.0, turn))
            course_y, course_x = -1.0 / norm, -side * turn / norm
            tip_y = middle_y + half + 10.0 + rng.normal(0, 2)
            tip_x = middle_x + side * (half + radius + rng.uniform(3, 7))
            along = ((y - tip_y) * course_y + (x - tip_x) * course_x).clamp(0, length)
            off_y, off_x = y - tip_y - along * course_y, x - tip_x - along * course_x
            distance = torch.minimum(distance, (off_y**2 + off_x**2 + (z - level) ** 2).sqrt())
        beyond = (distance - radius).clamp(min=0)
        plane = torch.exp(-0.5 * ((z - level) / rng.uniform(*STREAK_MM)) ** 2)
        between = ((x - middle_x).abs() < half) & ((y - middle_y).abs() < 30.0)
        dark = between * torch.exp(-beyond / rng.uniform(10, 30))
        bright = ~between * torch.exp(-beyond / rng.uniform(5, 15)) * torch.cos(y / rng.uniform(1.5, 4)) ** 2
        streaked = image + strength * plane * (bright - dark)
        image = torch.where(seen, torch.where(distance < radius, METAL_HU, streaked), image)
    return image


def _heights(tissues: Tensor, z: Tensor, context: SamplingContext) -> list[Tensor]:
    """Return the height in mm of the middle of some random vertebrae in view."""
    levels = tissues.masked_fill(tissues >= LEVELS, 0).long().flatten()
    counts, sums = (torch.zeros(LEVELS, device=tissues.device) for _ in range(2))
    counts = counts.scatter_add(0, levels, torch.ones_like(levels, dtype=torch.float32))
    sums = sums.scatter_add(0, levels, z.expand(tissues.shape).flatten())
    # Any vertebra of which enough is in view may be chosen; the sum of no voxels is far outside.
    keys = context.upload(context.rng.uniform(0.1, 1, LEVELS)) * (counts * context.spacing**3 > 3000.0)
    keys = torch.cat([torch.zeros_like(keys[:1]), keys[1:]])
    chosen = keys.topk(int(context.rng.integers(1, SCREWED + 1))).indices
    height = sums[chosen] / counts[chosen].clamp(min=1)
    return list(torch.where(keys[chosen] > 0, height, torch.full_like(height, -1e4)))
