"""What the training loop needs to know of a run, whatever it trains for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings that all kinds of runs share; `segmamba.training.config.Config` says what each means.

    Raises
    ------
    ValueError
        One of them cannot be.
    """

    architecture: str
    arguments: Mapping[str, Any]
    folder: str
    start_from: str = ""
    batch: int = 2
    iterations: int = 30000
    minutes: float | None = None
    warmup: int = 500
    learning_rate: float = 6e-4
    weight_decay: float = 1e-2
    ema: float = 0.999
    log_every: int = 100
    checkpoint_every: int = 1000
    evaluate_every: int = 5000
    seed: int = 0
    device: str = "auto"
    compile: bool = False
    base: Path = Path(".")

    def __post_init__(self) -> None:
        for name in ("folder", "start_from", "device"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a text")
        for name in ("batch", "iterations", "log_every", "checkpoint_every", "evaluate_every"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1")
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and self.warmup >= 0):
            raise ValueError("learning_rate must be positive, weight_decay and warmup must not be negative")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError("minutes must be positive")
        if not 0 <= self.ema < 1:
            raise ValueError("ema must be at least 0 and below 1")
