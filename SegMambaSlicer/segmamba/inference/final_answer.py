"""The probabilities behind the labels, on the volume's own voxels, one structure at a time, and their uncertainty."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segmamba.inference.prediction import Prediction
from segmamba.inference.resample_back import interpolated_blocks
from segmamba.io.channels_file import CHANNELS_EXTENSIONS, write_channels
from segmamba.io.labelmap import write_labelmap
from segmamba.io.volume import Geometry
from segmamba.models.manifest import Model
from segmamba.utils.atomic import atomic_write

BACKGROUND = "Background"
# A class that is less probable than this in a whole block rounds to 0 there.
LEAST = 0.5 / 255
# Entropy is written in hundredths of a bit: 100 where two classes are equally probable.
STEPS_PER_BIT = 100


@dataclass(frozen=True, eq=False)
class FinalAnswer:
    """What the labels of a run were chosen from: after refinement, before postprocessing.

    Attributes
    ----------
    prediction : Prediction
    model : Model
    device : str or None
        Where to interpolate; None for where the probabilities are.
    """

    prediction: Prediction
    model: Model
    device: str | None

    @property
    def geometry(self) -> Geometry:
        """The volume's grid."""
        return self.prediction.grid.input

    @property
    def names(self) -> tuple[str, ...]:
        """What each channel is of: the background first, unless the structures are regions that overlap."""
        labels = {label.value: label.name for label in self.model.labels}
        values = self.prediction.label_values[self._first :]
        return tuple(BACKGROUND if value == 0 else labels[value] for value in values)

    def channels(self) -> Iterator[np.ndarray]:
        """Give the probability of each of ``names``: uint8 (z, y, x) on ``geometry``, 0 to 255.

        One at a time, so that memory holds one. Outside a region of interest all is background.
        """
        for number in range(self._first, len(self.prediction.label_values)):
            # Where nothing was looked at is background.
            sure = 255 if number == 0 and not self.model.has_regions else 0
            channel = np.full(self.geometry.size[::-1], sure, np.uint8)
            for block, active, values in self._blocks():
                index = (active == number).nonzero()
                own = values[index[0, 0]] if len(index) else torch.zeros(values.shape[1:])
                if number == 0 and len(active) == 1:
                    own = torch.ones(values.shape[1:])
                channel[block] = (own * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
            yield channel

    def uncertainty(self) -> np.ndarray:
        """Return the entropy of the classes at each voxel in hundredths of a bit: uint8 (z, y, x) on ``geometry``.

        Of regions that overlap, that of the least certain one.
        """
        found = np.zeros(self.geometry.size[::-1], np.uint8)
        for block, active, values in self._blocks():
            if len(active) > 1:
                bits = _region_bits(values[1:]) if self.model.has_regions else _bits(values)
                found[block] = (bits * STEPS_PER_BIT).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return found

    @property
    def _first(self) -> int:
        return 1 if self.model.has_regions else 0

    def _blocks(self) -> Iterator[tuple[tuple[slice, ...], torch.Tensor, torch.Tensor]]:
        prediction = self.prediction
        return interpolated_blocks(
            prediction.probabilities, prediction.grid, self.device, self.model.resamples_logits, LEAST
        )


def write_probabilities(path: str | Path, answer: FinalAnswer) -> None:
    """Write the probabilities as one file of four dimensions, whole or not at all.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    with atomic_write(path, CHANNELS_EXTENSIONS) as temporary:
        write_channels(temporary, answer.geometry, answer.names, answer.channels())


def write_uncertainty(path: str | Path, answer: FinalAnswer) -> None:
    """Write the entropy of each voxel, hundredths of a bit, as one volume, whole or not at all.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    write_labelmap(path, answer.uncertainty(), answer.geometry, ())


def _bits(values: torch.Tensor) -> torch.Tensor:
    parts = values.float().clamp_min(0)
    parts = parts / parts.sum(dim=0).clamp_min(1e-6)
    return -(parts * parts.clamp_min(1e-12).log2()).sum(dim=0)


def _region_bits(values: torch.Tensor) -> torch.Tensor:
    inside = values.float().clamp(0, 1)
    both = torch.stack([inside, 1 - inside], dim=1)
    bits = -(both * both.clamp_min(1e-12).log2()).sum(dim=1)
    # The least certain one.
    return bits.amax(dim=0)
