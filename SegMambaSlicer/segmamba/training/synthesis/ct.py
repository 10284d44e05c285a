"""CT images painted from tissue codes: intensities, then the scanner. Priors and recipe are our own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segmamba.training.synthesis.context import Canvas
from segmamba.training.synthesis.scanner import blur, surface, thick_slices
from segmamba.training.synthesis.tissue_labels import AIR, BONES, BOWEL, FAT, LAST_TISSUE, MUSCLE, OUTSIDE, SOFT
from segmamba.training.synthesis.tissue_priors import OUTSIDE_HU, ct_priors

# Blurs of a scanner's kernel, and slice thicknesses, in mm.
KERNEL_MM = (0.6, 1.7)
SLICE_MM = (2.5, 6.0)
NOISE_HU = (3.0, 100.0)


def paint(codes: Tensor, canvas: Canvas) -> Tensor:
    """Return a CT (z, y, x) in HU of a map of tissues (z, y, x)."""
    return scanned(ideal(codes, canvas, *ct_priors(canvas.rng)), codes, canvas)


def ideal(codes: Tensor, canvas: Canvas, mean: np.ndarray, texture: np.ndarray) -> Tensor:
    """Return the image of a perfect scanner, of tissues with these means and textures in HU (256 each)."""
    rng = canvas.rng
    index = codes.long()
    image = filled(codes, mean, texture, 14.0, canvas)
    gas_or_not = (rng.uniform(-20, 60), -850.0 if rng.random() < 0.6 else rng.uniform(80, 500))
    image = mixed(image, canvas.members(BOWEL)[index], gas_or_not, 23.0, 14.0, canvas)
    bone = canvas.members(BONES)[index]
    cortex = rng.uniform(0, 420) * (1 + 0.35 * canvas.smooth_noise(1, 16.0)[0])
    image = torch.where(bone & surface(codes), image + cortex, image)
    if rng.random() < 0.2:  # sclerotic or lytic spots
        spots = bone & (canvas.smooth_noise(1, 13.0)[0] > 1.6)
        image = torch.where(spots, image + rng.uniform(-150, 350), image)
    if rng.random() < 0.3:  # calcifications, clips, contrast: bright things that are no bone
        blobs = (codes >= FAT) & (codes <= LAST_TISSUE) & (canvas.smooth_noise(1, 11.0)[0] > rng.uniform(2.0, 2.8))
        image = torch.where(blobs, rng.uniform(150, 1200), image)
    if rng.random() < 0.5:
        image = _with_table(image, codes, canvas)
    return image


def filled(codes: Tensor, mean: np.ndarray, texture: np.ndarray, grain: float, canvas: Canvas) -> Tensor:
    """Return an image of the codes' intensities with their texture; soft tissue is a mixture of muscle and fat."""
    priors = canvas.upload(np.stack([mean, texture]))
    index = codes.long()
    image = priors[0][index] + priors[1][index] * (0.6 * canvas.noise() + 0.7 * canvas.smooth_noise(1, 8.0)[0])
    return mixed(image, codes == SOFT, (mean[MUSCLE], mean[FAT]), 12.0, grain, canvas)


def mixed(
    image: Tensor, region: Tensor, values: tuple[float, float], size_mm: float, grain: float, canvas: Canvas
) -> Tensor:
    """Replace a region of an image by a random mixture of two intensities, in patches of a size."""
    field = canvas.smooth_noise(1, size_mm)[0] + 0.4 * canvas.noise()
    second = field > canvas.rng.normal(0, 0.8)
    mixture = torch.where(second, values[1], values[0]) + grain * canvas.noise()
    return torch.where(region, mixture, image)


def _with_table(image: Tensor, codes: Tensor, canvas: Canvas) -> Tensor:
    """Put a slab of another material into the air behind the body."""
    gap, thickness = int(canvas.rng.integers(1, 6)), int(canvas.rng.integers(1, 5))
    rows = torch.arange(canvas.patch[1], device=canvas.device)
    occupied = ((codes != AIR) & (codes != OUTSIDE)).any(dim=2).any(dim=0)
    beyond = rows - rows.masked_fill(~occupied, -canvas.patch[1]).max()
    slab = occupied.any() & (beyond >= gap) & (beyond < gap + thickness)
    return torch.where((codes == AIR) & slab[:, None], canvas.rng.uniform(-700, 150), image)


def scanned(image: Tensor, codes: Tensor, canvas: Canvas, noise_range: tuple[float, float] = NOISE_HU) -> Tensor:
    """Return the image as a scanner would give it: blurred, in slices, sharpened, noisy (range in HU), cut off."""
    rng = canvas.rng
    image = blur(image, rng.uniform(*KERNEL_MM) / canvas.spacing)
    chance = rng.random()
    if chance < 0.45:
        axis = 0 if chance < 0.35 else int(rng.integers(1, 3))
        image = thick_slices(image, axis, max(2, round(rng.uniform(*SLICE_MM) / canvas.spacing)))
    noise = np.exp(rng.uniform(*np.log(noise_range)))
    grain = canvas.noise()
    if rng.random() < 0.6:
        grain = blur(grain, rng.uniform(0.4, 1.0))
        grain /= grain.std()
    image = image + noise * grain
    if rng.random() < 0.3:
        image = image + rng.uniform(0.3, 1.5) * (image - blur(image, 0.9))
    image = image * rng.uniform(0.95, 1.05) + rng.normal(0, 12)
    return torch.where(codes == OUTSIDE, OUTSIDE_HU, image.clamp(-1024, 3071))
