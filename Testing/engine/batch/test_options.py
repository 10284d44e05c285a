"""A batch does things again where it is asked to, and stops when it is told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.quick_engine import QuickEngine, quick_run, write_inputs
from pyarrow import parquet

from segmamba.batch import engine
from segmamba.batch.layout import CASES, PARQUET, RECORD
from segmamba.cli.batch import SOME_FAILED
from segmamba.cli.main import main
from segmamba.errors import Cancelled, InputError, WorkerError
from segmamba.request import Request
from segmamba.worker.stations import DEPTH


@pytest.fixture
def call(tmp_path: Path) -> list[str]:
    """A call for three inputs."""
    manifest = tiny.write_model(tmp_path)
    write_inputs(tmp_path / "in", 3)
    places = [str(tmp_path / "in"), str(tmp_path / "out")]
    return ["batch", *places, "--task", "vertebrae", "--manifest", str(manifest), "--device", "cpu", "--quiet"]


def rows(folder: Path) -> list[dict[str, Any]]:
    return parquet.read_table(folder / PARQUET).to_pylist()


def test_what_is_done_is_done_again_where_that_is_asked_for(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Engine", QuickEngine)
    for more, again in (([], True), ([], False), (["--overwrite"], True), ([], False)):
        assert main([*call, *more]) == 0
        assert [row["this_run"] for row in rows(tmp_path / "out")] == [again] * 3


def test_quiet_runs_still_say_which_cases_failed_and_why(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = sorted((tmp_path / "in").iterdir())[1]

    class Failing(QuickEngine):
        def run(self, request: Request, alone: bool = False) -> dict[str, Any]:
            if Path(request.input) == broken:
                raise InputError("This one is no image.")
            return super().run(request, alone)

    monkeypatch.setattr(engine, "Engine", Failing)
    assert main(call) == SOME_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    (failed,) = (row for row in rows(tmp_path / "out") if row["status"] == "failed")
    assert line == f"{failed['case']}: This one is no image."


def test_results_of_another_version_are_done_again_and_that_is_said(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "Engine", QuickEngine)
    call.remove("--quiet")
    assert main(call) == 0
    for record in (tmp_path / "out" / CASES).glob(f"*/{RECORD}"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"version": 1}))
    sentence = f"{tmp_path / 'out'} has results of another version of this software"
    for again, said in ((True, 1), (False, 0)):
        capsys.readouterr()
        assert main(call) == 0
        assert capsys.readouterr().err.count(sentence) == said
        assert [row["this_run"] for row in rows(tmp_path / "out")] == [again] * 3


def test_other_words_about_a_model_leave_finished_cases_finished_and_another_patch_does_not(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Engine", QuickEngine)
    assert main(call) == 0
    path = tmp_path / "manifest.json"
    for change, again in (({"limits": ["Other words."], "title": "Another title"}, False), ({"overlap": 0.25}, True)):
        content = json.loads(path.read_text())
        content["models"][0] |= change
        path.write_text(json.dumps(content))
        assert main(call) == 0
        assert [row["this_run"] for row in rows(tmp_path / "out")] == [again] * 3


def test_a_run_goes_on_only_while_a_file_is_there(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopping(QuickEngine):
        def run(self, request: Request, alone: bool = False) -> dict[str, Any]:
            (tmp_path / "go").unlink(missing_ok=True)
            return quick_run(request)

    monkeypatch.setattr(engine, "Engine", Stopping)
    # More than a worker begins before it is asked whether to go on.
    count = DEPTH + 2
    write_inputs(tmp_path / "many", count)
    call[1:2] = [str(tmp_path / "many"), "--workers", "1"]
    (tmp_path / "go").touch()
    assert main([*call, "--while", str(tmp_path / "go")]) == Cancelled.exit_code
    assert "to resume" in capsys.readouterr().err
    assert len(rows(tmp_path / "out")) < count
    assert main(call) == 0
    assert len(rows(tmp_path / "out")) == count


def test_an_engine_does_not_start_again_when_its_run_is_over() -> None:
    mine = engine.Engine()
    mine.stop()
    with pytest.raises(WorkerError):
        mine.run(Request(input="", output=""))
    assert mine._worker.pid is None
