"""Which files are DICOM, and their headers: what reading, searching and writing share."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from segmamba.errors import InstallationError

NEEDED = "DICOM series and segmentations need pydicom and highdicom: install them with 'pip install highdicom'."
TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("SeriesDescription", "SeriesNumber", "PatientID", "StudyDate", "InstanceNumber", "NumberOfFrames", "ImageType"),
    *("ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns"),
)
# The file DICOMDIR of a disc.
DIRECTORY, DIRECTORY_NAME = "1.2.840.10008.1.3.10", "DICOMDIR"
# Storage of CT and MR images: single slices, enhanced, and enhanced ones that were converted.
STORAGE = "1.2.840.10008.5.1.4.1.1."
MODALITY_OF_CLASS = {
    **{f"{STORAGE}{end}": "CT" for end in ("2", "2.1", "2.2")},
    **{f"{STORAGE}{end}": "MR" for end in ("4", "4.1", "4.4")},
}
OTHER = "OT"
EXTENSIONS = (".dcm", ".dicom", ".ima")
PREAMBLE = 128
MARK = b"DICM"
# Enough for the first two elements of a file without a preamble.
BEGINNING = 512
FIRST_GROUPS = (0x0002, 0x0008)
TYPES = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
TYPES_WITH_LONG_LENGTH = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


def is_dicom(path: Path) -> bool:
    """Tell whether a file is DICOM: by the mark after its preamble or, without these, by its first two elements."""
    with path.open("rb") as stream:
        beginning = stream.read(BEGINNING)
    return _is_marked(beginning) or _begins_with_elements(beginning)


def is_marked(path: Path) -> bool:
    """Tell whether a DICOM file has the mark after its preamble, which the standard asks for."""
    with path.open("rb") as stream:
        return _is_marked(stream.read(BEGINNING))


def is_directory(path: Path) -> bool:
    """Tell whether a file is the directory of a disc (DICOMDIR), by its name and its content."""
    return path.name.upper().startswith(DIRECTORY_NAME) and path.is_file() and is_dicom(path)


def modality_of(stated: str | None, sop_class: str | None) -> str:
    """Return the modality of a file, in capitals; where it states none, or "other", that of its SOP class.

    Examples
    --------
    >>> modality_of("ct", None), modality_of(None, "1.2.840.10008.5.1.4.1.1.4"), modality_of(None, None)
    ('CT', 'MR', '')
    """
    text = (stated or "").strip(" \0").upper()
    return text if text not in ("", OTHER) else MODALITY_OF_CLASS.get((sop_class or "").strip(" \0"), text)


def pydicom() -> Any:
    """Return the package pydicom.

    Raises
    ------
    InstallationError
        It is missing.
    """
    try:
        import pydicom
    except ImportError as error:
        raise InstallationError(NEEDED) from error
    return pydicom


def headers(paths: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    """Give each file that is DICOM, but for the directory of a disc, and its header, or None where that is damaged.

    A file that is named as DICOM files are (`EXTENSIONS`) and does not begin as one is damaged.
    """
    for path in paths:
        try:
            with path.open("rb") as stream:
                beginning = stream.read(BEGINNING)
            marked = _is_marked(beginning)
            if not marked and not _begins_with_elements(beginning):
                if path.name.lower().endswith(EXTENSIONS):
                    yield str(path), None
                continue
            read = pydicom().dcmread
            header = read(path, stop_before_pixels=True, specific_tags=list(TAGS), force=not marked)
            if header.file_meta.get("MediaStorageSOPClassUID") != DIRECTORY:
                yield str(path), header if _is_whole(header) else None
        except InstallationError:
            raise
        except Exception:  # pydicom has no base class for what a damaged file may raise
            yield str(path), None


def _is_whole(header: Any) -> bool:
    """Tell whether a header was not cut off: that of an image says how large it is, others what they are."""
    if header.get("SOPClassUID") in MODALITY_OF_CLASS:
        return "Rows" in header
    return "SOPClassUID" in header or "Rows" in header


def _is_marked(beginning: bytes) -> bool:
    return beginning[PREAMBLE : PREAMBLE + len(MARK)] == MARK


def _begins_with_elements(beginning: bytes) -> bool:
    """Tell whether bytes begin with two DICOM elements of the first groups, in order, in any transfer syntax."""
    return any(_two_elements(beginning, order) for order in "<>")


def _two_elements(beginning: bytes, order: str) -> bool:
    place, last = 0, (0, -1)
    for _ in range(2):
        if place + 12 > len(beginning):
            return False
        tag = struct.unpack_from(f"{order}HH", beginning, place)
        if tag[0] not in FIRST_GROUPS or tag <= last:
            return False
        kind = beginning[place + 4 : place + 6]
        if kind in TYPES_WITH_LONG_LENGTH:
            length, start = struct.unpack_from(f"{order}I", beginning, place + 8)[0], 12
        elif kind in TYPES:
            length, start = struct.unpack_from(f"{order}H", beginning, place + 6)[0], 8
        else:
            length, start = struct.unpack_from(f"{order}I", beginning, place + 4)[0], 8
        place, last = place + start + length, tag
    return True
