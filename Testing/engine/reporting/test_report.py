"""The report's figures, and files that are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.phantoms import OBLIQUE, STRAIGHT, VERTEBRAE, spine_labels, true_labels

from segmamba.errors import OutputError
from segmamba.io.volume import Geometry
from segmamba.models import store
from segmamba.reporting import report


@pytest.mark.parametrize("geometry", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_centroids_are_in_ras_and_volumes_in_millilitres(geometry: Geometry) -> None:
    labels = true_labels(geometry)
    confidence = np.full(labels.shape, 204, dtype=np.uint8)
    rows = report.measure_segments(labels, confidence, geometry, spine_labels())
    assert [row["value"] for row in rows] == list(VERTEBRAE)
    for row in rows:
        x, y, z = VERTEBRAE[row["value"]]
        assert row["centroid_ras_mm"] == pytest.approx([-x, -y, z], abs=0.5)
        assert row["volume_ml"] == pytest.approx(4 / 3 * np.pi * 2.8 * 2.1 * 1.3, rel=0.05)
        assert row["mean_confidence"] == pytest.approx(0.8)


def test_structures_that_are_not_there_are_not_reported() -> None:
    labels = np.where(true_labels(STRAIGHT) == 21, 21, 0).astype(np.uint8)
    rows = report.measure_segments(labels, labels, STRAIGHT, spine_labels())
    assert [row["name"] for row in rows] == ["L2 vertebra"]


def test_structures_cut_off_by_the_border_of_the_volume_are_marked() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[2:4, 2:4, 2:4], labels[4:6, 2:4, 2:4] = 20, 21
    geometry = Geometry((6, 6, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))
    rows = report.measure_segments(labels, labels, geometry, spine_labels())
    assert [row["at_border"] for row in rows] == [False, True]


def test_the_summary_counts_and_names() -> None:
    assert report.summary({"segments": []}).startswith("No structure was found")
    assert report.summary({"segments": [{"name": "L1 vertebra"}]}) == "1 structure found: L1 vertebra."


def test_the_summary_says_why_numbers_are_not_certain() -> None:
    found = {"segments": [{"name": "L1 vertebra"}]}
    doubt = {"certain": False, "reason": "T12 could be L1: check the levels."}
    said = report.summary({**found, "numbering": doubt})
    assert said == "1 structure found: L1 vertebra. Vertebral levels are uncertain: T12 could be L1: check the levels."
    certain = {"numbering": {"certain": True, "reason": ""}}
    assert report.summary({**found, **certain}) == "1 structure found: L1 vertebra."
    assert report.numbering_doubt(found) == ""
    assert "certain" not in report.summary({"segments": [], "numbering": doubt})


@pytest.mark.parametrize("doubt", ["", "T12 could be L1: check."])
def test_the_summary_says_what_is_unusual_in_the_levels(doubt: str) -> None:
    numbering = {"certain": not doubt, "reason": doubt, "variants": ["The sacrum follows L4.", "There is no T12."]}
    said = report.summary({"segments": [{"name": "L4 vertebra"}], "numbering": numbering})
    told = f"Vertebral levels are uncertain: {doubt} " if doubt else ""
    assert said == f"1 structure found: L4 vertebra. {told}The sacrum follows L4. There is no T12."


def test_a_report_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        report.write_report(tmp_path / "r.json", {"volume": float("nan")})
    with pytest.raises(OutputError):
        report.write_report(tmp_path / "no" / "r.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_report_keeps_names_in_any_script(tmp_path: Path) -> None:
    report.write_report(tmp_path / "r.json", {"input": "\u80f8\u90e8.nii"})
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {"input": "\u80f8\u90e8.nii"}


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_DATA_HOME", ("segmamba", "models")),
        ("win32", "LOCALAPPDATA", ("segmamba", "models")),
    ],
)
def test_models_are_kept_in_the_users_data_folder(
    platform: str, variable: str, expected: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGMAMBA_MODELS", raising=False)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert store.models_folder() == tmp_path.joinpath(*expected)
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "mine"))
    assert store.models_folder() == tmp_path / "mine"
