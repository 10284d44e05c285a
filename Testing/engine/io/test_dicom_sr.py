"""An SR holds the report's numbers with codes and units, and belongs to its source."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers.dicom_files import write_slices
from pydicom.uid import generate_uid

from segmamba.io.dicom_index import find_series
from segmamba.io.dicom_results import check_sources, write_dicom
from segmamba.io.dicom_sr import SCHEME, UNITS
from segmamba.io.volume import Geometry
from segmamba.models.manifest import Manifest

T1, T2, SIZE = 8, 9, (12, 10, 6)
NAME = "Yamada^Tarou=山田^太郎"
ROWS = [
    {"value": T1, "name": "T1 vertebra", "volume_ml": 20.008, "trabecular_hu": 111.6, "sagittal_angle_deg": -6.9,
     "expected_anterior_height_mm": 19.6, "height_loss_percent": 5.6, "fracture_grade": 0, "fracture_shape": None,
     "trabecular_mg_cm3": 98.4,
     "centroid_ras_mm": [1.0, 2.0, 3.0], "at_border": True, "note": "a sentence"},
    {"value": T2, "name": "T2 vertebra", "volume_ml": 0.1, "trabecular_hu": None, "fracture_grade": 2},
    {"value": 20, "name": "L1 vertebra", "volume_ml": 7.0},
]  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> tuple[Path, Any]:
    """Return the path of an SR, and a header of its series."""
    folder = tmp_path_factory.mktemp("sr")
    tags = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    tags |= {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": NAME, "Modality": "CT"}
    geometry = Geometry(SIZE, (1.0, 1.0, 3.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    write_slices(folder / "in", np.zeros(SIZE[::-1], np.int16), geometry, **tags)
    files = find_series(folder / "in")[0].files
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[3:5, 2:8, 2:8], labels[1:3, 2:8, 2:8] = T1, T2
    model = manifest.default("vertebrae")
    path = folder / "spine.sr.dcm"
    check_sources(files, str(path))
    assert write_dicom(path, labels, files, model.labels, model, ROWS) == ()
    return path, pydicom.dcmread(files[0])


def groups(dataset: Any) -> dict[str, dict[str, tuple[float, str]]]:
    """Return the numbers and their units by structure and by the code of their names."""
    found: dict[str, dict[str, tuple[float, str]]] = {}
    (measurements,) = (
        each for each in dataset.ContentSequence if each.ConceptNameCodeSequence[0].CodeValue == "126010"
    )
    for group in measurements.ContentSequence:
        name = next(each.TextValue for each in group.ContentSequence if each.ValueType == "TEXT")
        found[name] = {}
        for each in group.ContentSequence:
            if each.ValueType == "NUM":
                concept, number = each.ConceptNameCodeSequence[0], each.MeasuredValueSequence[0]
                code = concept.get("CodeValue") or concept.LongCodeValue
                unit = number.MeasurementUnitsCodeSequence[0].CodeValue
                found[name][f"{concept.CodingSchemeDesignator} {code}"] = (float(number.NumericValue), unit)
    return found


def test_numbers_are_the_report_s_with_their_units(written: tuple[Path, Any]) -> None:
    assert groups(pydicom.dcmread(written[0])) == {
        "T1 vertebra": {
            "SCT 118565006": (20.008, "mL"),
            "DCM 112031": (111.6, "[hnsf'U]"),
            f"{SCHEME} sagittal_angle_deg": (-6.9, "deg"),
            f"{SCHEME} expected_anterior_height_mm": (19.6, "mm"),
            f"{SCHEME} height_loss_percent": (5.6, "%"),
            f"{SCHEME} fracture_grade": (0.0, "1"),
            f"{SCHEME} trabecular_mg_cm3": (98.4, "mg/cm3"),
        },
        "T2 vertebra": {"SCT 118565006": (0.1, "mL"), f"{SCHEME} fracture_grade": (2.0, "1")},
    }
    assert set(UNITS) == {"_mm", "_ml", "_hu", "_mg_cm3", "_deg", "_percent"}


def test_it_belongs_to_its_source_and_says_what_it_is(written: tuple[Path, Any]) -> None:
    dataset, header = pydicom.dcmread(written[0]), written[1]
    for name in ("StudyInstanceUID", "PatientID"):
        assert dataset[name].value == header[name].value
    assert str(dataset.PatientName) == NAME
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert dataset.Modality == "SR" and dataset.VerificationFlag == "UNVERIFIED"
    assert dataset.SeriesDescription.startswith("Research use only")


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dcmtk is not installed")
def test_dsrdump_reads_it(written: tuple[Path, Any]) -> None:
    said = subprocess.run(["dsrdump", str(written[0])], capture_output=True, encoding="utf-8")
    assert said.returncode == 0 and "E: " not in said.stderr
    assert '"Height loss")="5.6" (%,UCUM,"percent")' in said.stdout


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error(written: tuple[Path, Any]) -> None:
    said = subprocess.run(["dciodvfy", "-new", str(written[0])], capture_output=True, text=True).stderr
    assert "ComprehensiveSR" in said
    assert not [line for line in said.splitlines() if line.startswith("Error")]
