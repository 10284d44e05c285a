"""What networks find in a volume: one type for models of one stage and of two."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from segmamba.inference.model_grid import ModelGrid


@dataclass(frozen=True, eq=False)
class NetworkPass:
    """One pass of a network over a volume.

    Attributes
    ----------
    grid : ModelGrid
        Of the network's output.
    device : device
        What the network ran on: the CPU where a GPU's memory did not suffice.
    window : tuple of int or None
        Voxels of its windows along z, y, x; None for those that the model names.
    """

    grid: ModelGrid
    device: torch.device
    window: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model predicts for a volume, on its own grid, and how it came about.

    Attributes
    ----------
    probabilities : Tensor
        Shape (classes, z, y, x) on ``grid``, the background first; they sum to one. Logits instead where the model
        resamples those; of regions `segmamba.inference.sliding_window.region_probabilities`.
    label_values : tuple of int
        Label value of each class.
    grid : ModelGrid
        Of ``probabilities``.
    passes : tuple of NetworkPass
        One for each stage that ran; a second stage does not where the first one finds nothing.
    findings : dict
        What else the report gets; of two stages "numbering" and "refinement", see `segmamba.inference.two_stage`.
    warnings : tuple of str
        One sentence for each fallback.
    """

    probabilities: torch.Tensor
    label_values: tuple[int, ...]
    grid: ModelGrid
    passes: tuple[NetworkPass, ...]
    findings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
