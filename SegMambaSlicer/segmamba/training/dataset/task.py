"""Training on cached cases of a data set: what the loop asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segmamba.training.dataset.cache import CachedCase
from segmamba.training.dataset.curves import draw_curves
from segmamba.training.dataset.partial import DrawnSets, partial_loss, possible_classes
from segmamba.training.dataset.plan import IGNORED, Plan
from segmamba.training.dataset.regions import region_loss
from segmamba.training.dataset.results import Scores
from segmamba.training.dataset.source import CaseSource
from segmamba.training.dataset.validation import mean_dice, validate
from segmamba.training.losses import dice_cross_entropy
from segmamba.training.tasks import Task, warmed_up

if TYPE_CHECKING:
    from segmamba.training.loop import Run

POWER = 0.9
MOMENTUM = 0.99


class DatasetTask(Task):
    """Samples of labelled cases, Dice and cross-entropy, and the Dice of each structure on cases that are held out.

    Parameters
    ----------
    plan : Plan
    training, validation : sequence of CachedCase
        No person is in both. Without cases for validation nothing is measured, and the last weights are the result.
    sets : tuple
        From `segmamba.training.dataset.partial.drawn_sets`.
    """

    def __init__(
        self,
        plan: Plan,
        training: Sequence[CachedCase],
        validation: Sequence[CachedCase] = (),
        sets: DrawnSets = (),
    ) -> None:
        self.plan = plan
        self.training = training
        self.validation = validation
        self.possible = possible_classes(sets, list(plan.labels))
        # Of the last validation, by case and structure.
        self.scores: Scores = {}

    @property
    def records(self) -> bool:
        return self.plan.recipe.record

    def prepare(self, run_device: torch.device) -> None:
        self.possible = self.possible.to(run_device)

    def source(self, run: Run) -> CaseSource:
        recipe = self.plan.recipe
        return CaseSource(
            self.training,
            self.plan.patch,
            self.plan.flip_axes,
            run.device,
            recipe.foreground_share,
            seed=recipe.seed * run.group.size + run.group.rank,
            first=run.iteration,
            readers=recipe.readers,
        )

    def loss(self, answer: Tensor, *targets: Tensor) -> Tensor:
        if self.plan.regions:
            return region_loss(answer, targets[0], self.plan.region_classes, IGNORED)
        if len(self.possible):
            return partial_loss(answer, targets[0], self.possible, IGNORED)
        return dice_cross_entropy(answer, targets[0], IGNORED)

    def optimizer(self, groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        if self.plan.recipe.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=learning_rate, momentum=MOMENTUM, nesterov=True, fused=True)
        return super().optimizer(groups, learning_rate)

    def learning_rate(self, run: Run) -> float:
        """Return the rate of the next step; it falls with the iterations or with the time, whichever ends first."""
        left = 1 - self.part_done(run)
        if self.plan.recipe.schedule == "cosine":
            return warmed_up(run, 0.5 * (1 - math.cos(math.pi * left)))
        return warmed_up(run, left**POWER)

    @property
    def evaluates(self) -> bool:
        return bool(self.validation)

    def evaluate(self, run: Run) -> float | None:
        names = list(self.plan.labels)
        results = validate(run.average, self.validation, self.plan.patch, names, self.plan.region_classes)
        mean = mean_dice(results)
        self.scores = {case: {name: round(v, 4) for name, v in found.items()} for case, found in results.items()}
        run.log(evaluation=self.scores, mean_dice=round(mean, 4))
        draw_curves(run.folder)
        return mean
