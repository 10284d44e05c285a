"""The random state of a sample's synthesis, and random fields of its size on its device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segmamba.training.synthesis.scanner import upload


@dataclass(frozen=True, eq=False)
class SamplingContext:
    """Size, device and random generators of samples.

    Nothing here reads a value back from the device, and uploads are pinned: the CPU runs ahead and prepares the next
    samples while the GPU is still busy with the network.

    Attributes
    ----------
    patch : tuple of int
        Voxels of a sample along z, y, x.
    spacing : float
        Their size in mm.
    device : device
    rng : numpy.random.Generator
        For single values.
    generator : torch.Generator
        For fields, on the device.
    slices_mm : ndarray
        Shape (3,): how thick the slices along z, y and x are at least that samples were given since it was reset.
    """

    patch: tuple[int, int, int]
    spacing: float
    device: torch.device
    rng: np.random.Generator
    generator: torch.Generator
    slices_mm: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def note_slices(self, axis: int, thickness: float) -> None:
        """Keep that a sample was given slices of so many mm along an axis."""
        self.slices_mm[axis] = max(self.slices_mm[axis], thickness)

    def noise(self) -> Tensor:
        """Return white noise (z, y, x) of standard deviation 1."""
        return torch.randn(self.patch, generator=self.generator, device=self.device)

    def smooth_noise(self, channels: int, size_mm: float) -> Tensor:
        """Return smooth noise (channels, z, y, x) with bumps of about a size, in a small sample as in a whole scan."""
        longest = max(self.patch)
        cells = max(2, round(longest * self.spacing / size_mm))
        shape = [max(2, round(cells * n / longest)) for n in self.patch]
        coarse = torch.randn((1, channels, *shape), generator=self.generator, device=self.device)
        return functional.interpolate(coarse, size=self.patch, mode="trilinear", align_corners=True)[0]

    def upload(self, values: np.ndarray) -> Tensor:
        """Return float32 values on the device."""
        return upload(values, self.device)

    def members(self, tissues: Iterable[int]) -> Tensor:
        """Return a table (256,) of bool: whether a tissue label is one of ``tissues``."""
        table = np.zeros(256)
        table[list(tissues)] = 1.0
        return self.upload(table) > 0
