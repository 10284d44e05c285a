"""A plan, a case and a run with an engine that takes no time, for the tests of a batch's parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import tiny
from helpers.quick_engine import write_inputs
from segmamba.batch.batch_case import BatchCase
from segmamba.batch.cases import find_cases
from segmamba.batch.layout import prepare
from segmamba.batch.plan import Plan, make_plan
from segmamba.batch.progress import Progress
from segmamba.batch.run import BatchSettings, run_batch
from segmamba.cli.progress import CaseProgress
from segmamba.request import Options, Request


@pytest.fixture(scope="module")
def manifest_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def plan(tmp_path: Path, manifest_file: Path) -> Plan:
    """The plan of a run into ``tmp_path / "out"``, whose input is ``tmp_path / "in"``."""
    prepare(tmp_path / "out")
    return make_plan(request(manifest_file), tmp_path / "out", "seg.nrrd")


@pytest.fixture
def case(tmp_path: Path) -> BatchCase:
    write_inputs(tmp_path / "in", 1)
    (found,) = find_cases([str(tmp_path / "in")], tmp_path / "out")
    return found


def request(manifest: Path, **options: object) -> Request:
    given = Options(device="cpu", **options)  # type: ignore[arg-type]
    return Request(input="", output="", task="vertebrae", manifest=str(manifest), options=given)


def start_run(
    place: Path, manifest: Path, shown: list[CaseProgress], stopped: Callable[[], bool], scheduler: str | None = None
) -> Progress:
    """Run on ``place / "in"``; what shows its rows is put into a list."""

    def make_progress(total: int) -> CaseProgress:
        shown.append(CaseProgress(total, machine=False, quiet=True))
        return shown[0]

    settings = BatchSettings(scheduler=scheduler, workers=1 if scheduler is None else None, retries=0)
    given = [str(place / "in")], place / "out", request(manifest), settings
    return run_batch(*given, stopped, print, make_progress)
