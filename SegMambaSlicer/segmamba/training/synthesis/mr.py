"""Synthesize MR images from tissue labels: random contrasts, then coil, slices and noise.

Random contrasts are the idea of SynthSeg (Billot et al., 2023); the structured ones, loosely T1 and T2 weighted, and
all values are our own. Intensities have no unit: fat on T1 is about 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.ct import fill_tissues, mix_intensities
from segmamba.training.synthesis.scanner import blur, surface, thick_slices
from segmamba.training.synthesis.tissue_labels import BONES, BOWEL, OUTSIDE
from segmamba.training.synthesis.tissue_priors import mr_priors

KERNEL_MM = (0.5, 1.6)
SLICE_MM = (2.5, 5.0)
# Widths of a slab in mm: sagittal series cover little more than the column.
SLAB_MM = (45.0, 150.0)
SMALLEST_DIVISOR = 1e-3


def synthesize(tissues: Tensor, context: SamplingContext) -> Tensor:
    """Return a synthetic MR image (z, y, x), not negative, of a tissue label map (z, y, x)."""
    rng = context.rng
    mean, texture = mr_priors(rng)
    index = tissues.long()
    image = fill_tissues(tissues, mean, texture, 0.05, context)
    image = mix_intensities(
        image, context.members(BOWEL)[index], (rng.uniform(0, 1), rng.uniform(0, 1)), 23.0, 0.05, context
    )
    # Cortical bone and end plates have no signal, whatever the weighting.
    shell = context.members(BONES)[index] & surface(tissues)
    image = torch.where(shell, image * rng.uniform(0.05, 0.8), image)
    return _simulate_scanner(image, tissues, context)


def cut_to_slab(tissues: Tensor, context: SamplingContext) -> Tensor:
    """Cut the field of view to a sagittal slab, often."""
    rng, width = context.rng, context.patch[2]
    if rng.random() < 0.4:
        return tissues
    kept = int(rng.uniform(*SLAB_MM) / context.spacing)
    first = int(width / 2 + rng.normal(0, 8 / context.spacing) - kept / 2)
    outside = np.ones(width)
    outside[max(0, first) : max(0, first + kept)] = 0
    return tissues.masked_fill(context.upload(outside) > 0, OUTSIDE)


def _simulate_scanner(image: Tensor, tissues: Tensor, context: SamplingContext) -> Tensor:
    """Return the image of a real scanner: with bias field, blurred, in slices, with Rician noise."""
    rng = context.rng
    shading = (
        rng.uniform(0, 0.35) * context.smooth_noise(1, 160.0)[0]
        + rng.uniform(0, 0.12) * context.smooth_noise(1, 80.0)[0]
    )
    if rng.random() < 0.5:  # a coil behind the back: the signal falls off to the front
        rows = torch.linspace(1, 0, context.patch[1], device=context.device)[:, None]
        shading = shading - rng.uniform(0, 1.2) * rows
    image = blur(image.clamp(min=0) * shading.exp(), rng.uniform(*KERNEL_MM) / context.spacing)
    if rng.random() < 0.6:
        axis = int(rng.choice((2, 2, 0, 1)))
        image = thick_slices(image, axis, max(2, round(rng.uniform(*SLICE_MM) / context.spacing)))
    noise = np.exp(rng.uniform(np.log(0.005), np.log(0.08)))
    image = torch.sqrt((image + noise * context.noise()) ** 2 + (noise * context.noise()) ** 2)
    return image.masked_fill(tissues == OUTSIDE, 0.0)


def relative(image: Tensor) -> Tensor:
    """Divide an image by the mean of its voxels brighter than its mean, as a channel of scheme "relative".

    See `segmamba.inference.preprocess.bright_mean`.
    """
    bright = image > image.mean()  # none in a constant image, where the field of view is somewhere else
    return image / ((image * bright).sum() / bright.sum().clamp(min=1)).clamp(min=SMALLEST_DIVISOR)
