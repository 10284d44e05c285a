"""Synthetic training samples from tissue label maps, on the device of the maps.

Each sample has a new position, pose, elastic deformation, set of tissue intensities, scanner and field of view, so that
no image is seen twice. Training on images synthesized from label maps is the idea of Billot et al., SynthSeg, 2023; the
recipe is our own. Real exams whose bodies are labelled can be mixed in; they are deformed and scanned in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmamba.io.modality import CT
from segmamba.models.manifest import IntensityNormalization
from segmamba.training.losses import UNKNOWN
from segmamba.training.synthesis import ct, mr
from segmamba.training.synthesis.elastic import (
    choose_crop,
    cut_field_of_view,
    deformed_grid,
    jittered,
    random_deformation,
)
from segmamba.training.synthesis.synthesizer import SampleSynthesizer, normalize
from segmamba.training.synthesis.tissue_labels import OUTSIDE, RIBS, VERTEBRAE
from segmamba.training.vertebrae.exams import SPACING, Exam, sampled
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
        0, or the vertebra's level (VerSe), or a code of `segmamba.training.losses`.
    offsets : Tensor (batch, 3, z, y, x), float32
        From each voxel of a vertebra to its centroid (mean position of the vertebra's voxels), z, y, x in mm; NaN where
        a real exam does not show where that is.
    ribs : Tensor (batch, z, y, x), int64
        1 for a rib, `UNKNOWN` in real exams.
    """

    image: Tensor
    levels: Tensor
    offsets: Tensor
    ribs: Tensor


@dataclass(frozen=True)
class RealExams:
    """Real exams, the part of the samples that is made of them, and where those are made."""

    exams: Sequence[Exam] = ()
    share: float = 0.0
    device: torch.device = torch.device("cpu")


@dataclass(frozen=True)
class Shares:
    """Parts of the synthetic samples, 0 to 1: MR, and images in which something hides bone."""

    mr: float = 0.0
    degraded: float = 0.0


class VertebraSynthesizer(SampleSynthesizer[Batch]):
    """Synthesizes samples for a vertebra network.

    Parameters
    ----------
    anatomies : sequence of Anatomy
        On the device of the samples. There may be none where all samples are of real exams.
    patch, spacing, seed
        As for `SampleSynthesizer`.
    channels : mapping of str to sequence of IntensityNormalization
        Normalization of "CT" (of scheme "clip") and, where there is MR, of "MR" (of scheme "relative").
    shares : Shares, optional
        By default all samples are CT, none of them degraded.
    real : RealExams
        Mixed in.
    """

    def __init__(
        self,
        anatomies: Sequence[Anatomy],
        patch: tuple[int, int, int],
        spacing: float,
        channels: Mapping[str, Sequence[IntensityNormalization]],
        shares: Shares | None = None,
        seed: int = 0,
        real: RealExams | None = None,
    ) -> None:
        self.real = real or RealExams()
        device = anatomies[0].tissues.device if anatomies else self.real.device
        super().__init__(Batch, patch, spacing, device, seed)
        self.anatomies = anatomies
        self.channels = channels
        self.shares = shares or Shares()

    def sample(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return image (channels, z, y, x), levels (z, y, x), offsets (3, z, y, x) and ribs (z, y, x)."""
        context = self.context
        if self.real.exams and context.rng.random() < self.real.share:
            return self._real_sample()
        anatomy, centre = choose_crop(self.anatomies, context)
        tissues, centres = random_deformation(anatomy, centre, context)
        tissues = cut_field_of_view(tissues, context)
        is_mr = context.rng.random() < self.shares.mr
        # Without a share nothing is drawn: the samples are those of earlier versions.
        degraded = self.shares.degraded > 0 and context.rng.random() < self.shares.degraded
        if is_mr:
            tissues = mr.cut_to_slab(tissues, context)
            image = self._mr_channels(mr.synthesize(tissues, context, degraded))
        else:
            image = normalize(ct.synthesize(tissues, context, degraded)[None], self.channels["CT"])
        levels = tissues.masked_fill(tissues > VERTEBRAE, 0).long()
        ribs = ((tissues >= RIBS.start) & (tissues < RIBS.stop)).long()
        return image, levels, self._offsets(levels, centres), ribs

    def _real_sample(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        context, exams = self.context, self.real.exams
        exam = exams[int(context.rng.integers(len(exams)))]
        level = int(context.rng.choice(sorted(exam.centres)))
        centre = jittered(exam.centres[level], SPACING, context)
        places = np.zeros((VERTEBRAE + 1, 3))
        for label, point in exam.centres.items():
            places[label] = point
        where, centres = deformed_grid(places - centre, centre, SPACING, context)
        known = context.upload(np.isin(np.arange(VERTEBRAE + 1), list(exam.centres)).astype(float))
        centres = torch.where(known[:, None] > 0, centres, torch.nan)
        image, codes, inside = sampled(exam, where)
        codes = cut_field_of_view(codes.masked_fill(~inside, OUTSIDE), context)
        if exam.modality == CT:
            channels = normalize(ct.rescanned(image, codes, context)[None], self.channels[CT])
        else:
            codes = mr.cut_to_slab(codes, context)
            channels = self._mr_channels(mr.rescanned(image, codes, context))
        levels = codes.masked_fill(codes == OUTSIDE, 0).long()
        ribs = torch.full_like(levels, UNKNOWN)
        return channels, levels, self._offsets(levels, centres), ribs

    def _mr_channels(self, image: Tensor) -> Tensor:
        scaled = mr.relative(image) * np.exp(self.context.rng.normal(0, MR_SCALE_JITTER))
        return normalize(scaled[None], self.channels["MR"])

    def _offsets(self, levels: Tensor, centres: Tensor) -> Tensor:
        grid = [torch.arange(n, device=levels.device, dtype=torch.float32) for n in levels.shape]
        voxels = torch.stack(torch.meshgrid(*grid, indexing="ij"))
        return (centres[levels.masked_fill(levels > VERTEBRAE, 0)].movedim(-1, 0) - voxels) * self.context.spacing
