"""The DICOM series below a folder: which of them can be segmented, and why the others cannot."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmamba.errors import InputError
from segmamba.io import dicom
from segmamba.io.dicom_headers import headers
from segmamba.io.read import check_values
from segmamba.io.volume import Volume

MODALITIES = ("CT", "MR")
# A sagittal MR of a spine has from about 10 slices; localizers have up to 7.
FEWEST_SLICES = 8
LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW"}
# Also as a part of a name ("t2_localizers", "AAHead_Scout"). A survey is one in MR; in CT it is a scan of the skeleton.
LOCALIZER_NAME = re.compile(r"(localizer|localiser|scout|topogram|surview|scanogram)s?(?![a-z])", re.IGNORECASE)
SURVEY_NAME = re.compile(r"survey(?![a-z])", re.IGNORECASE)
# Words of an image type (0008,0008) for what was computed of a scan: another cut through it, or a projection of it.
# "DERIVED" alone does not say so: converted and anonymised scans have it too.
REFORMATS = {
    *("REFORMATTED", "MPR", "CPR", "CURVED", "MIP", "MINIP", "AIP", "PROJECTION IMAGE", "MAX_IP", "MIN_IP", "MEAN_IP"),
    *("VRT", "3D", "VOLUME RENDERED", "RENDERED", "SCREEN SAVE", "SCREENSAVE", "SUBTRACTION"),
}


@dataclass(frozen=True)
class Series:
    """One DICOM series.

    Attributes
    ----------
    uid, study_uid : str
        Empty where a file does not say.
    patient, study_date : str
        Patient ID and date (YYYYMMDD) as the files have them; perhaps empty.
    number : int or None
    description, modality : str
    files : tuple of str
        Paths in the order of their names, each instance once.
    left_out : str or None
        Why it cannot be segmented, as a sentence; None where it can, as far as the headers say.
    damaged : bool
        It is a single file that cannot be read, perhaps a slice of another series.
    """

    uid: str
    study_uid: str
    patient: str
    study_date: str
    number: int | None
    description: str
    modality: str
    files: tuple[str, ...]
    left_out: str | None
    damaged: bool = False

    @property
    def title(self) -> str:
        """What a person calls it, for sentences."""
        name = self.description or "without a description"
        return f"{self.modality or '?'} series '{name}' ({len(self.files)} files in {Path(self.files[0]).parent})"


def find_series(folder: str | os.PathLike[str]) -> list[Series]:
    """Find all DICOM series below a folder, in the order of their files.

    A series may lie in several folders, and a folder may hold several. A file that is there twice counts once. Files
    without the mark "DICM" after their preamble are not looked at. Only headers are read, one for each file.

    Returns
    -------
    list of Series
        Also those that are left out: what is neither CT nor MR (dose reports, segmentations), localizers, reformats and
        projections of another series, and series of fewer than 8 slices. Whether the slices make an even grid is only
        known to `read_series`.

    Raises
    ------
    InputError
        The folder does not exist.
    InstallationError
        pydicom is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the one that the DICOM series are in.")
    return group_series(_paths_below(folder))


def group_series(paths: Iterable[Path]) -> list[Series]:
    """Return the DICOM series that files belong to, as `find_series` does for those below a folder.

    Raises
    ------
    InstallationError
        There is DICOM, and pydicom is missing.
    """
    groups: dict[str, list[tuple[str, Any]]] = {}
    found: list[Series] = []
    for file, header in headers(paths):
        if header is None:
            reason = f"{file} cannot be read: copy it again."
            found.append(Series("", "", "", "", None, "", "", (file,), reason, damaged=True))
        else:
            # Without an identity of its own, each file is a series.
            groups.setdefault(_text(header, "SeriesInstanceUID") or file, []).append((file, header))
    found += [_series(group) for group in groups.values()]
    return sorted(found, key=lambda series: series.files[0])


def read_series(series: Series) -> Volume:
    """Read a series as a volume, in Hounsfield units or whatever its files rescale to.

    Raises
    ------
    InputError
        Slices are missing, lie unevenly or at one place, differ in size or orientation, were taken with a tilted
        gantry, or cannot be read.
    """
    volume = dicom.read_files(series.title, series.files)
    check_values(volume.array, series.title)
    return volume


def _paths_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(place, name) for name in sorted(names))


def _series(group: Sequence[tuple[str, Any]]) -> Series:
    once = {_text(header, "SOPInstanceUID") or file: (file, header) for file, header in reversed(group)}
    group = sorted(once.values(), key=lambda one: one[0])
    first = group[0][1]
    number = _text(first, "SeriesNumber")
    return Series(
        uid=_text(first, "SeriesInstanceUID"),
        study_uid=_text(first, "StudyInstanceUID"),
        patient=_text(first, "PatientID"),
        study_date=_text(first, "StudyDate"),
        number=int(number) if number.lstrip("-").isdigit() else None,
        description=_text(first, "SeriesDescription"),
        modality=_text(first, "Modality"),
        files=tuple(file for file, _ in group),
        left_out=_why_not([header for _, header in group]),
    )


def _why_not(headers: Sequence[Any]) -> str | None:
    """Return in a sentence why a series is left out, or None."""
    first = headers[0]
    modality, description = _text(first, "Modality"), _text(first, "SeriesDescription")
    if modality not in MODALITIES:
        return f"It is {modality or 'of no modality'}, and CT or MR is needed."
    if "Rows" not in first:
        return "It holds no image."
    words = set.intersection(*(_words(header) for header in headers))
    named = LOCALIZER_NAME.search(description) or (modality == "MR" and SURVEY_NAME.search(description))
    if words & LOCALIZERS or named:
        return "It is a localizer (scout view)."
    if words & REFORMATS:
        what = ", ".join(sorted(words & REFORMATS)).lower()
        return f"It was computed from another series ({what}): segment the original one."
    slices = sum(_frames(header) for header in headers)
    if slices < FEWEST_SLICES:
        return f"It has {slices} slice{'s' if slices > 1 else ''}, and at least {FEWEST_SLICES} are needed."
    return None


def _text(header: Any, name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value).strip()


def _values(header: Any, name: str) -> Iterable[Any]:
    value = header.get(name) or ()
    return (value,) if isinstance(value, str) else value


def _words(header: Any) -> set[str]:
    """Return the values of an image type, and the words in them: "CSA MPR" is MPR too."""
    values = {str(value).strip().upper() for value in _values(header, "ImageType")}
    return values.union(*(value.split() for value in values))


def _frames(header: Any) -> int:
    text = _text(header, "NumberOfFrames")
    return max(1, int(text)) if text.isdigit() else 1
