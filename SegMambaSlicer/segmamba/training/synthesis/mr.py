"""Synthesize MR images from tissue labels: random contrasts, then coil, slices and noise.

Random contrasts are the idea of SynthSeg (Billot et al., 2023); the structured ones, loosely T1 and T2 weighted, and
all values are our own. Intensities have no unit: fat on T1 is about 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.ct import fill_tissues, in_averaged_slices, in_profiled_slices, mix_intensities
from segmamba.training.synthesis.scanner import blur, surface
from segmamba.training.synthesis.tissue_labels import AIR, BONES, BOWEL, CORD, DISC, FAT, OUTSIDE, VERTEBRAE
from segmamba.training.synthesis.tissue_priors import mr_priors

KERNEL_MM = (0.5, 1.6)
SLICE_MM = (2.5, 5.5)
# Part of the images in thick slices, and how often these are sagittal (x), coronal and axial.
THICK_CHANCE, SLICE_AXES = 0.7, (2, 2, 2, 2, 1, 0)
# Slices of degraded images in mm, and how often these are sagittal and axial.
PROFILED_MM, PROFILED_AXES = (3.5, 6.0), (2, 2, 2, 0)
# Widths of a slab in mm: sagittal series cover little more than the column.
SLAB_MM = (45.0, 150.0)
# A band of saturated tissue before the column begins this far before its foremost bone in view, and is this soft, mm.
BAND_MM, BAND_EDGE_MM = (5.0, 60.0), 6.0
# A real image is bent by this exponent at most, and filmed with this part of the shading and noise of a synthetic one.
GAMMA, AGAIN = 1.35, 0.5
SMALLEST_DIVISOR = 1e-3


def synthesize(tissues: Tensor, context: SamplingContext, degraded: bool = False) -> Tensor:
    """Return a synthetic MR image (z, y, x), not negative, of a tissue label map (z, y, x).

    One that is ``degraded`` has thick slices with a profile, sagittal ones mostly.
    """
    rng = context.rng
    mean, texture = mr_priors(rng)
    index = tissues.long()
    image = fill_tissues(tissues, mean, texture, 0.05, context)
    image = mix_intensities(
        image, context.members(BOWEL)[index], (rng.uniform(0, 1), rng.uniform(0, 1)), 23.0, 0.05, context
    )
    image = _with_structure(image, tissues, context)
    # Cortical bone and end plates have no signal, whatever the weighting.
    shell = context.members(BONES)[index] & surface(tissues)
    image = torch.where(shell, image * rng.uniform(0.05, 0.8), image)
    if degraded:
        axis = int(rng.choice(PROFILED_AXES))
        image = in_profiled_slices(image, axis, rng.uniform(*PROFILED_MM), context)
    return _simulate_scanner(image, tissues, context)


def rescanned(image: Tensor, codes: Tensor, context: SamplingContext) -> Tensor:
    """Return a real image (z, y, x) with the contrast, shading, slices and noise of another scanner, not negative.

    ``codes`` (z, y, x) are its labels; `OUTSIDE` is out of its field of view.
    """
    rng = context.rng
    image = 0.5 * relative(image.clamp(min=0)) ** np.exp(rng.uniform(-1, 1) * np.log(GAMMA))
    return _simulate_scanner(image, codes, context, AGAIN)


def _with_structure(image: Tensor, tissues: Tensor, context: SamplingContext) -> Tensor:
    """Return an image with what makes tissues uneven: worn discs, nerves in the canal, spots in the marrow, skin."""
    rng, index = context.rng, tissues.long()
    marrow = (tissues > 0) & (tissues <= VERTEBRAE)
    image = torch.where(tissues == DISC, image + rng.uniform(0, 0.3) * context.smooth_noise(1, 30.0)[0], image)
    image = torch.where(marrow, image + rng.uniform(0, 0.1) * context.smooth_noise(1, 25.0)[0], image)
    if rng.random() < 0.7:  # the cord or the nerve roots in their fluid
        nerves = (tissues == CORD) & (context.smooth_noise(1, 9.0)[0] > rng.normal(0, 0.7))
        image = torch.where(nerves, image * rng.uniform(0.25, 1.2), image)
    if rng.random() < 0.3:  # haemangiomas, end plates with oedema or fat, metastases
        spots = context.members(BONES)[index] & (context.smooth_noise(1, 14.0)[0] > rng.uniform(1.5, 2.3))
        image = torch.where(spots, rng.uniform(0, 1.2), image)
    if rng.random() < 0.5:
        air = functional.max_pool3d((tissues == AIR).float()[None, None], 3, 1, 1)[0, 0] > 0
        image = torch.where(air & (tissues == FAT), rng.uniform(0.2, 1.2), image)
    return image


def cut_to_slab(tissues: Tensor, context: SamplingContext) -> Tensor:
    """Cut the field of view to a sagittal slab, often."""
    rng, width = context.rng, context.patch[2]
    if rng.random() < 0.3:
        return tissues
    kept = int(rng.uniform(*SLAB_MM) / context.spacing)
    first = int(width / 2 + rng.normal(0, 8 / context.spacing) - kept / 2)
    outside = np.ones(width)
    outside[max(0, first) : max(0, first + kept)] = 0
    return tissues.masked_fill(context.upload(outside) > 0, OUTSIDE)


def _simulate_scanner(image: Tensor, tissues: Tensor, context: SamplingContext, strength: float = 1.0) -> Tensor:
    """Return the image of a real scanner: with bias field, blurred, in slices, with Rician noise.

    ``strength`` is how much of that an image gets that has been through a scanner before.
    """
    rng = context.rng
    shading = strength * (
        rng.uniform(0, 0.35) * context.smooth_noise(1, 160.0)[0]
        + rng.uniform(0, 0.12) * context.smooth_noise(1, 80.0)[0]
    )
    if rng.random() < 0.6:  # a coil behind the back: the signal falls off to the front
        rows = torch.linspace(1, 0, context.patch[1], device=context.device)[:, None]
        shading = shading - strength * rng.uniform(0, 2.4) * rows ** rng.uniform(0.7, 2.0)
    image = image.clamp(min=0) * shading.exp()
    if rng.random() < 0.3:
        image = image * _saturation(tissues, context)
    if strength == 1.0 or rng.random() < strength:
        image = blur(image, rng.uniform(*KERNEL_MM) / context.spacing)
    if rng.random() < THICK_CHANCE * strength:
        axis = int(rng.choice(SLICE_AXES))
        image = in_averaged_slices(image, axis, rng.uniform(*SLICE_MM), context)
    noise = strength * np.exp(rng.uniform(np.log(0.005), np.log(0.08)))
    image = torch.sqrt((image + noise * context.noise()) ** 2 + (noise * context.noise()) ** 2)
    return image.masked_fill(tissues == OUTSIDE, 0.0)


def _saturation(tissues: Tensor, context: SamplingContext) -> Tensor:
    """Return the factor (y, 1) of a saturation band in front of the column, which suppresses what breathes."""
    rng = context.rng
    rows = torch.arange(context.patch[1], device=context.device, dtype=torch.float32)
    bone = ((tissues > 0) & (tissues <= VERTEBRAE)).any(dim=2).any(dim=0)
    front = rows.masked_fill(~bone, float(context.patch[1])).min() - rng.uniform(*BAND_MM) / context.spacing
    behind = torch.sigmoid((rows - front) * (context.spacing / BAND_EDGE_MM))
    left = rng.uniform(0.05, 0.6)
    factor: Tensor = (left + (1 - left) * behind)[:, None]
    return torch.where(bone.any(), factor, torch.ones_like(factor))


def relative(image: Tensor) -> Tensor:
    """Divide an image by the mean of its voxels brighter than its mean, as a channel of scheme "relative".

    See `segmamba.inference.preprocess.bright_mean`.
    """
    bright = image > image.mean()  # none in a constant image, where the field of view is somewhere else
    return image / ((image * bright).sum() / bright.sum().clamp(min=1)).clamp(min=SMALLEST_DIVISOR)
