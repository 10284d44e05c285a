"""What a run trains for: its samples, its loss, its steps and its measure. The loop is the same for all tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segmamba.errors import InputError
from segmamba.tasks import COLORECTAL_TASK
from segmamba.training.colorectal.validation import evaluate_bowel
from segmamba.training.config import Config
from segmamba.training.losses import dice_cross_entropy, vertebra_loss
from segmamba.training.sample_source import Source, source_factory
from segmamba.training.vertebrae.validation import evaluate

if TYPE_CHECKING:
    from segmamba.training.loop import Run

# The cosine decay ends at this part of the learning rate.
LAST_RATE = 0.005


class Task:
    """What the loop asks of a task. These defaults are those of training on synthetic images."""

    @property
    def records(self) -> bool:
        """Whether a step is recorded as a CUDA graph also where nothing is compiled."""
        return False

    def prepare(self, run_device: torch.device) -> None:
        """Read what the run needs, before anything is made. Raises InputError where it is missing."""

    def source(self, run: Run) -> Source:
        """Return what gives the batches from the run's iteration on."""
        raise NotImplementedError

    def loss(self, answer: Tensor, *targets: Tensor) -> Tensor:
        """Return the loss of a network's answer, a scalar."""
        raise NotImplementedError

    def optimizer(self, groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        """Return an optimizer, fused, of parameters in groups with their own ``weight_decay``."""
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)

    def learning_rate(self, run: Run) -> float:
        """Return the rate of the next step: linear warm-up, then cosine decay over the iterations or the minutes."""
        config = run.config
        done = (run.iteration - config.warmup) / max(1, config.iterations - config.warmup)
        done = min(1.0, max(done, time_spent(run)))
        return warmed_up(run, max(LAST_RATE, 0.5 * (1 + math.cos(math.pi * done))))

    def is_over(self, run: Run) -> bool:
        """Whether the run's own budget is spent, apart from its iterations."""
        return time_spent(run) >= 1

    def part_done(self, run: Run) -> float:
        """Return the part of the whole training that is done, 0 to 1: of its iterations or of its minutes."""
        return max(min(1.0, run.iteration / run.config.iterations), time_spent(run))

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to evaluate with."""
        return False

    def evaluate(self, run: Run) -> float | None:
        """Measure the averaged network, log it, and return the figure that the best weights are chosen by, if any."""
        return None


def time_spent(run: Run) -> float:
    """Return the part of the time for steps that was spent, 0 to 1; 0 where it is not limited."""
    minutes = run.config.minutes
    return 0.0 if minutes is None else min(1.0, run.seconds / (60 * minutes))


def warmed_up(run: Run, share: float) -> float:
    """Return the run's learning rate times ``share``, or that of the linear warm-up as long as it lasts."""
    config = run.config
    if run.iteration < config.warmup:
        return config.learning_rate * (run.iteration + 1) / config.warmup
    return config.learning_rate * share


class SyntheticTask(Task):
    """Samples synthesised from label maps, as a `Config` says, measured on evaluation cases.

    Raises
    ------
    InputError
        From `prepare`: there is nothing to train on or to evaluate with.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._cases: Sequence[Path] = []
        self._make_source: Callable[[int], Source] | None = None

    def prepare(self, run_device: torch.device) -> None:
        config = self.config
        self._cases = config.files(config.evaluation) if config.evaluation else []
        if config.evaluation and not self._cases:
            raise InputError(f"No evaluation case matches '{config.evaluation}': correct it, or leave the key out.")
        self._make_source = source_factory(config, run_device)

    def source(self, run: Run) -> Source:
        assert self._make_source is not None
        # A resumed run must not draw again what it has drawn, nor two of a group the same.
        return self._make_source((self.config.seed + run.iteration) * run.group.size + run.group.rank)

    def loss(self, answer: Tensor, *targets: Tensor) -> Tensor:
        if self.config.task == COLORECTAL_TASK:
            return dice_cross_entropy(answer, targets[0])
        return vertebra_loss(answer, *targets)

    @property
    def evaluates(self) -> bool:
        return bool(self._cases)

    def evaluate(self, run: Run) -> None:
        config = self.config
        dtype = torch.bfloat16 if run.device.type == "cuda" else torch.float32
        measure = evaluate_bowel if config.task == COLORECTAL_TASK else evaluate
        results = measure(run.average, self._cases, config.channels, config.patch, dtype)
        rounded = {name: {key: round(value, 4) for key, value in case.items()} for name, case in results.items()}
        run.log(evaluation=rounded)
