"""Which files are DICOM, and their headers: what reading, searching and writing share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from segmamba.errors import InstallationError

NEEDED = "DICOM series and segmentations need pydicom and highdicom: install them with 'pip install highdicom'."
TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "ImageType"),
    *("SeriesDescription", "SeriesNumber", "PatientID", "StudyDate", "NumberOfFrames", "Rows"),
)
# The file DICOMDIR of a disc.
DIRECTORY = "1.2.840.10008.1.3.10"


def is_dicom(path: Path) -> bool:
    """Tell whether a file is a DICOM file (by the mark after its preamble)."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


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
    """Give each file that is DICOM, but for the directory of a disc, and its header, or None where that is damaged."""
    for path in paths:
        try:
            if not is_dicom(path):
                continue
            read = pydicom().dcmread
            header = read(path, stop_before_pixels=True, specific_tags=list(TAGS))
            if header.file_meta.get("MediaStorageSOPClassUID") != DIRECTORY:
                yield str(path), header if "SOPClassUID" in header else None
        except InstallationError:
            raise
        except Exception:  # pydicom has no base class for what a damaged file may raise
            yield str(path), None
