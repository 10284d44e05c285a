"""Batches from a real Orthanc and back: each result on its source, nothing twice, nothing lost.

``python benchmarks/pacs.py`` does 20 studies, killed 30 times.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny

pytest.importorskip("dicomweb_client", reason="dicomweb-client is not installed")
pytest.importorskip("highdicom", reason="highdicom is not installed")
if sys.platform == "win32":
    pytest.skip("Debian's Orthanc", allow_module_level=True)

from helpers.orthanc import PASSWORD, USER, Pacs, orthanc
from helpers.pacs_studies import read, shift_of, source_positions, write_studies
from helpers.quick_engine import EngineHere

from segmamba.batch import engine
from segmamba.cli.main import main


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as pacs:
        yield pacs


@pytest.fixture(autouse=True)
def access(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "Engine", EngineHere)
    monkeypatch.setenv("SEGMAMBA_PACS_USER", USER)
    monkeypatch.setenv("SEGMAMBA_PACS_PASSWORD", PASSWORD)


def batch(pacs: Pacs, folder: Path, *more: str) -> int:
    manifest = tiny.write_model(folder)
    model = ["--manifest", str(manifest), "--task", "vertebrae", "--device", "cpu"]
    return main(["batch", pacs.address, str(folder / "out"), *model, *more])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]


def test_results_come_back_on_their_sources_once_and_secrets_nowhere(
    pacs: Pacs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {}
    for number, (folder, tags) in enumerate(write_studies(tmp_path / "in", 13)):
        # A tilted, an uneven and an enhanced one; German and Japanese.
        if number in (5, 10, 12):
            pacs.add(sorted(folder.iterdir()))
            sources[tags["SeriesInstanceUID"]] = folder, tags
    assert batch(pacs, tmp_path, "--query", "Modality=CT") == 0
    for modality in ("SEG", "RTSTRUCT"):
        results = [read(content) for content in pacs.instances(modality)]
        assert len(results) == len(sources)
        for result in results:
            sequence = getattr(result, "ReferencedSeriesSequence", None)
            if sequence is None:
                study = result.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
                sequence = study.RTReferencedSeriesSequence
            folder, tags = sources[sequence[0].SeriesInstanceUID]
            assert shift_of(result, source_positions(folder)) < 0.001
            assert str(result.PatientName) == tags["PatientName"]
            assert result.StudyInstanceUID == tags["StudyInstanceUID"]
            assert "L1 vertebra" in str(result)
    reports = [read(content) for content in pacs.instances("SR")]
    studies = {tags["StudyInstanceUID"]: tags["PatientName"] for _, tags in sources.values()}
    assert {report.StudyInstanceUID: str(report.PatientName) for report in reports} == studies
    assert len(reports) == len(sources) and all("L1 vertebra" in str(report) for report in reports)
    # Again: nothing is fetched, segmented or stored.
    before = pacs.ask("/changes?last")["Last"]
    assert batch(pacs, tmp_path, "--query", "Modality=CT") == 0
    assert pacs.ask("/changes?last")["Last"] == before
    assert [(row["status"], row["this_run"]) for row in rows(tmp_path)] == [("done", False)] * 3
    # Killed after it stored something and before it noted it: the PACS knows.
    for note in (tmp_path / "out" / "pacs").iterdir():
        note.write_text(json.dumps(json.loads(note.read_text()) | {"stored": []}))
    assert batch(pacs, tmp_path, "--query", "Modality=CT", "PatientID=P005") == 0
    assert pacs.ask("/changes?last")["Last"] == before
    said = "".join(capsys.readouterr())
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert PASSWORD not in said
    assert not any(PASSWORD.encode() in path.read_bytes() for path in written)
    assert not any("Müller" in path.name or "P005" in path.name for path in written)
    assert not (tmp_path / "out" / ".working").exists()
    monkeypatch.setenv("SEGMAMBA_PACS_PASSWORD", "wrong")
    assert batch(pacs, tmp_path, "--query", "Modality=CT") == 3
    assert "does not let this user in (401)" in capsys.readouterr().err


def test_what_is_no_scan_too_large_or_not_there_is_a_row_or_a_sentence(
    pacs: Pacs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, tags = next(write_studies(tmp_path / "in", 1))
    pacs.add(sorted(folder.iterdir())[:3])
    assert batch(pacs, tmp_path, "--query", f"StudyInstanceUID={tags['StudyInstanceUID']}") == 0
    (row,) = rows(tmp_path)
    assert (row["status"], row["error"]) == ("skipped", "It has 3 slices, and at least 8 are needed.")
    pacs.add(sorted(folder.iterdir()))
    query = ("--query", f"StudyInstanceUID={tags['StudyInstanceUID']}")
    assert batch(pacs, tmp_path, *query, "--disk-limit", "1e-6", "--retries", "0") == 9
    (row,) = rows(tmp_path)
    assert "larger than --disk-limit" in row["error"]
    assert batch(pacs, tmp_path, "--query", "Modality=XA") == 3
    assert "Nothing in the PACS matches the query" in capsys.readouterr().err
