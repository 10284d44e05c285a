"""Synthesize CT images from tissue labels: intensities, then the scanner. Priors and recipe are our own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.degradation import random_degradation, with_contrast, with_screws
from segmamba.training.synthesis.scanner import blur, profiled_slices, slice_matrix, surface, thick_slices
from segmamba.training.synthesis.tissue_labels import AIR, BONES, BOWEL, FAT, LAST_TISSUE, MUSCLE, OUTSIDE, SOFT
from segmamba.training.synthesis.tissue_priors import OUTSIDE_HU, ct_priors

# Blurs of a scanner's kernel, and slice thicknesses, in mm.
KERNEL_MM = (0.6, 1.7)
SLICE_MM = (2.5, 6.0)
NOISE_HU = (3.0, 100.0)
# Part of the scans with thick slices that are coronal or sagittal.
OTHER_PLANES = 0.1
# A real image gets so much more noise from another scanner, and so often.
AGAIN_HU, AGAIN_CHANCE = (1.0, 30.0), 0.5


@dataclass(frozen=True)
class Scanner:
    """Ranges of a scanner.

    Attributes
    ----------
    noise_hu, slice_mm : tuple of float
        Of noise in HU, and of the thickness of slices in mm.
    thick_share : float
        Part of the scans with such slices.
    profiled_mm : float or None
        Instead, axial slices so thick in every scan, with a profile.
    offset_hu : float
        Standard deviation of the error of the calibration.
    """

    noise_hu: tuple[float, float] = NOISE_HU
    slice_mm: tuple[float, float] = SLICE_MM
    thick_share: float = 0.45
    profiled_mm: float | None = None
    offset_hu: float = 12.0


def synthesize(tissues: Tensor, context: SamplingContext, degraded: bool = False) -> Tensor:
    """Return a synthetic CT (z, y, x) in HU of a tissue label map (z, y, x).

    Where it is ``degraded``, something hides bone (`segmamba.training.synthesis.degradation`).
    """
    image = noiseless_image(tissues, context, *ct_priors(context.rng))
    if not degraded:
        return simulate_scanner(image, tissues, context)
    how = random_degradation(context.rng)
    image = with_contrast(image, tissues, context) if how.contrast else image
    image = with_screws(image, tissues, context) if how.metal else image
    scanner = Scanner(noise_hu=how.noise_hu or NOISE_HU, profiled_mm=how.slices_mm)
    return simulate_scanner(image, tissues, context, scanner)


def rescanned(image: Tensor, codes: Tensor, context: SamplingContext) -> Tensor:
    """Return a real CT (z, y, x) in HU, every second time with the blur, slices and noise of another scanner.

    ``codes`` (z, y, x) are its labels; `OUTSIDE` is out of its field of view.
    """
    if context.rng.random() < AGAIN_CHANCE:
        return simulate_scanner(image, codes, context, Scanner(AGAIN_HU))
    return torch.where(codes == OUTSIDE, OUTSIDE_HU, image.clamp(-1024, 3071))


def noiseless_image(tissues: Tensor, context: SamplingContext, mean: np.ndarray, texture: np.ndarray) -> Tensor:
    """Return the image of a perfect scanner, from the mean and the texture in HU (256 each) of tissue labels."""
    rng = context.rng
    index = tissues.long()
    image = fill_tissues(tissues, mean, texture, 14.0, context)
    gas_or_not = (rng.uniform(-20, 60), -850.0 if rng.random() < 0.6 else rng.uniform(80, 500))
    image = mix_intensities(image, context.members(BOWEL)[index], gas_or_not, 23.0, 14.0, context)
    bone = context.members(BONES)[index]
    cortex = rng.uniform(0, 420) * (1 + 0.35 * context.smooth_noise(1, 16.0)[0])
    image = torch.where(bone & surface(tissues), image + cortex, image)
    if rng.random() < 0.2:  # sclerotic or lytic spots
        spots = bone & (context.smooth_noise(1, 13.0)[0] > 1.6)
        image = torch.where(spots, image + rng.uniform(-150, 350), image)
    if rng.random() < 0.3:  # calcifications, clips, contrast: bright but not bone
        blobs = (tissues >= FAT) & (tissues <= LAST_TISSUE) & (context.smooth_noise(1, 11.0)[0] > rng.uniform(2.0, 2.8))
        image = torch.where(blobs, rng.uniform(150, 1200), image)
    if rng.random() < 0.5:
        image = _with_table(image, tissues, context)
    return image


def fill_tissues(
    tissues: Tensor, mean: np.ndarray, texture: np.ndarray, grain: float, context: SamplingContext
) -> Tensor:
    """Return an image of tissue labels with intensities and texture; soft tissue is a mixture of muscle and fat."""
    priors = context.upload(np.stack([mean, texture]))
    index = tissues.long()
    image = priors[0][index] + priors[1][index] * (0.6 * context.noise() + 0.7 * context.smooth_noise(1, 8.0)[0])
    return mix_intensities(image, tissues == SOFT, (mean[MUSCLE], mean[FAT]), 12.0, grain, context)


def mix_intensities(
    image: Tensor, region: Tensor, values: tuple[float, float], size_mm: float, grain: float, context: SamplingContext
) -> Tensor:
    """Replace a region of an image by a random mixture of two intensities, in patches of a size."""
    field = context.smooth_noise(1, size_mm)[0] + 0.4 * context.noise()
    second = field > context.rng.normal(0, 0.8)
    mixture = torch.where(second, values[1], values[0]) + grain * context.noise()
    return torch.where(region, mixture, image)


def _with_table(image: Tensor, tissues: Tensor, context: SamplingContext) -> Tensor:
    """Put a slab of another material into the air behind the body."""
    gap, thickness = int(context.rng.integers(1, 6)), int(context.rng.integers(1, 5))
    rows = torch.arange(context.patch[1], device=context.device)
    occupied = ((tissues != AIR) & (tissues != OUTSIDE)).any(dim=2).any(dim=0)
    beyond = rows - rows.masked_fill(~occupied, -context.patch[1]).max()
    slab = occupied.any() & (beyond >= gap) & (beyond < gap + thickness)
    return torch.where((tissues == AIR) & slab[:, None], context.rng.uniform(-700, 150), image)


def in_profiled_slices(image: Tensor, axis: int, thickness: float, context: SamplingContext) -> Tensor:
    """Return a (z, y, x) image in slices of ``thickness`` mm that begin anywhere, with a slice profile."""
    context.note_slices(axis, thickness)
    matrix = slice_matrix(image.shape[axis], context.spacing, thickness, -thickness * context.rng.random())
    return profiled_slices(image, axis, matrix)


def in_averaged_slices(image: Tensor, axis: int, thickness: float, context: SamplingContext) -> Tensor:
    """Return a (z, y, x) image averaged over slices of about ``thickness`` mm, at least two voxels."""
    factor = max(2, round(thickness / context.spacing))
    context.note_slices(axis, factor * context.spacing)
    return thick_slices(image, axis, factor)


def simulate_scanner(
    image: Tensor, tissues: Tensor, context: SamplingContext, scanner: Scanner | None = None
) -> Tensor:
    """Return the image of a real scanner: blurred, in slices, sharpened, noisy, clipped."""
    scanner = scanner or Scanner()
    rng = context.rng
    image = blur(image, rng.uniform(*KERNEL_MM) / context.spacing)
    chance = rng.random()
    if scanner.profiled_mm is not None:
        image = in_profiled_slices(image, 0, scanner.profiled_mm, context)
    elif chance < scanner.thick_share:
        axis = 0 if chance < scanner.thick_share - OTHER_PLANES else int(rng.integers(1, 3))
        image = in_averaged_slices(image, axis, rng.uniform(*scanner.slice_mm), context)
    noise = np.exp(rng.uniform(*np.log(scanner.noise_hu)))
    grain = context.noise()
    if rng.random() < 0.6:
        grain = blur(grain, rng.uniform(0.4, 1.0))
        grain /= grain.std()
    image = image + noise * grain
    if rng.random() < 0.3:
        image = image + rng.uniform(0.3, 1.5) * (image - blur(image, 0.9))
    image = image * rng.uniform(0.95, 1.05) + rng.normal(0, scanner.offset_hu)
    return torch.where(tissues == OUTSIDE, OUTSIDE_HU, image.clamp(-1024, 3071))
