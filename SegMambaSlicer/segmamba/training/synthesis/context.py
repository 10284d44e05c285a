"""Random fields of a sample's size on the device where the sample is painted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segmamba.training.synthesis.scanner import upload


@dataclass(frozen=True, eq=False)
class Canvas:
    """What all painting shares.

    Nothing here reads a value back from the device, and what goes there is pinned: the processor runs ahead, and
    paints the next samples while the GPU is still busy with the network.

    Attributes
    ----------
    patch : tuple of int
        Voxels of a sample along z, y, x.
    spacing : float
        Their size in mm.
    device : device
    rng : numpy.random.Generator
        Decides single figures.
    generator : torch.Generator
        Decides fields, on the device.
    """

    patch: tuple[int, int, int]
    spacing: float
    device: torch.device
    rng: np.random.Generator
    generator: torch.Generator

    def noise(self) -> Tensor:
        """Return white noise (z, y, x) of standard deviation 1."""
        return torch.randn(self.patch, generator=self.generator, device=self.device)

    def smooth_noise(self, channels: int, size_mm: float) -> Tensor:
        """Return (channels, z, y, x) noise with bumps of about a size, the same in a small sample and a whole scan."""
        longest = max(self.patch)
        cells = max(2, round(longest * self.spacing / size_mm))
        shape = [max(2, round(cells * n / longest)) for n in self.patch]
        coarse = torch.randn((1, channels, *shape), generator=self.generator, device=self.device)
        return functional.interpolate(coarse, size=self.patch, mode="trilinear", align_corners=True)[0]

    def upload(self, values: np.ndarray) -> Tensor:
        """Return float32 values on the device."""
        return upload(values, self.device)

    def members(self, codes: Iterable[int]) -> Tensor:
        """Return a table of 256 truth values: whether a code is one of ``codes``."""
        table = np.zeros(256)
        table[list(codes)] = 1.0
        return self.upload(table) > 0
