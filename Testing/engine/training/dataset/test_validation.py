"""Dice on held-out cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.labelled_images import cached, image_of
from torch import nn

from segmamba.training.dataset.plan import IGNORED
from segmamba.training.dataset.validation import dice_of_classes, mean_dice, validate


class Threshold(nn.Module):
    """Finds what is brighter than 150."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(150.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.level.expand_as(image), image], dim=1)


def test_dice_is_that_of_labelled_voxels_and_of_structures_that_are_there() -> None:
    reference = np.array([1, 1, 0, 0, IGNORED, IGNORED])
    found = np.array([1, 0, 1, 0, 1, 2])
    assert dice_of_classes(found, reference, ["cube", "ball"]) == {"cube": pytest.approx(0.5)}


def test_the_mean_is_over_structures_however_many_cases_have_them() -> None:
    assert mean_dice({"a": {"cube": 1.0, "ball": 0.2}, "b": {"cube": 0.8}}) == pytest.approx((0.9 + 0.2) / 2)
    assert mean_dice({}) == 0.0


def test_whole_cases_are_segmented_in_windows() -> None:
    image, labels = image_of(0, 20)
    (found,) = validate(Threshold(), [cached(image, labels)], (16, 16, 16), ["cube"]).values()
    assert found["cube"] > 0.99
