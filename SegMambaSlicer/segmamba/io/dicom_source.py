"""What a DICOM result repeats of the series that it was made of, and how the two refer to each other."""

from __future__ import annotations

import hashlib
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segmamba import __version__
from segmamba.errors import InputError
from segmamba.io.dicom import Slice, sorted_slices
from segmamba.io.dicom_headers import pydicom
from segmamba.labels import Code, Label
from segmamba.models.manifest import ListedModel

MANUFACTURER = "SegMambaSlicer"
RESEARCH = "Research use only"
NO_DEVICE = f"{RESEARCH}, not a medical device"
LABEL = "SEGMAMBA"
# Longest text of DICOM's type LO.
LONGEST = 64
# What a result repeats of its source and may be empty: anonymisers remove it.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
)
# Groups of tags that a result repeats of its source: of the study and of the patient.
REPEATED = (0x0008, 0x0010)
NEEDED_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
SEXES = ("", "M", "F", "O")
UNICODE = "ISO_IR 192"
# Of this software's own identifiers: each is computed from what it identifies.
NAMES = uuid.UUID("5d0f2b36-3f0e-4a53-9d1c-8f0d7c1a6b42")


@dataclass(frozen=True)
class Source:
    """A series that a result is made of.

    Attributes
    ----------
    slices : list of Slice
        As `segmamba.io.dicom.read_files` stacks them.
    headers : list of pydicom.Dataset
        Without pixels and fit to be repeated: of the slices, in their order, or of the one multi-frame file.
    emptied : tuple of str
        Names of what was emptied or left out in the headers, being no valid DICOM.
    """

    slices: list[Slice]
    headers: list[Any]
    emptied: tuple[str, ...]

    @property
    def is_multiframe(self) -> bool:
        """Whether the slices are the frames of one file."""
        return self.slices[0].frame is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of labels on the series."""
        columns, rows = self.slices[0].shape
        return len(self.slices), rows, columns

    def beginning(self) -> Source:
        """Return it with the headers of its first two slices only, where a slice has its own."""
        return self if self.is_multiframe else Source(self.slices[:2], self.headers[:2], self.emptied)

    def header_of(self, number: int) -> Any:
        """Return the header of the file in which a slice lies; ``number`` counts from 0."""
        return self.headers[0 if self.is_multiframe else number]


@dataclass(frozen=True)
class Result:
    """What there is to write of a series.

    Attributes
    ----------
    labels : ndarray of uint8
        Shape (z, y, x), on the source's grid.
    present : list of Label
        The structures that are present, in the model's order.
    model : ListedModel
        What made it.
    measurements : sequence of dict
        Rows of the report by their ``value``, for files that hold numbers.
    """

    labels: np.ndarray
    present: list[Label]
    model: ListedModel
    measurements: Sequence[Mapping[str, Any]] = ()

    @property
    def title(self) -> str:
        """The description of the series that it is written to."""
        return f"{RESEARCH}: {self.model.id} {self.model.version}"[:LONGEST]


@dataclass(frozen=True)
class Identifiers:
    """The UIDs of a result.

    Attributes
    ----------
    series, instance : str
        The same whenever the same is made of the same series with the same version. A result of other content, as other
        options make it, is another instance of the series.
    dimensions : str
        Of the organization of a segmentation's dimensions.
    """

    series: str
    instance: str
    dimensions: str

    @classmethod
    def of(cls, kind: str, source: Source, result: Result) -> Identifiers:
        """Return the UIDs of a result of a kind, such as "rtstruct"."""
        images = sorted({str(header.SOPInstanceUID) for header in source.headers})
        made = (kind, __version__, result.model.id, result.model.version, str(source.headers[0].SeriesInstanceUID))
        content = hashlib.blake2b(np.ascontiguousarray(result.labels).data).hexdigest()
        names = [str(label) for label in result.present]
        return cls(
            series=uid("series", *made, *images),
            instance=uid("instance", *made, *images, content, *names),
            dimensions=uid("dimensions", *made, *images),
        )


def concept(highdicom: Any, code: Code) -> Any:
    """Return a code as highdicom, which is given, has them."""
    return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)


def uid(*names: str) -> str:
    """Return a UID that is computed from names, made of a UUID, which needs no registered root."""
    return f"2.25.{uuid.uuid5(NAMES, chr(0).join(names)).int}"


def read_source(files: Sequence[str]) -> Source:
    """Read the headers of a series, and make them fit to be repeated.

    Raises
    ------
    InputError
        It names no frame of reference, or `sorted_slices` refuses it.
    """
    slices = sorted_slices(files[0], files)
    distance = float((slices[1].position - slices[0].position) @ slices[0].normal)
    headers, emptied = [], set()
    for file in dict.fromkeys(one.file for one in slices):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom().dcmread(file, stop_before_pixels=True)
            emptied |= set(_mended(header))
        if not header.get("FrameOfReferenceUID"):
            raise InputError(f"{file} names no frame of reference, which a DICOM result needs: write a .nii.gz.")
        measures = header if slices[0].frame is None else _shared_measures(header)
        if measures.get("SliceThickness") is None:
            measures.SliceThickness = distance
        headers.append(header)
    return Source(slices, headers, tuple(sorted(emptied)))


def _shared_measures(header: Any) -> Any:
    """Make a multi-frame file say of all frames together how they lie, in place, and return their measures.

    Scanners say it of each; `sorted_slices` has made sure that it is the same.
    """
    shared, first = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence[0]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if not shared.get(name):
            shared[name] = first[name]
    return shared.PixelMeasuresSequence[0]


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
        source.SpecificCharacterSet = UNICODE
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
