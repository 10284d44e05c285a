"""The DICOM series of files: which of them can be segmented, and why the others cannot.

The one place where DICOM is found, for a run on one series (`segmamba.io.dicom_choice`) as for a batch
(`group_series`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmamba.errors import InputError
from segmamba.io import dicom
from segmamba.io.dicom_headers import headers, modality_of, pydicom
from segmamba.io.read import check_values
from segmamba.io.volume import Volume
from segmamba.utils.words import counted

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
# A file and its header.
Found = tuple[str, Any]


@dataclass(frozen=True)
class Series:
    """One DICOM series.

    Attributes
    ----------
    uid, study_uid : str
        Empty where a file does not say.
    identity : str
        What distinguishes it from other series of the same folder.
    patient, study_date : str
        Patient ID and date (YYYYMMDD) as the files have them; perhaps empty.
    number : int or None
    description, modality : str
    files : tuple of str
        Paths in the order of their names, each image once.
    copies : tuple of str
        Further files with the same images.
    has_image : bool
    left_out : str or None
        Why it cannot be segmented, as a sentence; None where it can, as far as the headers say.
    damaged : bool
        It is a single file that cannot be read, perhaps a slice of another series.
    """

    uid: str
    study_uid: str
    identity: str
    patient: str
    study_date: str
    number: int | None
    description: str
    modality: str
    files: tuple[str, ...]
    left_out: str | None
    copies: tuple[str, ...] = ()
    has_image: bool = True
    damaged: bool = False

    @property
    def title(self) -> str:
        """What a person calls it, for sentences."""
        name = self.description or "without a description"
        files = counted(len(self.files), "file")
        return f"{self.modality or '?'} series '{name}' ({files} in {Path(self.files[0]).parent})"


def find_series(folder: str | os.PathLike[str]) -> list[Series]:
    """Find all DICOM series below a folder, in the order of their files.

    A series may lie in several folders, and a folder may hold several. Copies of a file count once. Hidden files are
    not looked at. Only headers are read, one for each file.

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
    return group_series(paths_below(folder))


def group_series(paths: Iterable[Path]) -> list[Series]:
    """Return the DICOM series that files belong to, as `find_series` does for those below a folder.

    Files without a series UID, which some anonymisers remove, belong together if they lie in one folder and agree in
    what a series has in common. A multi-frame file is a series by itself.

    Raises
    ------
    InstallationError
        There is DICOM, and pydicom is missing.
    """
    groups: dict[tuple[Any, ...], list[Found]] = defaultdict(list)
    found: list[Series] = []
    for file, header in headers(paths):
        if header is None:
            reason = f"{file} cannot be read: copy it again."
            found.append(Series("", "", file, "", "", None, "", "", (file,), reason, has_image=False, damaged=True))
        else:
            groups[_series_key(file, header)].append((file, header))
    for group in groups.values():
        kept, copies = _without_copies(group)
        # Documents may have the UID of the images that they belong to.
        documents = [one for one in kept if "Rows" not in one[1]]
        slices = [one for one in kept if "Rows" in one[1] and _frames(one[1]) == 1]
        parts = [[one] for one in kept if _frames(one[1]) > 1] + [part for part in (slices, documents) if part]
        found += [_series(part, copies, alone=len(parts) == 1) for part in parts]
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


def paths_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in order, but no hidden ones and none in hidden folders."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (Path(place, name) for name in sorted(names) if name[0] != ".")


def _series_key(file: str, header: Any) -> tuple[Any, ...]:
    """Return what files of one series have in common."""
    uid = _text(header, "SeriesInstanceUID")
    # Anonymisers may give all series the same UID.
    key = (uid, _text(header, "PatientID"), _text(header, "SeriesNumber"))
    if uid:
        return key
    names = ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesDescription", "Modality", "Rows", "Columns")
    orientation = tuple(round(part, 2) for part in _place(header, "ImageOrientationPatient"))
    return (*key, str(Path(file).parent), *(_text(header, name) for name in names), orientation)


def _without_copies(group: Sequence[Found]) -> tuple[list[Found], list[str]]:
    """Return each image of a series once, in the order of the names of their files, and the files that are copies.

    Files at one place with one identifier are copies, and without a reliable identifier those with the same pixels:
    some anonymisers give all slices of a series the same one, or none.
    """
    group = sorted(group, key=lambda one: one[0])
    places: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for _, header in group:
        places[_text(header, "SOPInstanceUID")].add(_image_key(header))
    alike: dict[tuple[Any, ...], list[Found]] = defaultdict(list)
    for file, header in group:
        uid = _text(header, "SOPInstanceUID")
        reliable = uid and len(places[uid]) == 1 and _place(header, "ImagePositionPatient")
        alike[(uid if reliable else "", *_image_key(header))].append((file, header))
    kept: list[Found] = []
    copies: list[str] = []
    for (uid, *_), same in alike.items():
        once = {(uid if uid or len(same) == 1 else _pixels(file)): (file, header) for file, header in reversed(same)}
        kept += once.values()
        copies += [file for file, header in same if (file, header) not in once.values()]
    return sorted(kept, key=lambda one: one[0]), copies


def _image_key(header: Any) -> tuple[Any, ...]:
    place = _place(header, "ImagePositionPatient"), _place(header, "ImageOrientationPatient")
    return (*place, _text(header, "InstanceNumber"), _frames(header))


def _pixels(file: str) -> str:
    """Return the SHA-256 of a file's pixels, or the file's own path where it has none."""
    try:
        return hashlib.sha256(pydicom().dcmread(file, force=True).PixelData).hexdigest()
    except Exception:  # what a damaged file may raise, see `headers`
        return file


def _series(group: Sequence[Found], copies: Sequence[str], alone: bool) -> Series:
    first_file, first = group[0]
    number, uid = _text(first, "SeriesNumber"), _text(first, "SeriesInstanceUID")
    return Series(
        uid=uid,
        study_uid=_text(first, "StudyInstanceUID"),
        identity=uid if uid and alone else f"{uid} {Path(first_file).name}".strip(),
        patient=_text(first, "PatientID"),
        study_date=_text(first, "StudyDate"),
        number=int(number) if number.lstrip("-").isdigit() else None,
        description=_text(first, "SeriesDescription"),
        modality=_modality(first),
        files=tuple(file for file, _ in group),
        left_out=why_left_out([header for _, header in group]),
        copies=tuple(copies),
        has_image="Rows" in first,
    )


def why_left_out(headers: Sequence[Any]) -> str | None:
    """Return in a sentence why a series is not one to segment, by the headers of its images, or None."""
    first = headers[0]
    modality, description = _modality(first), _text(first, "SeriesDescription")
    if modality and modality not in MODALITIES:
        return f"It is {modality}, and CT or MR is needed."
    if "Rows" not in first:
        return "It holds no image."
    if not modality and _frames(first) == 1 and not _place(first, "ImagePositionPatient"):
        return "It does not say its modality or where its slices lie, and CT or MR is needed."
    words = set.intersection(*(_words(header) for header in headers))
    named = LOCALIZER_NAME.search(description) or (modality == "MR" and SURVEY_NAME.search(description))
    if words & LOCALIZERS or named:
        return "It is a localizer (scout view)."
    if words & REFORMATS:
        what = ", ".join(sorted(words & REFORMATS)).lower()
        return f"It was computed from another series ({what}): segment the original one."
    slices = sum(_frames(header) for header in headers)
    if slices < FEWEST_SLICES:
        return f"It has {counted(slices, 'slice')}, and at least {FEWEST_SLICES} are needed."
    return None


def _modality(header: Any) -> str:
    return modality_of(_text(header, "Modality"), _text(header, "SOPClassUID"))


def _value(header: Any, name: str) -> Any:
    """Return the value of an attribute; None where it is missing or not of its type."""
    try:
        return header.get(name)
    except Exception:  # pydicom converts a value when it is asked for
        return None


def _text(header: Any, name: str) -> str:
    value = _value(header, name)
    return "" if value is None else str(value).strip()


def _place(header: Any, name: str) -> tuple[float, ...]:
    """Return the numbers of an attribute, in mm or of directions; none where it has not as many as it should."""
    try:
        return tuple(float(part) for part in _value(header, name) or ())
    except (TypeError, ValueError):
        return ()


def _values(header: Any, name: str) -> Iterable[Any]:
    value = _value(header, name) or ()
    return (value,) if isinstance(value, str) else value


def _words(header: Any) -> set[str]:
    """Return the values of an image type, and the words in them: "CSA MPR" is MPR too."""
    values = {str(value).strip().upper() for value in _values(header, "ImageType")}
    return values.union(*(value.split() for value in values))


def _frames(header: Any) -> int:
    text = _text(header, "NumberOfFrames")
    return max(1, int(text)) if text.isdigit() else 1
