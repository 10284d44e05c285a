"""A run over many cases: results, errors, going on, dying workers. The runs use a tiny model in real processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from helpers import many_cases, tiny
from helpers.quick_engine import EngineHere
from helpers.warm_child import WarmChild
from pyarrow import parquet

from segmamba.batch import engine
from segmamba.batch.layout import CASES, OVERVIEW, PAGE, PARQUET, RECORD, TABLE, WORKING
from segmamba.cli.batch import SOME_FAILED
from segmamba.cli.main import main
from segmamba.io.read import read_volume
from segmamba.worker.client import worker_environment

pytestmark = pytest.mark.slow
posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
COUNT = many_cases.BROKEN + 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inputs and a model."""
    folder = tmp_path_factory.mktemp("batch")
    tiny.write_model(folder)
    many_cases.write_cases(folder / "in", COUNT)
    return folder


def run(folder: Path, name: str, *more: str, source: str = "in") -> list[str]:
    return many_cases.command(folder / source, folder / name, folder / "manifest.json", *more)


@pytest.fixture(scope="module")
def peaceful(folder: Path) -> Path:
    """The results of a run that nothing disturbed."""
    assert main(run(folder, "out", "--workers", "2")[3:]) == SOME_FAILED
    return folder / "out"


@pytest.fixture
def local(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The same run for this process, with one worker, whose engine needs no process of its own."""
    monkeypatch.setattr(engine, "Engine", EngineHere)
    return run(folder, "out", "--workers", "1")[3:]


def test_good_cases_have_results_and_broken_ones_a_sentence_each(peaceful: Path) -> None:
    outcomes = many_cases.outcomes(peaceful)
    errors = [error for status, error in outcomes.values() if status == "failed"]
    assert len(outcomes) == COUNT
    assert len(errors) == many_cases.BROKEN
    for says in ("empty", "not an image", "truncated", "NaN", "4-D", "lacks 1 slice"):
        assert any(says in error for error in errors), errors
    assert all(error.count("\n") == 0 and WORKING not in error for error in errors)
    assert len(list((peaceful / CASES).iterdir())) == COUNT - many_cases.BROKEN


def test_a_case_has_a_segmentation_a_report_and_pictures_without_what_changes_from_run_to_run(peaceful: Path) -> None:
    for case in (peaceful / CASES).iterdir():
        names = {path.name for path in case.iterdir()}
        assert names == {"segmentation.seg.nrrd", "report.json", "preview.png", "thumbnail.jpg", PAGE, RECORD}
        assert read_volume(case / "segmentation.seg.nrrd").array.any()
        report = json.loads((case / "report.json").read_text(encoding="utf-8"))
        assert report["segments"]
        assert report["output"] == "segmentation.seg.nrrd" and report["page"] == PAGE
        assert report["output_sha256"] in (case / PAGE).read_text(encoding="utf-8")
        assert Path(report["input"]).is_file()
        assert "timings_s" not in report


def test_the_table_has_a_row_a_case_and_a_column_a_figure(peaceful: Path) -> None:
    with (peaceful / TABLE).open(encoding="utf-8", newline="") as stream:
        written = list(csv.DictReader(stream))
    typed = parquet.read_table(peaceful / PARQUET).to_pylist()
    assert len(written) == len(typed) == COUNT
    done = [row for row in typed if row["status"] == "done"]
    assert all(row["seconds"] > 0 and row["timings_s.total"] > 0 for row in done)
    assert any((row["L1 vertebra.volume_ml"] or 0) > 0 for row in done)
    assert [row["case"] for row in written] == [row["case"] for row in typed]
    assert list(written[0]) == list(typed[0])


def test_the_overview_shows_every_case_and_needs_no_other_host(peaceful: Path) -> None:
    page = (peaceful / OVERVIEW).read_text(encoding="utf-8")
    assert page.count("<article") == COUNT
    assert page.count("data:image/jpeg;base64,") == COUNT - many_cases.BROKEN
    assert "do not use it for diagnosis" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<!--" not in page


def test_a_second_run_does_nothing_again_and_rebuilds_the_table(peaceful: Path, local: list[str]) -> None:
    before = many_cases.results(peaceful)
    outcomes = many_cases.outcomes(peaceful)
    times = {path: path.stat().st_mtime_ns for path in (peaceful / CASES).rglob("*")}
    assert main(local) == SOME_FAILED
    assert many_cases.results(peaceful) == before
    assert many_cases.outcomes(peaceful) == outcomes
    assert times == {path: path.stat().st_mtime_ns for path in (peaceful / CASES).rglob("*")}
    assert not any(row["this_run"] for row in many_cases.rows(peaceful) if row["status"] == "done")


class DyingEngine(engine.Engine):
    """The first of them is killed while it has a case."""

    died = False

    def _hear(self) -> None:
        if not DyingEngine.died and self._worker.pid is not None and self._waiting():
            DyingEngine.died = True
            os.kill(self._worker.pid, signal.SIGKILL)
        super()._hear()


@posix
def test_killed_engines_and_a_killed_main_process_lose_and_double_nothing(
    folder: Path, peaceful: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = run(folder, "killed", "--workers", "1")[3:]
    process = WarmChild([sys.executable, "-m", "helpers.batch_here", *command], worker_environment())
    many_cases.wait_for_records(folder / "killed", 1)
    process.end()
    monkeypatch.setattr(engine, "Engine", DyingEngine)
    assert main(command) == SOME_FAILED
    assert DyingEngine.died
    assert many_cases.results(folder / "killed") == many_cases.results(peaceful)
    assert many_cases.outcomes(folder / "killed") == many_cases.outcomes(peaceful)
    assert any(not row["this_run"] for row in many_cases.rows(folder / "killed"))
    assert not (folder / "killed" / WORKING).exists()
