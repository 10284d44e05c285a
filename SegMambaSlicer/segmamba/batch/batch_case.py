"""One case of a batch: a file or a DICOM series, with a name that is the same in every run."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from segmamba.batch.datafiles import data_files
from segmamba.batch.layout import SERIES, WORKING
from segmamba.errors import OutputError
from segmamba.io.dicom_index import Series

# What a batch takes for images by their names; those in two files by that of the header.
EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr.gz", ".hdr", ".img.gz", ".img")
NAME_LENGTH, HASH_LENGTH = 60, 10


@dataclass(frozen=True)
class BatchCase:
    """One volume to segment.

    Attributes
    ----------
    name : str
        Readable, unique, the same in every run on the same input; also that of the case's folder.
    path : str
        The file, or the first file of the DICOM series.
    listing : str
        For a DICOM series, the file that lists its files (JSON); they may be thousands, and the cases too. Else empty.
    skipped : str
        Why it is not a scan to segment, as a sentence; else empty.
    error : str
        Why it cannot be read, as a sentence; else empty.
    series : str
        For a DICOM series with an identifier, what tells it from other series. Else empty.
    channels : tuple of tuple of str
        For a model that takes several volumes: name and file of each of the others. Else empty.
    """

    name: str
    path: str
    listing: str = ""
    skipped: str = ""
    error: str = ""
    series: str = ""
    channels: tuple[tuple[str, str], ...] = ()

    def files(self) -> list[str]:
        """Return all files that the case is made of; OSError if that cannot be read."""
        if not self.listing:
            whole = (self.path, *(path for _name, path in self.channels))
            return [file for path in whole for file in (path, *data_files(path))]
        files: list[str] = json.loads(Path(self.listing).read_text(encoding="utf-8"))
        return files


def file_case(path: str, skipped: str = "") -> BatchCase:
    """Return the case of a file, named by its folder, its name and a hash of its path."""
    whole = Path(path)
    return BatchCase(_name(whole.parent.name, stem(path), whole.as_posix()), path, skipped=skipped)


def stem(path: str) -> str:
    """Return a file's name without its extension, of which ``.nii.gz`` is one."""
    name = Path(path).name
    extension = next((known for known in EXTENSIONS if name.lower().endswith(known)), "")
    return name[: len(name) - len(extension)]


def channels_case(own: str, files: Mapping[str, str]) -> BatchCase:
    """Return the case of several files, by the names of their channels; ``own`` is what their names share.

    The first one is the input. Its name does not depend on which channels there are.
    """
    (_, path), *others = files.items()
    folder = Path(path).parent
    return BatchCase(_name(folder.name, own, (folder / own).as_posix()), path, channels=tuple(others))


def refused_case(error: OSError) -> BatchCase:
    """Return the failed case of a folder that cannot be read."""
    case = file_case(str(error.filename))
    return replace(case, error=f"The folder {case.path} cannot be read ({error.strerror}): check its permissions.")


def series_case(series: Series, output: Path) -> BatchCase:
    """Return the case of a DICOM series; its files are listed in the run's working folder."""
    first = Path(os.path.abspath(series.files[0]))
    if series.damaged:
        return replace(file_case(str(first)), error=series.left_out or "")
    # Not the patient's name or number: names of folders are seen by many.
    identity = f"{first.parent.as_posix()} {series.identity}"
    name = _name(first.parent.name, series.description or series.modality, identity)
    listing = output / WORKING / SERIES / f"{name}.json"
    try:
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(json.dumps([os.path.abspath(file) for file in series.files]), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{listing} cannot be written ({error.strerror}): check permissions and free space."
        ) from error
    identifiers = f"{series.uid} {series.patient} {series.number}" if series.uid else ""
    return BatchCase(name, str(first), str(listing), series.left_out or "", series=identifiers)


def archived_case(place: str, study: str, series: str, own: str) -> BatchCase:
    """Return the case of a series that is in an archive; ``own`` is what its name begins with.

    Its name says nothing of the patient. Its ``series`` are the identifiers of study and series.
    """
    path = f"{place}/studies/{study}/series/{series}"
    return BatchCase(_name("", own, path), path, series=f"{study} {series}")


def _name(folder: str, own: str, identity: str) -> str:
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:HASH_LENGTH]
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{folder}_{own}").strip("._-")[:NAME_LENGTH]
    return f"{readable or 'case'}-{digest}"
