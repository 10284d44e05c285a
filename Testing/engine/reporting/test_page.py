"""The page of a case: every number is the report's, and what matters stands first."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.measured_spine import Vertebra, painted, turned
from PIL import Image
from scipy import ndimage

from segmamba.errors import InstallationError, OutputError
from segmamba.io.dicom_sr import numbers
from segmamba.io.volume import Geometry
from segmamba.measurements.bone_density import calibrated
from segmamba.measurements.vertebrae import masks_of, measure_spine, write_table
from segmamba.models.manifest import load_manifest
from segmamba.reporting import page as paging
from segmamba.reporting import page_pictures
from segmamba.reporting import report as reporting
from segmamba.reporting.look_first import look_first
from segmamba.reporting.page import BELOW, CALIBRATED, VERTEBRAE, Case, page, write_page
from segmamba.spine.grades import grade_text
from segmamba.spine.levels import L1

MODEL = load_manifest().default("vertebrae")
GRID = Geometry((110, 130, 170), (1.0, 1.0, 1.0), (-55.3, -40.2, -100.1), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
BROKEN = L1 + 1
NOT_IN_SR = {"value", "right_mm", "anterior_mm", "superior_mm"}


@pytest.fixture(scope="module")
def case() -> Case:
    """Return L1 to L4 with a wedge, L2, whose name would be a tag."""
    heights = {level: 28.0 for level in range(L1, L1 + 4)} | {BROKEN: 14.0}
    vertebrae = {
        level: Vertebra((0, 0, 51.0 - 34 * (level - L1)), turned(), anterior=height, posterior=28.0)
        for level, height in heights.items()
    }
    labels, ct = painted(vertebrae, GRID)
    found = measure_spine(masks_of(labels, GRID, MODEL.labels), ct, {each.value: each.name for each in MODEL.labels})
    found = calibrated(found, (0.8, -5.0))
    report: dict[str, Any] = {
        **found,
        "input": "/people/someone/<b>case.nii.gz",
        "output": "/people/someone/spine.seg.nrrd",
        "output_sha256": "b" * 64,
        "segments": reporting.measure_segments(labels, np.full(labels.shape, 180, np.uint8), GRID, MODEL.labels),
        "model": reporting.describe_model(MODEL, Path("weights"), "a" * 64),
        "software": reporting.describe_software(),
        "volume": reporting.describe_grid(GRID) | {"modality": "CT", "modality_inferred": False},
        "run": {"warnings": ["A warning."], "notes": [], "device_title": "CPU", "precision": "float32"},
        "numbering": {"certain": False, "reason": "Look at the ribs.", "levels": {str(L1): 0.5}, "variants": []},
    }
    report["summary"] = reporting.summary(report)
    return Case(report | {"look_first": look_first(report)}, ct, labels, MODEL)


@pytest.fixture(scope="module")
def text(case: Case) -> str:
    return page(case)


def as_it_is(case: Case) -> tuple[Any, ...]:
    return case.volume, case.labels, case.model


class Cells(HTMLParser):
    """The cells of a page's tables: by the table's id, the level and the key."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[tuple[str, str, str], str] = {}
        self.single: dict[str, str] = {}
        self._table = self._level = self._key = ""
        self._first = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self._table = (given.get("id") or "") if tag == "table" else self._table
        self._first = tag == "tr" or (self._first and tag == "td" and not self._level)
        self._level = "" if tag == "tr" else self._level
        self._key = given.get("data-key") or ""

    def handle_data(self, data: str) -> None:
        if self._key:
            self.found[self._table, self._level, self._key] = self.single[self._key] = data
            self._key = ""
        elif not self._level and data.strip():
            self._level = data.strip()


def test_every_number_of_page_and_table_is_the_report_s(case: Case, text: str, tmp_path: Path) -> None:
    rows = case.report["measurements"]
    write_table(tmp_path / "m.csv", rows)
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    cells = Cells(text).found
    for row, line in zip(rows, lines, strict=True):
        for table, columns in (("vertebrae", VERTEBRAE | CALIBRATED), ("below", BELOW)):
            for key in columns.values():
                value = row[key]
                assert cells[table, row["name"].removesuffix(" vertebra"), key] == (
                    "–" if value is None else str(value)
                )
                assert line[key] == ("" if value is None else str(value))
    # Of the SR, and after JSON.
    for row, line in zip(json.loads(json.dumps(rows)), lines, strict=True):
        coded = {name: str(value) for name, value, _unit in numbers(row)}
        # The place is in the CSV alone.
        counted = {name for name, cell in line.items() if name not in NOT_IN_SR and re.fullmatch(r"-?[\d.]+", cell)}
        assert counted == set(coded) and all(line[name] == number for name, number in coded.items())
    single = Cells(text).single
    for curve in case.report["curves"]:
        assert single.get(curve["name"]) == (None if curve["angle_deg"] is None else str(curve["angle_deg"]))
    for key in ("lumbar", "mean", "l1"):
        for unit in ("hu", "mg_cm3"):
            assert single[f"{key}_{unit}"] == str(case.report["bone"][f"{key}_{unit}"])


def test_the_charts_points_are_the_report_s_numbers(case: Case, text: str) -> None:
    found = set(re.findall(r"<title>(.*?)</title>", text[text.index("<h2>The column") :]))
    for row in case.report["measurements"]:
        level = row["name"].removesuffix(" vertebra")
        for place in ("anterior", "middle", "posterior"):
            assert f"{level} {place}: {row[f'{place}_height_mm']}" in found
        assert f"{level} density: {row['trabecular_hu']}" in found
    assert len(found) == 4 * len(case.report["measurements"])


def test_without_a_phantom_the_page_has_no_calibrated_density(case: Case) -> None:
    bone = {key: None if key.endswith("mg_cm3") else value for key, value in case.report["bone"].items()}
    rows = [{**row, "trabecular_mg_cm3": None} for row in case.report["measurements"]]
    text = page(Case({**case.report, "measurements": rows, "bone": bone | {"calibration": None}}, *as_it_is(case)))
    assert "mg/cm³" not in text and "none: Hounsfield units of this scanner" in text


def test_hounsfield_units_in_doubt_are_told_first_and_not_compared(case: Case) -> None:
    wrong = "Fat has -200 HU."
    report = {
        **case.report,
        "bone": {**case.report["bone"], "scanner": wrong, "phase": "no contrast seen", "l1_hu": 90.0},
    }
    entries = [entry["text"] for entry in look_first(report)]
    assert wrong in entries and not any("Trabecular density" in entry for entry in entries)
    text = page(Case({**report, "look_first": look_first(report)}, *as_it_is(case)))
    assert "Pickhardt" not in text and "in doubt" in text
    assert any(
        "Trabecular density" in each["text"]
        for each in look_first({**report, "bone": report["bone"] | {"scanner": None}})
    )


def test_a_range_of_grades_is_shown_wherever_it_is_more_than_one() -> None:
    assert grade_text(1, 0, 2) == "1 (0 to 2)" and grade_text(2, 2, 2) == "2" and grade_text(None, None, None) == ""


def test_the_gravest_stands_first(case: Case, text: str) -> None:
    first, second, *_others = case.report["look_first"]
    assert first["text"] == "Vertebral levels are uncertain: Look at the ribs."
    assert second["value"] == BROKEN and second["text"].startswith("L2: wedge, grade ")
    assert (
        f"{case.report['measurements'][1]['height_loss_percent']} % of the height is lost (anterior)" in second["text"]
    )
    entries = [entry["text"] for entry in case.report["look_first"]]
    assert [text.index(entry) for entry in entries] == sorted(text.index(entry) for entry in entries)
    assert "L1 is uncertain: probability of mask 0.7059, level 0.5." in entries


def test_the_page_needs_nothing_else_and_takes_names_as_text(text: str) -> None:
    assert "someone" not in text and "spine.seg.nrrd" in text
    assert "&lt;b&gt;case.nii.gz" in text and "<b>case" not in text
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "@import" not in text and "url(" not in text
    # The column, and two sections of each vertebra of the list.
    assert text.count('href="data:image/png;base64,') == 1 + 2 * len({"L1", "L2", "L3", "L4"})
    for part in ("a" * 64, "b" * 64, "A warning.", "not a medical device", "Genant"):
        assert part in text


def test_measured_points_lie_on_the_body(case: Case) -> None:
    row = case.report["measurements"][1]
    for (upper, lower), key in zip(row["height_points_ras_mm"], ("anterior", "middle", "posterior"), strict=False):
        distance = float(np.linalg.norm(np.subtract(upper, lower)))
        assert distance == pytest.approx(row[f"{key}_height_mm"], abs=0.02)
    right, anterior, superior = np.mean(row["height_points_ras_mm"], axis=(0, 1))
    # The body, L2, lies at LPS (0, 0, 17).
    assert (right, anterior, superior) == pytest.approx((0, 0, 17), abs=1.5)


def test_a_section_beyond_the_image_is_dark_there_and_else_the_image(case: Case) -> None:
    shift = (40.0, 0.0, 0.0)
    row = case.report["measurements"][0]
    moved = {**row, "height_points_ras_mm": (np.array(row["height_points_ras_mm"]) + shift).tolist()}
    window = (-100.0, 300.0)
    pictures = re.findall(r"base64,([^\"]+)", paging.vertebra_picture(moved, case.volume, case.labels, window))
    coronal = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[1]))))
    centre, up, _back, left = page_pictures.axes_of(page_pictures.points_lps(moved))
    index = page_pictures.index_of(page_pictures.section(centre, up, left), case.volume.geometry.affine)
    whole = ndimage.map_coordinates(case.volume.array, index, np.float32, order=1, cval=window[0])
    expected = np.clip((whole - window[0]) * 255 / 400, 0, 255)
    assert (expected == 0).any() and (expected > 0).any()
    assert np.abs(coronal - expected).max() <= 1
    far = {**row, "height_points_ras_mm": (np.array(row["height_points_ras_mm"]) + 900).tolist()}
    assert "base64" in paging.vertebra_picture(far, case.volume, case.labels, window)


def test_an_empty_result_has_a_page(case: Case) -> None:
    empty = {**case.report, "measurements": [], "segments": [], "look_first": [], "curves": [], "bone": None}
    text = page(Case(empty | {"numbering": None}, case.volume, np.zeros_like(case.labels), MODEL))
    assert "Nothing stands out" in text and "data:image" not in text


def test_a_page_has_its_ending_and_its_packages(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_page(tmp_path / "page.html", text)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
    with pytest.raises(OutputError):
        write_page(tmp_path / "page.txt", text)
    monkeypatch.setattr(paging, "find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(InstallationError, match="jinja2"):
        paging.check_page()
