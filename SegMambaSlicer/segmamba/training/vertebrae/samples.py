"""Synthetic training samples from tissue label maps, on the device of the maps.

Each sample has a new position, pose, elastic deformation, set of tissue intensities, scanner and field of view, so that
no image is seen twice and no real voxel is used. Training on images synthesized from label maps is the idea of Billot
et al., SynthSeg, 2023; the recipe is our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmamba.models.manifest import IntensityNormalization
from segmamba.training.synthesis import ct, mr
from segmamba.training.synthesis.elastic import choose_crop, cut_field_of_view, random_deformation
from segmamba.training.synthesis.synthesizer import SampleSynthesizer, normalize
from segmamba.training.synthesis.tissue_labels import RIBS, VERTEBRAE
from segmamba.training.vertebrae.tissue_maps import Anatomy

# Standard deviation of the logarithm of an MR sample's scale: a sample is not the whole volume that is measured later.
MR_SCALE_JITTER = 0.15


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples and their targets.

    Attributes
    ----------
    image : Tensor (batch, channels, z, y, x), float32
    levels : Tensor (batch, z, y, x), int64
        0, or the vertebra's level (VerSe).
    offsets : Tensor (batch, 3, z, y, x), float32
        From each voxel of a vertebra to its centroid (mean position of the vertebra's voxels), z, y, x in mm.
    ribs : Tensor (batch, z, y, x), bool
        Ribs.
    """

    image: Tensor
    levels: Tensor
    offsets: Tensor
    ribs: Tensor


class VertebraSynthesizer(SampleSynthesizer[Batch]):
    """Synthesizes samples for a vertebra network.

    Parameters
    ----------
    anatomies : sequence of Anatomy
        On the device of the samples.
    patch, spacing, seed
        As for `SampleSynthesizer`.
    channels : mapping of str to sequence of IntensityNormalization
        Normalization of "CT" (of scheme "clip") and, where there is MR, of "MR" (of scheme "relative").
    mr_share : float
        Part of the samples that is MR.
    """

    def __init__(
        self,
        anatomies: Sequence[Anatomy],
        patch: tuple[int, int, int],
        spacing: float,
        channels: Mapping[str, Sequence[IntensityNormalization]],
        mr_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(Batch, patch, spacing, anatomies[0].tissues.device, seed)
        self.anatomies = anatomies
        self.channels = channels
        self.mr_share = mr_share

    def sample(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return image (channels, z, y, x), levels (z, y, x), offsets (3, z, y, x) and ribs (z, y, x)."""
        context = self.context
        anatomy, centre = choose_crop(self.anatomies, context)
        tissues, centres = random_deformation(anatomy, centre, context)
        tissues = cut_field_of_view(tissues, context)
        if context.rng.random() < self.mr_share:
            tissues = mr.cut_to_slab(tissues, context)
            image = mr.relative(mr.synthesize(tissues, context)) * np.exp(context.rng.normal(0, MR_SCALE_JITTER))
            image = normalize(image[None], self.channels["MR"])
        else:
            image = normalize(ct.synthesize(tissues, context)[None], self.channels["CT"])
        levels = tissues.masked_fill(tissues > VERTEBRAE, 0).long()
        ribs = (tissues >= RIBS.start) & (tissues < RIBS.stop)
        return image, levels, self._offsets(levels, centres), ribs

    def _offsets(self, levels: Tensor, centres: Tensor) -> Tensor:
        grid = [torch.arange(n, device=levels.device, dtype=torch.float32) for n in levels.shape]
        voxels = torch.stack(torch.meshgrid(*grid, indexing="ij"))
        return (centres[levels].movedim(-1, 0) - voxels) * self.context.spacing
