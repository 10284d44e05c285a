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
from segmamba.models.manifest import load_manifest
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
    labels[2:4, 2:4, 2:4], labels[4:6, 2:4, 2:4], labels[1:2, 1:2, 0:1] = 20, 21, 22
    geometry = Geometry((6, 6, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))
    rows = report.measure_segments(labels, labels, geometry, spine_labels())
    assert [row["at_border"] for row in rows] == [False, True, True]
    labels[1:5, 1:5, 1:5] = 20
    (row,) = report.measure_segments(labels, labels, geometry, spine_labels()[:1])
    assert row["at_border"] is False


def test_each_figure_of_a_structure_is_exact() -> None:
    labels = np.zeros((20, 12, 9), np.uint8)
    labels[3:13, 2:12, 1:8] = 20
    confidence = np.full(labels.shape, 51, np.uint8)
    confidence[3:13, 2:12, 1:8] = 102
    geometry = Geometry((9, 12, 20), (2.0, 3.0, 4.0), (10.0, 20.0, 30.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    (row,) = report.measure_segments(labels, confidence, geometry, spine_labels())
    assert row == {
        "value": 20,
        "name": "L1 vertebra",
        "voxels": 700,
        "volume_ml": 16.8,
        "centroid_ras_mm": [-18.0, -39.5, 60.0],
        "mean_confidence": 0.4,
        "at_border": True,
    }


def test_figures_have_the_digits_that_they_deserve() -> None:
    labels = np.zeros((7, 7, 7), np.uint8)
    confidence = np.zeros_like(labels)
    for index, sure in ((1, 100), (2, 101), (4, 102)):
        labels[index, index, index], confidence[index, index, index] = 20, sure
    geometry = Geometry((7, 7, 7), (1.1, 1.3, 1.7), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))
    (row,) = report.measure_segments(labels, confidence, geometry, spine_labels())
    figures = (row["volume_ml"], row["centroid_ras_mm"], row["mean_confidence"])
    assert figures == (0.007, [-2.57, -3.03, 3.97], 0.3961)


def test_a_report_says_which_model_ran_and_on_what() -> None:
    model = load_manifest().default("vertebrae")
    said = report.describe_model(model, Path("/some/where/w.pt"), "0" * 64)
    assert (said["id"], said["version"], said["title"], said["task"]) == (
        model.id,
        model.version,
        model.title,
        "vertebrae",
    )
    assert (said["checkpoint"], said["checkpoint_sha256"], said["checkpoint_in_manifest"]) == ("w.pt", "0" * 64, False)
    assert report.describe_model(model, Path("w"), model.file.sha256 or "")["checkpoint_in_manifest"] is True
    assert said["architecture"] == model.architecture and said["caution"] == model.caution
    assert said["estimated"] == model.preprocessing.estimated
    assert said["normalization"][0]["scheme"] == model.preprocessing.normalization[0].scheme
    assert said["limits"] == model.entry["limits"] and said["limits"]
    assert (said["licence"], said["citation"]) == (model.entry["licence"], model.entry["citation"])
    versions = report.describe_software()
    assert set(versions) == {"segmamba", "python", "torch", "numpy", "scipy", "SimpleITK", "system"}
    assert versions["numpy"] == np.__version__ and all(versions.values())


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise report.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(report.metadata, "version", version)
    assert report._versions.__wrapped__()["torch"] is None  # the versions are kept


def test_a_grid_is_described_as_itk_has_it() -> None:
    assert report.describe_grid(OBLIQUE) == {
        "size": list(OBLIQUE.size),
        "spacing_mm": list(OBLIQUE.spacing),
        "origin_lps_mm": list(OBLIQUE.origin),
        "direction_lps": list(OBLIQUE.direction),
    }


@pytest.mark.parametrize(
    ("anchors", "said"),
    [
        ([], ""),
        ([("L5", "person", False)], ""),
        ([("L5", "person", True), ("T12", "person", True)], "Vertebral levels were set by a person (L5, T12)."),
        ([("L5", "segmentation", True)], "Vertebral levels were taken from another segmentation."),
        (
            [("L5", "person", True), ("L4", "segmentation", True)],
            "Vertebral levels were set by a person (L5) and taken from another segmentation.",
        ),
    ],
)
def test_the_summary_says_who_set_the_levels(anchors: list[tuple[str, str, bool]], said: str) -> None:
    given = [{"level": level, "set_by": by, "used": used} for level, by, used in anchors]
    numbering = {"certain": True, "reason": "", "anchors": given}
    assert report.levels_set({"numbering": numbering}) == said
    assert report.levels_set({}) == ""
    whole = report.summary({"segments": [{"name": "L5 vertebra"}, {"name": "L4 vertebra"}], "numbering": numbering})
    assert whole == f"2 structures found: L5 vertebra, L4 vertebra. {said}".strip()


def test_nothing_is_unusual_where_no_segment_is_left() -> None:
    numbering = {"variants": ["There is no T12."]}
    assert report.level_variants({"segments": [], "numbering": numbering}) == []
    assert report.level_variants({"numbering": numbering}) == ["There is no T12."]
    assert report.level_variants({}) == []


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
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert text == '{\n  "input": "\u80f8\u90e8.nii"\n}\n'
    assert json.loads(text) == {"input": "\u80f8\u90e8.nii"}


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
