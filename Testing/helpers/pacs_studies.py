"""Studies for a PACS, of all orientations, as slices lie and as names are written, and what came back to them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from helpers.dicom_files import write_frames, write_slices
from helpers.phantoms import grid_around_patient, phantom, rotation

AXIAL = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
SAGITTAL = (0.0, 0, -1, 1, 0, 0, 0, -1, 0)
CORONAL = (1.0, 0, 0, 0, 0, 1, 0, -1, 0)
ORIENTATIONS = (AXIAL, SAGITTAL, CORONAL, rotation(20, -15))
LIE = ("even", "tilted", "uneven", "frames", "even")
NAMES = (
    {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jürgen"},
    {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"},
)
FRAMES = "frames"


def write_studies(folder: Path, count: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write studies with one series each, and give the folder of each and its attributes."""
    for number in range(count):
        place = folder / f"study{number:02d}"
        tags = NAMES[number // 2 % 2] | {"PatientID": f"P{number:03d}", "SeriesDescription": f"Spine {number}"}
        tags |= {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
        _write(place, ORIENTATIONS[number % 4], LIE[number // 4 % 5], number, tags)
        yield place, tags


def _write(folder: Path, direction: tuple[float, ...], lie: str, number: int, tags: dict[str, Any]) -> None:
    geometry = grid_around_patient((6.0, 6.0, 8.0), direction)
    array = (phantom(geometry).array + number).astype(np.int16)
    if lie == "uneven":
        # Some slices were left out, as of two scans in one.
        array = np.concatenate([array[:8], array[8::2]])
    count = len(array)
    heights = np.r_[np.arange(8), 8 + 2 * np.arange(count - 8)] if lie == "uneven" else np.arange(count)
    steps = heights[:, None] * np.array([0.0, 2.0 if lie == "tilted" else 0.0, 8.0])
    positions = np.array(geometry.origin) + steps @ np.reshape(direction, (3, 3)).T
    if lie == FRAMES:
        whole = replace(geometry, size=(*geometry.size[:2], count))
        order = np.random.default_rng(number).permutation(count).tolist()
        folder.mkdir(parents=True)
        write_frames(folder / "scan.dcm", array, whole, order, positions=positions, **tags)
        return
    for k, position in enumerate(positions):
        alone = replace(geometry, size=(*geometry.size[:2], 1), origin=tuple(position.tolist()))
        write_slices(folder, array[k : k + 1], alone, start=k, **tags)


def source_positions(folder: Path) -> np.ndarray:
    """Return where the slices of a series lie: shape (n, 3), LPS mm."""
    found = []
    for file in sorted(folder.iterdir()):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        if "PerFrameFunctionalGroupsSequence" in header:
            groups = header.PerFrameFunctionalGroupsSequence
            found += [group.PlanePositionSequence[0].ImagePositionPatient for group in groups]
        else:
            found.append(header.ImagePositionPatient)
    return np.array(found, float)


def shift_of(result: Any, positions: np.ndarray) -> float:
    """Return the largest distance of a part of a SEG or an RTSTRUCT from the slice that it should lie on, in mm.

    An SR has no parts that lie anywhere: 0.
    """
    if result.Modality == "SR":
        return 0.0
    if result.Modality == "SEG":
        groups = result.PerFrameFunctionalGroupsSequence
        corners = np.array([group.PlanePositionSequence[0].ImagePositionPatient for group in groups], float)
        return float(np.linalg.norm(corners[:, None] - positions[None], axis=2).min(axis=1).max())
    contours = [contour for region in result.ROIContourSequence for contour in region.ContourSequence]
    points = [np.reshape(np.array(contour.ContourData, float), (-1, 3)) for contour in contours]
    normal = _normal(points)
    return max(float(np.abs((part[:, None] - positions[None]) @ normal).min(axis=1).max()) for part in points)


def _normal(points: list[np.ndarray]) -> np.ndarray:
    """Return the normal of the planes that contours lie in."""
    largest = max(points, key=len)
    return np.linalg.svd(largest - largest.mean(axis=0))[2][2]


def read(content: bytes) -> Any:
    """Return the data set of a file's content."""
    return pydicom.dcmread(io.BytesIO(content))
