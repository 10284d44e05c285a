"""What all networks of a run share: made once, in `segmamba.inference.pipeline.segment`, and handed down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from segmamba.errors import Cancelled

if TYPE_CHECKING:
    from segmamba.models.manifest import FineStage, Model


def _no_progress(fraction: float) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True, eq=False)
class RunContext:
    """Where and how the networks of a run compute, and who watches them.

    Attributes
    ----------
    device : device
        Where the networks run.
    dtype : dtype
        float32, or the half precision of autocast.
    overlap : float or None
        Part of a window that its neighbour covers at least; None is the model's.
    tta : bool
        Test-time augmentation: average over the flips along the model's axes.
    progress : callable
        Called with the fraction of the prediction that is done.
    cancelled : callable
        Asked between windows, between vertebrae, and between steps.
    fast : bool
        The first of two stages runs on a coarser grid, and both have windows that fit the volume.
    """

    device: torch.device
    dtype: torch.dtype
    overlap: float | None = None
    tta: bool = False
    progress: Callable[[float], None] = _no_progress
    cancelled: Callable[[], bool] = _never
    fast: bool = False

    def overlap_of(self, stage: Model | FineStage) -> float:
        """Return the overlap of a stage's windows."""
        return stage.overlap if self.overlap is None else self.overlap

    @property
    def workplace(self) -> torch.device:
        """Where all but the networks is computed: on their GPU if that is NVIDIA's, else on the processor."""
        usable = self.device.type == "cuda" and torch.cuda.is_available()
        return self.device if usable else torch.device("cpu")

    def check_cancelled(self) -> None:
        """Raise Cancelled if the user stopped the run."""
        if self.cancelled():
            raise Cancelled()

    def part(self, begin: float, end: float) -> RunContext:
        """Return the context of a part of the prediction, whose progress goes from ``begin`` to ``end``."""
        return replace(self, progress=lambda fraction: self.progress(begin + (end - begin) * fraction))
