"""Writing a segmentation as a DICOM Segmentation object (SEG) that refers to the series it was made of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from segmamba import __version__
from segmamba.errors import InputError, InstallationError, OutputError
from segmamba.io.dicom import sorted_slices
from segmamba.io.dicom_headers import NEEDED, pydicom
from segmamba.labels import Code, Label
from segmamba.models.manifest import ListedModel
from segmamba.utils.arrays import label_boxes
from segmamba.utils.atomic import atomic_write

SEG_EXTENSION = ".dcm"
# Far from the numbers that scanners give.
SERIES_NUMBER = 9000
MANUFACTURER = "SegMambaSlicer"
RESEARCH = "Research use only"
# What a segmentation repeats of its source and may be empty: anonymisers remove it.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
)
# Longest text of DICOM's type LO.
LONGEST = 64


def check_sources(files: Sequence[str]) -> None:
    """Make sure, before any work is done, that a segmentation of a series can be written as DICOM.

    Raises
    ------
    InstallationError
        highdicom is missing.
    InputError
        The series is a multi-frame file, or names no frame of reference.
    """
    _highdicom()
    if len(files) < 2:
        raise InputError(
            f"{files[0]} is a multi-frame file, for which no DICOM SEG can be written yet: write a .nii.gz."
        )
    header = pydicom().dcmread(files[0], stop_before_pixels=True, specific_tags=["FrameOfReferenceUID"])
    if not header.get("FrameOfReferenceUID"):
        raise InputError(f"{files[0]} names no frame of reference, which a DICOM SEG needs: write a .nii.gz.")


def write_dicom_seg(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    files: Sequence[str],
    structures: Sequence[Label],
    model: ListedModel,
) -> None:
    """Write labels as a binary DICOM Segmentation, whole or not at all.

    It has one segment for each structure that is present, with the manifest's codes and colours, belongs to the study
    and the frame of reference of the source images, and refers for each frame to the image that it was drawn on.

    Parameters
    ----------
    path : path
        Ends in ``.dcm``.
    labels : ndarray of uint8
        Shape (z, y, x), on the grid of the series as `segmamba.io.dicom.read_files` stacks it.
    files : sequence of str
        The series' slices, in any order.
    structures : sequence of Label
        What the values mean; other values are left out.
    model : ListedModel
        The algorithm that the segmentation names.

    Raises
    ------
    InstallationError
        highdicom is missing.
    InputError
        See `check_sources`; or the files lack what a segmentation has to repeat, or the labels are not on their grid.
    OutputError
        No structure is present (a DICOM segmentation cannot be empty), or the file cannot be written.
    """
    check_sources(files)
    slices = sorted_slices(files[0], files)
    if labels.shape != (len(slices), *slices[0].shape[::-1]):
        raise InputError(f"Labels of shape {labels.shape} do not fit the series of {files[0]}: segment that series.")
    boxes = label_boxes(labels)
    present = [label for label in structures if label.value in boxes]
    if not present:
        raise OutputError("No structure was found, and a DICOM segmentation cannot be empty: write a .nii.gz.")
    read = pydicom().dcmread
    sources = [read(each.file, stop_before_pixels=True) for each in slices]
    distance = float((slices[1].position - slices[0].position) @ slices[0].normal)
    for source in sources:
        _complete(source, distance)
    # highdicom numbers segments from 1.
    table = np.zeros(256, np.uint8)
    table[[label.value for label in present]] = np.arange(1, len(present) + 1)
    try:
        with warnings.catch_warnings():
            # Of names and values that the source files have.
            warnings.simplefilter("ignore")
            segmentation = _segmentation(sources, table[labels], present, model)
    except (AttributeError, ValueError) as error:
        raise InputError(f"{files[0]} lacks what a DICOM SEG must repeat ({error}): write a .nii.gz.") from error
    with atomic_write(path, (SEG_EXTENSION,)) as temporary:
        segmentation.save_as(temporary)


def _complete(source: Any, distance: float) -> None:
    """Add to a source's header what highdicom asks for and may be missing; ``distance`` of the slices, mm."""
    for name in MAY_BE_EMPTY:
        if name not in source:
            setattr(source, name, "")
    if source.get("SliceThickness") is None:
        source.SliceThickness = distance


def _segmentation(sources: list[Any], numbers: np.ndarray, present: list[Label], model: ListedModel) -> Any:
    """Return the dataset; ``numbers`` (z, y, x) are those of the segments, in the order of ``present``."""
    highdicom = _highdicom()
    algorithm = _algorithm(highdicom, model)
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=numbers,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _segment(highdicom, number, label, algorithm) for number, label in enumerate(present, start=1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=model.title[:LONGEST],
        software_versions=__version__,
        device_serial_number="0",
        series_description=f"{RESEARCH}: {model.id} {model.version}"[:LONGEST],
        content_description=f"{RESEARCH}, not a medical device",
        content_label="SEGMAMBA",
    )


def _segment(highdicom: Any, number: int, label: Label, algorithm: Any) -> Any:
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.name,
        segmented_property_category=_concept(highdicom, label.category),
        segmented_property_type=_concept(highdicom, label.type),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        anatomic_regions=[_concept(highdicom, label.region)] if label.region else None,
        display_color=highdicom.color.CIELabColor.from_rgb(*label.color),
    )


def _algorithm(highdicom: Any, model: ListedModel) -> Any:
    family = highdicom.sr.CodedConcept("123109", "DCM", "Artificial Intelligence")
    return highdicom.AlgorithmIdentificationSequence(
        name=model.id[:LONGEST], family=family, version=model.version[:LONGEST], source=MANUFACTURER
    )


def _concept(highdicom: Any, code: Code) -> Any:
    return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError as error:
        raise InstallationError(NEEDED) from error
    return highdicom
