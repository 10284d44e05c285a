"""Writing a segmentation as a DICOM Segmentation object (SEG) that refers to the series it was made of."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from segmamba import __version__
from segmamba.errors import InputError, InstallationError, OutputError
from segmamba.io.dicom import Slice, sorted_slices
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
# Groups of tags that a segmentation repeats of its source: of the study and of the patient.
REPEATED = (0x0008, 0x0010)
NEEDED_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
SEXES = ("", "M", "F", "O")
# What is written to nowhere before a run, to see whether it can be written.
TRIAL = Label(
    1, "Trial", (0, 0, 0), Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "51282000", "Vertebra")
)
TRIAL_MODEL: Any = SimpleNamespace(id="trial", version="0", title="Trial")


def check_sources(files: Sequence[str]) -> None:
    """Make sure, before any work is done, that a segmentation of a series can be written as DICOM.

    Raises
    ------
    InstallationError
        highdicom is missing.
    InputError
        The series is a multi-frame file, names no frame of reference, or lacks what a segmentation has to repeat.
    """
    _check_series(files)
    slices = sorted_slices(files[0], files)
    sources, _ = _read_sources(slices)
    numbers = np.zeros((2, *slices[0].shape[::-1]), np.uint8)
    numbers[0, 0, 0] = 1
    _encoded(sources[:2], numbers, [TRIAL], TRIAL_MODEL, files[0])


def _check_series(files: Sequence[str]) -> None:
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
) -> tuple[str, ...]:
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

    Returns
    -------
    tuple of str
        What to tell the user: which values of the headers, being no DICOM, were left empty.

    Raises
    ------
    InstallationError
        highdicom is missing.
    InputError
        See `check_sources`; or the files lack what a segmentation has to repeat, or the labels are not on their grid.
    OutputError
        No structure is present (a DICOM segmentation cannot be empty), or the file cannot be written.
    """
    _check_series(files)
    slices = sorted_slices(files[0], files)
    if labels.shape != (len(slices), *slices[0].shape[::-1]):
        raise InputError(f"Labels of shape {labels.shape} do not fit the series of {files[0]}: segment that series.")
    boxes = label_boxes(labels)
    present = [label for label in structures if label.value in boxes]
    if not present:
        raise OutputError("No structure was found, and a DICOM segmentation cannot be empty: write a .nii.gz.")
    sources, emptied = _read_sources(slices)
    # highdicom numbers segments from 1.
    table = np.zeros(256, np.uint8)
    table[[label.value for label in present]] = np.arange(1, len(present) + 1)
    content = _encoded(sources, table[labels], present, model, files[0])
    with atomic_write(path, (SEG_EXTENSION,)) as temporary:
        temporary.write_bytes(content)
    if not emptied:
        return ()
    named = ", ".join(emptied)
    return (f"Values in the headers of the series that are not valid DICOM were left out of the DICOM SEG: {named}.",)


def _encoded(
    sources: list[Any], numbers: np.ndarray, present: list[Label], model: ListedModel, file: str
) -> bytes | memoryview:
    """Return the content of the file; the arguments are those of `_segmentation`, and the name of a source."""
    stream = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # Of names and values that the source files have.
            warnings.simplefilter("ignore")
            _segmentation(sources, numbers, present, model).save_as(stream)
    except Exception as error:  # highdicom and pydicom raise all kinds at headers that are not as they should be
        reason = " ".join(str(error).split())
        raise InputError(f"{file} lacks what a DICOM SEG must repeat ({reason}): write a .nii.gz.") from error
    return stream.getbuffer()


def _read_sources(slices: Sequence[Slice]) -> tuple[list[Any], tuple[str, ...]]:
    """Return the headers of slices, fit to be repeated, and the names of what was emptied or left out there."""
    distance = float((slices[1].position - slices[0].position) @ slices[0].normal)
    sources, emptied = [], set()
    for each in slices:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = pydicom().dcmread(each.file, stop_before_pixels=True)
            emptied |= set(_mended(source))
        if source.get("SliceThickness") is None:
            source.SliceThickness = distance
        sources.append(source)
    return sources, tuple(sorted(emptied))


def _mended(source: Any) -> Iterable[str]:
    """Make a header fit to be repeated, in place, and give the names of what was emptied or removed.

    Text is decoded, so that it can be written as Unicode: highdicom takes few of the sets of characters that scanners
    in Asia name.
    """
    tags = list(source.keys())
    for tag in (tag for tag in tags if tag.group in REPEATED):
        try:
            valid = _is_valid(source[tag])
        except Exception:  # whatever pydicom raises at a value that it cannot convert
            valid = False
        name = pydicom().datadict.keyword_for_tag(tag) or str(tag)
        if valid or name in NEEDED_UIDS:
            continue
        del source[tag]
        yield name
    try:
        source.decode()
        source.SpecificCharacterSet = "ISO_IR 192"
    except Exception:
        del source.SpecificCharacterSet
    for name in MAY_BE_EMPTY:
        if name not in source:
            setattr(source, name, "")


def _is_valid(element: Any) -> bool:
    """Say whether an element of a header, with all that is in it, is as the standard wants it."""
    if element.VR == "SQ":
        return all(_is_valid(inner) for item in element.value for inner in item)
    if element.keyword == "PatientSex" and element.value not in SEXES:
        return False
    if element.keyword == "SpecificCharacterSet" or element.value in (None, ""):
        return True
    valuerep = pydicom().valuerep
    values = element.value if element.VM > 1 else [element.value]
    for value in values:
        text = str(value.original_string) if getattr(value, "original_string", None) else value
        valuerep.validate_value(element.VR, text, pydicom().config.RAISE)
    return element.VR != "DA" or all(str(value).replace("-", "").isdigit() for value in values)


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
