"""Exams of a spine from files: a report and its segmentation, or a segmentation with or without its image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segmamba.errors import InputError
from segmamba.io.level_map import read_levels
from segmamba.io.modality import MR, resolve_modality
from segmamba.io.read import read_volume
from segmamba.io.volume import Volume
from segmamba.labels import Label
from segmamba.measurements.comparison import Exam
from segmamba.measurements.vertebrae import centroid, masks_of, measure_spine, volume_ml
from segmamba.measurements.vertebral_body import Mask

REPORT_NAME = "report.json"
# Volumes of a report and of its segmentation, mL, may differ by rounding.
ROUNDING_ML = 0.002
# What is compared that older reports do not have.
NEEDED = ("height_sd_mm", "fracture_grade_lowest", "fracture_grade_highest", "trabecular_hu")
EDITED = "{} was edited after its report: it was measured again, without density; for that, give --images."
NO_IMAGE = "{} has no image here, so that density is not compared: give --images, or the reports."


@dataclass(frozen=True, eq=False)
class ExamFile:
    """An exam as it lies on the disk.

    Attributes
    ----------
    name : str
        Of the file or folder that was given.
    segmentation : Path
    report : mapping or None
        Of the run that made it.
    """

    name: str
    segmentation: Path
    report: Mapping[str, Any] | None


@dataclass(frozen=True, eq=False)
class ReadExam:
    """An exam that was read and, where that was needed, measured.

    Attributes
    ----------
    exam : Exam
    image : Volume or None
        If it was given.
    note : str
        A sentence about what was measured; may be empty.
    """

    exam: Exam
    image: Volume | None
    note: str


def find_exam(path: Path) -> ExamFile:
    """Return what a path means: a report (.json), the folder of a case of a batch, or a segmentation.

    Raises
    ------
    InputError
        It is no report of vertebrae, or the segmentation is not there.
    """
    if path.is_dir() and not (path / REPORT_NAME).is_file():
        raise InputError(f"{path} has no {REPORT_NAME}: give the folder of a batch's case, a report or a segmentation.")
    file = path / REPORT_NAME if path.is_dir() else path
    if file.suffix.lower() != ".json":
        return ExamFile(path.name, path, None)
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        named, rows = Path(report["output"]), list(report["measurements"])
        complete = all(name in row for row in rows for name in NEEDED)
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist: check the path.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not the report of vertebrae: give that of 'segmamba segment --report', or the segmentation."
        ) from error
    if not complete:
        raise InputError(f"{file} is from an older version: give the segmentation, and --images for its density.")
    # A folder that was moved as a whole still has both.
    found = next((each for each in (file.parent / named.name, named) if each.is_file()), None)
    if found is None:
        raise InputError(f"{file} names the segmentation {named}, which is not there: give the segmentation itself.")
    return ExamFile(path.name, found, report)


def read_exam(file: ExamFile, image: Path | None, structures: tuple[Label, ...]) -> ReadExam:
    """Read an exam; what no report says is measured.

    Parameters
    ----------
    file : ExamFile
    image : Path or None
        If given, everything is measured again on it.
    structures : tuple of Label
        The vertebrae, and the sacrum.

    Raises
    ------
    InputError
        The segmentation or the image cannot be read, or the one does not lie in the other.
    """
    levels = read_levels(file.segmentation)
    masks = masks_of(levels.array, levels.geometry, structures)
    names = {label.value: label.name for label in structures}
    if image is not None:
        volume = resolve_modality(read_volume(image))
        if not _lie_in(masks, volume):
            raise InputError(f"{file.segmentation} does not lie in {image}: give the image that was segmented.")
        return ReadExam(_measured(masks, volume, names), volume, "")
    if file.report is not None and _holds(file.report, masks):
        return ReadExam(Exam(file.report["measurements"], file.report.get("bone"), masks), None, "")
    # Heights need no image; an MR has no density.
    note = (NO_IMAGE if file.report is None else EDITED).format(file.segmentation)
    return ReadExam(_measured(masks, replace(levels, modality=MR), names), None, note)


def _measured(masks: Mapping[int, Mask], volume: Volume, names: Mapping[int, str]) -> Exam:
    found = measure_spine(masks, volume, names)
    return Exam(found["measurements"], found["bone"], masks)


def _holds(report: Mapping[str, Any], masks: Mapping[int, Mask]) -> bool:
    """Say whether a segmentation is still what its report measured."""
    said = {row["value"]: row["volume_ml"] for row in report["measurements"]}
    same = said.keys() == masks.keys()
    return same and all(abs(said[level] - volume_ml(mask)) <= ROUNDING_ML for level, mask in masks.items())


def _lie_in(masks: Mapping[int, Mask], volume: Volume) -> bool:
    """Say whether the centroids of all masks lie in a volume."""
    points = np.array([[*centroid(mask), 1.0] for mask in masks.values()])
    index = (points @ np.linalg.inv(volume.geometry.affine).T)[:, :3]
    return bool(((index > -0.5) & (index < np.array(volume.geometry.size) - 0.5)).all())
