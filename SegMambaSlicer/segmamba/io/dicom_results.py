"""DICOM files of a segmentation that refer to the series it was made of: which there are, by their names."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np

from segmamba.errors import InputError, InstallationError, OutputError
from segmamba.io.contours import NEEDED as CONTOURPY
from segmamba.io.dicom_headers import NEEDED as HIGHDICOM
from segmamba.io.dicom_headers import pydicom
from segmamba.io.dicom_rtstruct import structure_set
from segmamba.io.dicom_seg import BINARY, LABELMAP, segmentation
from segmamba.io.dicom_source import Result, Source, read_source
from segmamba.io.dicom_sr import measurement_report
from segmamba.labels import Code, Label
from segmamba.models.manifest import ListedModel
from segmamba.utils.arrays import label_boxes
from segmamba.utils.atomic import atomic_write


@dataclass(frozen=True)
class Kind:
    """A kind of DICOM file that a segmentation can be written as.

    Attributes
    ----------
    name : str
        For sentences.
    dataset : callable
        Returns its dataset from a `Source` and a `Result`.
    package, needed : str
        What it is written with, and the sentence of an error where that is missing.
    """

    name: str
    dataset: Callable[[Source, Result], Any]
    package: str
    needed: str

    def require(self) -> None:
        """Raise InstallationError if its package is missing."""
        if find_spec(self.package) is None:
            raise InstallationError(self.needed)


# By the endings of their names, longest first: "x.rtstruct.dcm" also ends in ".dcm".
KINDS = {
    ".sr.dcm": Kind("SR", measurement_report, "highdicom", HIGHDICOM),
    ".rtstruct.dcm": Kind("RTSTRUCT", structure_set, "contourpy", CONTOURPY),
    ".labelmap.dcm": Kind("SEG", partial(segmentation, LABELMAP), "highdicom", HIGHDICOM),
    ".dcm": Kind("SEG", partial(segmentation, BINARY), "highdicom", HIGHDICOM),
}
DICOM_EXTENSIONS = tuple(KINDS)
# What is written to nowhere before a run, to see whether it can be written.
TRIAL = Label(
    1, "Trial", (0, 0, 0), Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "51282000", "Vertebra")
)
TRIAL_MODEL: Any = SimpleNamespace(id="trial", version="0", title="Trial")


def kind_of(output: str | os.PathLike[str]) -> Kind | None:
    """Return the kind of DICOM file that a name asks for; None where it is another format.

    Examples
    --------
    >>> kind_of("spine.rtstruct.dcm").name, kind_of("spine.DCM").name, kind_of("spine.nii.gz")
    ('RTSTRUCT', 'SEG', None)
    """
    name = os.fspath(output).lower()
    return next((kind for ending, kind in KINDS.items() if name.endswith(ending)), None)


def check_sources(files: Sequence[str], output: str = DICOM_EXTENSIONS[-1]) -> None:
    """Make sure, before any work is done, that a segmentation of a series can be written as DICOM.

    Parameters
    ----------
    files : sequence of str
        The series' files.
    output : str
        Name of the result.

    Raises
    ------
    InstallationError
        A package is missing.
    InputError
        The series names no frame of reference, or lacks what a result has to repeat.
    """
    kind = _kind(output)
    kind.require()
    source = read_source(files).beginning()
    labels = np.zeros(source.shape, np.uint8)
    labels[0, 0, 0] = TRIAL.value
    _encoded(kind, source, Result(labels, [TRIAL], TRIAL_MODEL))


def write_dicom(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    files: Sequence[str],
    structures: Sequence[Label],
    model: ListedModel,
    measurements: Sequence[Mapping[str, Any]] = (),
) -> tuple[str, ...]:
    """Write labels as the kind of DICOM file that its name asks for, whole or not at all.

    It belongs to the study and the frame of reference of the source images, and refers for each frame or contour to the
    image that it was drawn on. Its identifiers are the same whenever the same labels of the same series are written by
    the same versions of software and model.

    Parameters
    ----------
    path : path
        Ends in ``.sr.dcm`` (Comprehensive SR with the measurements), ``.rtstruct.dcm`` (RT Structure Set),
        ``.labelmap.dcm`` (Label Map Segmentation) or else ``.dcm`` (binary Segmentation).
    labels : ndarray of uint8
        Shape (z, y, x), on the grid of the series as `segmamba.io.dicom.read_files` stacks it.
    files : sequence of str
        The series' slices, in any order, or its one multi-frame file.
    structures : sequence of Label
        What the values mean; other values are left out.
    model : ListedModel
        The algorithm that the file names.
    measurements : sequence of dict
        The report's rows of numbers, each with its structure's ``value``; only an SR holds them.

    Returns
    -------
    tuple of str
        What to tell the user: which values of the headers, being no DICOM, were left empty.

    Raises
    ------
    InstallationError
        A package is missing.
    InputError
        See `check_sources`; or the labels are not on the grid of the files.
    OutputError
        No structure is present (a DICOM result cannot be empty), or the file cannot be written.
    """
    kind = _kind(path)
    kind.require()
    source = read_source(files)
    if labels.shape != source.shape:
        raise InputError(f"Labels of shape {labels.shape} do not fit the series of {files[0]}: segment that series.")
    boxes = label_boxes(labels)
    present = [label for label in structures if label.value in boxes]
    if not present:
        raise OutputError(f"No structure was found, and a DICOM {kind.name} cannot be empty: write a .nii.gz.")
    content = _encoded(kind, source, Result(labels, present, model, measurements))
    with atomic_write(path, DICOM_EXTENSIONS) as temporary:
        temporary.write_bytes(content)
    if not source.emptied:
        return ()
    named = ", ".join(source.emptied)
    return (
        f"Values in the headers of the series that are not valid DICOM were left out of the DICOM {kind.name}: "
        f"{named}.",
    )


def _kind(path: str | os.PathLike[str]) -> Kind:
    kind = kind_of(path)
    if kind is None:
        raise OutputError(f"{path} is no name of a DICOM file: end it in one of {', '.join(DICOM_EXTENSIONS)}.")
    return kind


def _encoded(kind: Kind, source: Source, result: Result) -> bytes | memoryview:
    """Return the content of the file."""
    stream = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # Of names and values that the source files have.
            warnings.simplefilter("ignore")
            pydicom().dcmwrite(stream, kind.dataset(source, result), enforce_file_format=True)
    except Exception as error:  # highdicom and pydicom raise all kinds at headers that are not as they should be
        reason = " ".join(str(error).split())
        file = source.slices[0].file
        raise InputError(f"{file} lacks what a DICOM {kind.name} must repeat ({reason}): write a .nii.gz.") from error
    return stream.getbuffer()
