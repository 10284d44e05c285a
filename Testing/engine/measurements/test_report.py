"""Measurements in the report of a run and as a file of their own."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
from helpers import tiny, tiny_case

from segmamba.cli.main import main
from segmamba.errors import OutputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_case.write(tmp_path_factory.mktemp("case"))


def segment(folder: Path, name: str, *more: str) -> int:
    return tiny_case.segment(folder, f"{name}.nrrd", *more)


def test_report_and_table_have_a_row_for_each_vertebra_that_was_found(folder: Path) -> None:
    tables = ("--measurements", str(folder / "m.csv"), "--page", str(folder / "p.html"))
    files = ("--report", str(folder / "r.json"), *tables)
    assert segment(folder, "first", *files, "--density-calibration", "0.8,-5") == 0
    report = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    rows = report["measurements"]
    assert rows
    for figure in ("value", "name", "volume_ml", "centroid_ras_mm", "at_border"):
        assert [row[figure] for row in rows] == [segment[figure] for segment in report["segments"]]
    with (folder / "m.csv").open(encoding="utf-8", newline="") as stream:
        assert [line["name"] for line in csv.DictReader(stream)] == [row["name"] for row in rows]
    said = report["bone"]["calibration"]
    assert (said["slope_mg_cm3_per_hu"], said["intercept_mg_cm3"]) == (0.8, -5.0)
    page = (folder / "p.html").read_text(encoding="utf-8")
    assert report["summary"] in page and report["page"] == str(folder / "p.html")
    digest = hashlib.sha256((folder / "first.nrrd").read_bytes()).hexdigest()
    assert report["output_sha256"] == digest and digest in page


def test_a_table_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(folder, "second", "--measurements", str(folder / "m.txt")) == OutputError.exit_code
    assert "use .csv" in capsys.readouterr().err
    assert segment(folder, "second", "--page", str(folder / "p.pdf")) == OutputError.exit_code
    assert "use .html" in capsys.readouterr().err
    assert not (folder / "second.nrrd").exists()


def test_other_tasks_have_no_measurements(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_model(tmp_path, task="colorectal")
    (tmp_path / "ct.nii.gz").symlink_to(folder / "ct.nii.gz")
    manifest = ("--manifest", str(tmp_path / "manifest.json"), "--in-process", "--device", "cpu")
    files = (str(tmp_path / "ct.nii.gz"), "--output", str(tmp_path / "o.nrrd"), "--report", str(tmp_path / "r.json"))
    arguments = ["segment", *files, "--model", tiny.MODEL_ID, *manifest]
    assert main([*arguments, "--measurements", str(tmp_path / "m.csv")]) == OutputError.exit_code
    assert "has no measurements" in capsys.readouterr().err
    assert main([*arguments, "--density-calibration", "0.8,-5"]) == OutputError.exit_code
    assert main(arguments) == 0
    assert "measurements" not in json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
