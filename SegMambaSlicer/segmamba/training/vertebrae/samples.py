"""Training samples painted from maps of tissues, on whatever device the maps lie.

Each sample has a new place, pose, elastic deformation, set of tissue intensities, scanner and field of view, so no
image is ever seen twice and no real voxel is ever used. The idea of training on painted label maps is Billot et al.,
SynthSeg, 2023; the recipe is our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmamba.models.manifest import Channel
from segmamba.training.synthesis import ct, mr
from segmamba.training.synthesis.context import Canvas
from segmamba.training.synthesis.elastic import choose, cut_field_of_view, deformed
from segmamba.training.synthesis.tissue_labels import RIBS, VERTEBRAE
from segmamba.training.vertebrae.tissue_maps import Anatomy

# Standard deviation of the logarithm of an MR sample's scale: a sample is not the whole volume that is measured later.
MR_SCALE_JITTER = 0.15


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples and what a network shall answer.

    Attributes
    ----------
    image : Tensor (batch, channels, z, y, x), float32
    levels : Tensor (batch, z, y, x), int64
        0, or the vertebra's level (VerSe).
    offsets : Tensor (batch, 3, z, y, x), float32
        From each voxel to the centre of its vertebra (mean position of the vertebra's voxels), z, y, x in mm; only
        where there is a vertebra.
    ribs : Tensor (batch, z, y, x), bool
        Where there is a rib.
    """

    image: Tensor
    levels: Tensor
    offsets: Tensor
    ribs: Tensor


class Painter:
    """Paints training samples; two painters with the same seed paint the same ones.

    Parameters
    ----------
    anatomies : sequence of Anatomy
        On the device where the samples shall be.
    patch : tuple of int
        Voxels of a sample along z, y, x.
    spacing : float
        Their size in mm.
    channels : mapping of str to sequence of Channel
        How the network's input is made from "CT" (of kind "clip") and, perhaps, "MR" (of kind "relative").
    mr_share : float
        Part of the samples that is MR.
    seed : int
    """

    def __init__(
        self,
        anatomies: Sequence[Anatomy],
        patch: tuple[int, int, int],
        spacing: float,
        channels: Mapping[str, Sequence[Channel]],
        mr_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.anatomies = anatomies
        self.channels = channels
        self.mr_share = mr_share
        device = anatomies[0].codes.device
        generator = torch.Generator(device).manual_seed(seed)
        self.canvas = Canvas(patch, spacing, device, np.random.default_rng(seed), generator)

    def batch(self, size: int) -> Batch:
        """Return ``size`` new samples."""
        parts = zip(*(self.sample() for _ in range(size)), strict=True)
        return Batch(*(torch.stack(part) for part in parts))

    def sample(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return one image (channels, z, y, x), its levels (z, y, x), offsets (3, z, y, x) and ribs (z, y, x)."""
        canvas = self.canvas
        anatomy, centre = choose(self.anatomies, canvas)
        codes, centres = deformed(anatomy, centre, canvas)
        codes = cut_field_of_view(codes, canvas)
        if canvas.rng.random() < self.mr_share:
            codes = mr.cut_to_slab(codes, canvas)
            image = mr.relative(mr.paint(codes, canvas)) * np.exp(canvas.rng.normal(0, MR_SCALE_JITTER))
            image = normalised(image[None], self.channels["MR"])
        else:
            image = normalised(ct.paint(codes, canvas)[None], self.channels["CT"])
        levels = codes.masked_fill(codes > VERTEBRAE, 0).long()
        ribs = (codes >= RIBS.start) & (codes < RIBS.stop)
        return image, levels, self._offsets(levels, centres), ribs

    def _offsets(self, levels: Tensor, centres: Tensor) -> Tensor:
        grid = [torch.arange(n, device=levels.device, dtype=torch.float32) for n in levels.shape]
        places = torch.stack(torch.meshgrid(*grid, indexing="ij"))
        return (centres[levels].movedim(-1, 0) - places) * self.canvas.spacing


def normalised(image: Tensor, channels: Sequence[Channel]) -> Tensor:
    """Return (channels, z, y, x) from intensities (1, z, y, x): clip, subtract the mean, divide by the deviation."""
    parts = [(image.clamp(c.low, c.high) - (c.mean or 0.0)) / (c.std or 1.0) for c in channels]
    return torch.cat(parts)
