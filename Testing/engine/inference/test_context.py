"""What the networks of a run share."""

from __future__ import annotations

import pytest
import torch

from segmamba.errors import Cancelled
from segmamba.inference.context import RunContext
from segmamba.models.manifest import FineStage

STAGE = FineStage((1.0, 1.0, 1.0), (32, 32, 32), 0.3, ())
CPU = torch.device("cpu")


def test_an_overlap_that_was_asked_for_replaces_the_models() -> None:
    assert RunContext(CPU, torch.float32).overlap_of(STAGE) == 0.3
    assert RunContext(CPU, torch.float32, overlap=0.0).overlap_of(STAGE) == 0.0


def test_the_progress_of_a_part_lies_between_its_ends() -> None:
    heard: list[float] = []
    second = RunContext(CPU, torch.float32, progress=heard.append).part(0.6, 1.0)
    for fraction in (0.0, 0.5, 1.0):
        second.progress(fraction)
    assert heard == pytest.approx([0.6, 0.8, 1.0])


def test_a_run_without_a_watcher_is_never_cancelled() -> None:
    context = RunContext(CPU, torch.float32)
    context.progress(0.5)
    context.check_cancelled()
    with pytest.raises(Cancelled):
        RunContext(CPU, torch.float32, cancelled=lambda: True).check_cancelled()
