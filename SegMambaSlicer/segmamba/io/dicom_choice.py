"""The one DICOM series that a path stands for: a folder, a file of the series, or the directory of a disc."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from segmamba.errors import InputError
from segmamba.io import dicom
from segmamba.io.dicom_headers import is_directory
from segmamba.io.dicom_index import Series, group_series, paths_below
from segmamba.io.volume import Volume
from segmamba.utils.paths import file_state
from segmamba.utils.words import counted

# A sentence names so many of a folder's series; a disc may hold a hundred.
MOST_NAMED = 5


@dataclass(frozen=True)
class _Chosen:
    """The files of a series, and what to tell the user of how it was chosen."""

    files: tuple[str, ...]
    notes: tuple[str, ...]


def find_files(path: Path) -> tuple[str, ...]:
    """Return the files of the one DICOM series below a folder, or of the series that a file belongs to.

    Below a folder, series that are left out (`Series.left_out`) count only if there is no other one. Of a file, the
    rest of the series is searched for in its folder; a multi-frame file is a series by itself, and the directory of a
    disc (DICOMDIR) stands for its folder.

    Raises
    ------
    InputError
        There is no series, or more than one, or a file in its folder is damaged.
    InstallationError
        pydicom is missing.
    """
    return _found(path).files


def _found(path: Path) -> _Chosen:
    """Return the series that a path stands for, see `find_files`."""
    if not path.is_dir() and is_directory(path):
        return _found(path.parent)
    if path.is_dir():
        paths = tuple(paths_below(path))
    else:
        # macOS puts a hidden file beside each one on a foreign disk.
        beside = (other for other in path.parent.iterdir() if other == path or other.name[0] != ".")
        paths = tuple(sorted(other for other in beside if other.is_file()))
    return _chosen(path, paths, tuple(map(file_state, paths)))


def read(path: Path) -> Volume:
    """Read the DICOM series that a path stands for, see `find_files`.

    Raises
    ------
    InputError
        As `find_files` and `read_series`.
    """
    chosen = _found(path)
    volume = dicom.read_files(str(path if path.is_dir() else path.parent), chosen.files)
    return replace(volume, notes=(*chosen.notes, *volume.notes))


# A run asks for the files three times if it writes a DICOM segmentation; a header takes some milliseconds.
@lru_cache(maxsize=2)
def _chosen(path: Path, paths: tuple[Path, ...], _states: tuple[Any, ...]) -> _Chosen:
    """Return the series that a path stands for, see `find_files`, out of the files in the given states."""
    series = group_series(paths)
    notes: tuple[str, ...] = ()
    if path.is_dir():
        chosen = _only(path, series)
        others = [one for one in series if one.has_image and one is not chosen]
        if others:
            named = _named(path, others)
            notes = (f"Of the DICOM series in {path}, this is the only scan; not segmented: {named}.",)
    else:
        belonging = [one for one in series if str(path) in (*one.files, *one.copies)]
        if not belonging:
            raise InputError(f"{path} lists the files of a disc and is not an image: give the folder of the slices.")
        chosen = belonging[0]
    places = {Path(file).parent for file in chosen.files}
    for one in series:
        if one.damaged and Path(one.files[0]).parent in places:
            raise InputError(
                f"{one.files[0]} is damaged: copy or export it again, or remove it if it is not a slice of the scan."
            )
    return _Chosen(chosen.files, notes)


def _only(folder: Path, found: Sequence[Series]) -> Series:
    """Return the series below a folder that can be meant; InputError where that is none or several."""
    images = [series for series in found if series.has_image]
    scans = [series for series in images if series.left_out is None] or images
    if len(scans) == 1:
        return scans[0]
    if not scans:
        damaged = next((series for series in found if series.damaged), None)
        if damaged is not None:
            raise InputError(f"{damaged.files[0]} is damaged, and there is no DICOM series beside it: copy it again.")
        raise InputError(f"{folder} holds no DICOM series: choose the folder that the slices are in.")
    raise InputError(
        f"{folder} holds {len(scans)} DICOM series: give one file of the one you want ({_named(folder, scans)}), or "
        "the folder to 'segmamba batch', which segments each of them."
    )


def _named(folder: Path, found: Sequence[Series]) -> str:
    named = "; ".join(_describe(folder, series) for series in found[:MOST_NAMED])
    return f"{named}; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else named


def _describe(folder: Path, series: Series) -> str:
    name = series.description or "without a description"
    example = os.path.relpath(series.files[0], folder)
    files = counted(len(series.files), "file")
    return f"{series.modality or '?'} '{name}', {files}, for example {example}"
