"""What a batch shows: its table, overview and lines; and what it says to a wrong call."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.batch_runs import request, start_run
from helpers.quick_engine import QuickEngine, quick_run, write_inputs
from pyarrow import parquet

from segmamba.batch import cluster, engine, run
from segmamba.batch.batch_case import BatchCase
from segmamba.batch.case import do_case
from segmamba.batch.layout import OVERVIEW, PAGE, PARQUET, PREVIEW, REPORT, ROWS, TABLE, THUMBNAIL
from segmamba.batch.outcome import LEVELS_UNCERTAIN, failed_row, flags
from segmamba.batch.plan import Plan, make_plan
from segmamba.batch.table import flattened, write_table
from segmamba.cli.main import main
from segmamba.cli.progress import CaseProgress
from segmamba.errors import Cancelled, InstallationError, OutputError
from segmamba.io import dicom_results
from segmamba.request import Request

pytest_plugins = ("helpers.batch_runs",)


def row(**changes: Any) -> dict[str, Any]:
    base = {"case": "one", "status": "done", "error": "", "flags": [], "summary": "", "input": "", "folder": ""}
    return base | {"look_first": [], "seconds": 1.5} | changes


def test_nested_figures_become_columns_in_the_order_of_the_structures(tmp_path: Path) -> None:
    given = [
        row(structures={"L2": {"volume_ml": 2}, "L1": {"volume_ml": 1.5}}, flags=["a", "b"]),
        row(case="two", seconds=None, structures={"L3": {"volume_ml": 0.5, "cut": True}}),
    ]
    (tmp_path / ROWS).write_text("\n".join(map(json.dumps, given)))
    write_table(tmp_path / ROWS, tmp_path, ("L1", "L2", "L3"))
    table = parquet.read_table(tmp_path / PARQUET)
    assert table.column_names[-4:] == ["L1.volume_ml", "L2.volume_ml", "L3.volume_ml", "L3.cut"]
    assert [str(table.schema.field(name).type) for name in ("seconds", "L3.cut", "case")] == [
        "double",
        "bool",
        "string",
    ]
    assert table["flags"].to_pylist() == ["a; b", ""]
    assert flattened({"structures": {"L1": {"x": 1}}, "timings_s": {"read": 2}}) == {"L1.x": 1, "timings_s.read": 2}


class Page(HTMLParser):
    """What a browser makes of a page: its texts, and the attributes of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: dict[str, list[dict[str, str | None]]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.setdefault(tag, []).append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def overview(folder: Path, plan: Plan, *rows: dict[str, Any]) -> str:
    """Write the overview of rows and return it."""
    from segmamba.batch.overview import write_overview

    (folder / ROWS).write_text("\n".join(map(json.dumps, rows)))
    write_overview(folder / ROWS, folder, plan)
    return (folder / OVERVIEW).read_text(encoding="utf-8")


def test_names_of_files_cannot_break_the_overview(tmp_path: Path, plan: Plan) -> None:
    page = overview(tmp_path, plan, row(input="<script>alert(1)</script>", flags=['"><b>']))
    assert "<script>alert" not in page
    assert '"><b>' not in page


def test_the_overview_has_every_row_word_for_word(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "cases" / "one").mkdir(parents=True)
    (tmp_path / "cases" / "one" / THUMBNAIL).write_bytes(b"a picture")
    odd = "a 'b' \"c\" <d> & {{ e }} {% f %}"
    rows = [
        row(folder="cases/one", summary="1 structure found", input=f"/{odd}.nii"),
        row(case=odd, status="failed", error=f"{odd} is broken: mend it.", flags=[odd, "note"], seconds=None),
        row(case="three", status="skipped", error="It is a localizer (scout view).", seconds=None),
    ]
    page = Page(overview(tmp_path, plan, *rows))
    cards = page.elements["article"]
    assert [card["data-status"] for card in cards] == [each["status"] for each in rows]
    assert [json.loads(card["data-flags"] or "") for card in cards] == [each["flags"] for each in rows]
    for each in rows:
        assert {each["case"], each["error"] or each["summary"], *each["flags"]} <= set(page.texts)
    assert f"/{odd}.nii" in page.texts and "1.5 s" in page.texts
    assert {"1 done, 1 failed, 1 skipped", "every status", "failed (1)", f"{odd} (1)"} <= set(page.texts)
    links = [link["href"] for link in page.elements["a"]]
    assert links == [f"cases/one/{name}" for name in (PREVIEW, REPORT, "")]
    assert [image.get("src") for image in page.elements["img"]] == ["data:image/jpeg;base64,YSBwaWN0dXJl", None]


def test_pages_are_linked_and_what_to_look_at_is_said_and_comes_first(
    tmp_path: Path, plan: Plan, case: BatchCase
) -> None:
    done, _ = do_case(case, plan, 1, quick_run)
    folder = Path(plan.folder)
    assert json.loads((folder / done["folder"] / REPORT).read_text(encoding="utf-8"))["page"] == PAGE
    others = [
        row(case="sound", status="done"),
        row(case="broken", status="failed", error="No."),
        row(case="cut", flags=["cut by the border"]),
        row(case="lost", flags=["cut by the border", "loss of height"]),
        row(case="scout", status="skipped"),
    ]
    page = Page(overview(folder, plan, done, *others))
    assert f"{done['folder']}/{PAGE}" in [link["href"] for link in page.elements["a"]] and "L1: look." in page.texts
    names = ["done", *(each["case"] for each in others)]
    ranks = dict(zip(names, (int(card["data-rank"] or "") for card in page.elements["article"]), strict=True))
    assert sorted(ranks, key=ranks.__getitem__) == ["broken", "lost", "cut", "done", "sound", "scout"]


def test_the_overview_holds_one_picture_at_a_time(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    from segmamba.batch import overview as module

    written: list[int] = []
    count = 40

    def cards(rows: Path, folder: Path) -> Iterator[tuple[dict[str, Any], str, str]]:
        for number in range(count):
            partial = [path.stat().st_size for path in tmp_path.glob(".*.html")]
            written.append(max(partial, default=0))
            yield row(case=str(number)), "A" * 100_000, ""

    monkeypatch.setattr(module, "_cards", cards)
    overview(tmp_path, plan, row())
    # Of what was given, all but the last few cards is in the file already.
    assert written[-1] > (count - 5) * 100_000


def test_flags_say_what_to_look_at() -> None:
    report = {"segments": [{"at_border": False}], "run": {"warnings": []}}
    doubt = {"numbering": {"certain": False, "reason": "no landmark is in view."}}
    assert flags(report, 1) == []
    assert flags(report | doubt, 1) == [LEVELS_UNCERTAIN]
    graded = [{"fracture_grade_lowest": lowest} for lowest in (0, None, 1)]
    assert flags(report | {"measurements": graded[:2]}, 1) == []
    assert flags(report | {"measurements": graded}, 1) == ["loss of height"]
    unusual = {"numbering": {"certain": True, "variants": ["The sacrum follows L4."]}}
    assert flags(report | unusual, 1) == ["unusual levels"]
    assert flags({"segments": [], "run": {"warnings": []}} | unusual | doubt, 1) == ["nothing found"]
    assert flags({"segments": [], "run": {"warnings": []}} | unusual, 1) == ["nothing found"]
    assert flags({"segments": [], "run": {"warnings": ["memory ran out"]}}, 2) == [
        "nothing found",
        "warning",
        "repeated",
    ]


def test_unusual_levels_are_a_column_of_the_table(case: BatchCase, plan: Plan) -> None:
    def run(request: Request) -> dict[str, Any]:
        return quick_run(request) | {"numbering": {"certain": True, "variants": ["The sacrum follows L4."]}}

    done, _ = do_case(case, plan, 1, run)
    assert flattened(done)["variants"] == "The sacrum follows L4."
    assert flattened(failed_row(case, plan, "No.", 1))["variants"] == ""


def test_measurements_of_the_report_are_in_the_row(case: BatchCase, plan: Plan) -> None:
    done, _ = do_case(case, plan, 1, quick_run)
    assert done["structures"]["L1 vertebra"]["anterior_height_mm"] == 25.5
    assert done["structures"]["L1 vertebra"]["volume_ml"] == 1.5


def test_a_run_prints_a_json_line_a_case(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "Engine", QuickEngine)
    write_inputs(tmp_path / "in", 3)
    call = ["batch", str(tmp_path / "in"), str(tmp_path / "out"), "--task", "vertebrae", "--json"]
    assert main([*call, "--manifest", str(manifest_file), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["status"] for line in printed.out.splitlines()] == ["done"] * 3
    assert "3 done" in printed.err


def test_a_run_that_is_stopped_still_writes_its_table(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Engine", QuickEngine)
    write_inputs(tmp_path / "in", 9)
    output = tmp_path / "out"

    def stop_after(count: int) -> list[dict[str, Any]]:
        shown: list[CaseProgress] = []
        with pytest.raises(Cancelled):
            start_run(tmp_path, manifest_file, shown, lambda: bool(shown) and shown[0].counts["done"] >= count)
        (output / OVERVIEW).read_text(encoding="utf-8")
        return parquet.read_table(output / PARQUET).to_pylist()

    # Some are on their way when it is stopped.
    done = {row["case"] for row in stop_after(2)}
    assert 2 <= len(done) < 9
    # One that is stopped sooner has what was done before, too.
    again = stop_after(0)
    assert done <= {row["case"] for row in again}
    assert not any(row["this_run"] for row in again)
    assert (output / OVERVIEW).read_text(encoding="utf-8").count("<article") == len(again)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_a_name_that_is_no_text_costs_nobody_the_table(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Engine", QuickEngine)
    write_inputs(tmp_path / "in", 1)
    Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.nii")).write_bytes(b"x")
    start_run(tmp_path, manifest_file, [], lambda: False)
    rows = parquet.read_table(tmp_path / "out" / PARQUET).to_pylist()
    assert sorted(Path(row["input"]).name for row in rows) == ["\\udcff.nii", "ct0000.nii"]
    for name in (TABLE, OVERVIEW):
        assert "\\udcff.nii" in (tmp_path / "out" / name).read_text(encoding="utf-8")


# Wrong calls


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        (["--format", "jpg"], 3, "choose one of seg.nrrd"),
        (["--workers", "0"], 3, "at least 1"),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], 3, "has its own"),
        (["--scheduler", "tcp://127.0.0.1:1"], 7, "does not answer"),
        (["--retries", "-1"], 3, "0 or more"),
        (["--model", "x"], 4, "no model 'x'"),
    ],
)
def test_a_wrong_call_ends_in_one_sentence(
    tmp_path: Path,
    manifest_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    status: int,
    says: str,
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    write_inputs(tmp_path / "in", 1)
    call = ["batch", str(tmp_path / "in"), str(tmp_path / "out"), "--task", "vertebrae", "--quiet"]
    assert main([*call, "--manifest", str(manifest_file), "--device", "cpu", *more]) == status
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1


def test_two_runs_into_one_folder_do_not_mix(tmp_path: Path, manifest_file: Path) -> None:
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    write_inputs(tmp_path / "in", 1)
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(OutputError, match="Another batch"):
        start_run(tmp_path, manifest_file, [], lambda: False)


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(InstallationError, match="pip install"):
        start_run(tmp_path, manifest_file, [], lambda: False, "tcp://127.0.0.1:1")
    monkeypatch.setattr(dicom_results, "find_spec", lambda name: None)
    for output_format, package in (("dcm", "highdicom"), ("labelmap.dcm", "highdicom"), ("rtstruct.dcm", "contourpy")):
        with pytest.raises(InstallationError, match=f"pip install {package}"):
            make_plan(request(manifest_file), tmp_path, output_format)
