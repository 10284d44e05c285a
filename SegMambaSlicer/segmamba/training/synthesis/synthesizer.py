"""What the synthesizers of all tasks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from segmamba.models.manifest import IntensityNormalization
from segmamba.training.synthesis.context import SamplingContext

Batch = TypeVar("Batch")


class SampleSynthesizer(ABC, Generic[Batch]):
    """Synthesizes training samples; two synthesizers with the same seed give the same ones.

    Parameters
    ----------
    batch_type : callable
        Makes a batch of its tensors: the image (batch, channels, z, y, x), then the targets.
    patch : tuple of int
        Voxels of a sample along z, y, x.
    spacing : float
        Their size in mm.
    device : device
        Where the tissue label maps are and the samples will be.
    seed : int
    """

    def __init__(
        self,
        batch_type: Callable[..., Batch],
        patch: tuple[int, int, int],
        spacing: float,
        device: torch.device,
        seed: int,
    ) -> None:
        self._batch_type = batch_type
        generator = torch.Generator(device).manual_seed(seed)
        self.context = SamplingContext(patch, spacing, device, np.random.default_rng(seed), generator)

    @abstractmethod
    def sample(self) -> tuple[Tensor, ...]:
        """Return one sample: image (channels, z, y, x) and targets."""

    def batch(self, size: int) -> Batch:
        """Return ``size`` new samples."""
        fields = zip(*(self.sample() for _ in range(size)), strict=True)
        return self._batch_type(*(torch.stack(field) for field in fields))


def normalize(image: Tensor, channels: Sequence[IntensityNormalization]) -> Tensor:
    """Return (channels, z, y, x) from intensities (1, z, y, x): clip, subtract the mean, divide by the deviation."""
    parts = [(image.clamp(c.low, c.high) - (c.mean or 0.0)) / (c.std or 1.0) for c in channels]
    return torch.cat(parts)
