"""Which cases there are: files and DICOM series below folders, or those that a pattern names."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from segmamba.batch.datafiles import data_files
from segmamba.batch.layout import SERIES, WORKING
from segmamba.errors import Cancelled, InputError, OutputError
from segmamba.io.dicom_headers import is_dicom
from segmamba.io.dicom_index import Series, group_series

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
# A segmentation next to its volume is not a case.
NOT_CASES = (".seg.nrrd", ".seg.nhdr")
NAME_LENGTH, HASH_LENGTH = 60, 10

Map = Callable[[Callable[[Any], list["BatchCase"]], Sequence[Any]], Iterable[list["BatchCase"]]]


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
        For a DICOM series with identifiers, those of study and series. Else empty.
    """

    name: str
    path: str
    listing: str = ""
    skipped: str = ""
    error: str = ""
    series: str = ""

    def files(self) -> list[str]:
        """Return all files that the case is made of; OSError if that cannot be read."""
        if not self.listing:
            return [self.path, *data_files(self.path)]
        files: list[str] = json.loads(Path(self.listing).read_text(encoding="utf-8"))
        return files


def find_cases(
    inputs: Sequence[str],
    output: Path,
    map_roots: Map = map,
    log: Callable[[str], None] = print,
    stopped: Callable[[], bool] | None = None,
) -> list[BatchCase]:
    """Return the cases of folders, files and patterns, sorted by path; files below ``output`` are no cases.

    A DICOM series is one case, wherever its files lie.

    Parameters
    ----------
    inputs : sequence of str
    output : Path
        Folder of the run; `segmamba.batch.layout.prepare` has made it.
    map_roots : callable
        Like ``map``; that of a pool of workers searches thousands of studies in parallel.
    log : callable
        Gets a line for each pattern that nothing matches.
    stopped : callable, optional
        Asked at each file whether to end the search; ``map_roots`` must be able to pass it on.

    Raises
    ------
    Cancelled
        ``stopped`` said so.
    InputError
        Something does not exist, or there is no case at all.
    InstallationError
        There is DICOM, and a package that it needs is missing.
    """
    output = Path(os.path.abspath(output))
    roots = _outermost(root for given in inputs for root in _roots(given, output, log))
    found: dict[str, list[BatchCase]] = {}
    for cases in map_roots(partial(cases_below, output=str(output), stopped=stopped), roots):
        for case in cases:
            found.setdefault(case.series or case.name, []).append(case)
    if not found:
        known = ", ".join(EXTENSIONS)
        raise InputError(f"There is no image in {', '.join(inputs)}: give folders, or patterns, of {known} or DICOM.")
    split = [parts for parts in found.values() if len(parts) > 1 and parts[0].series]
    whole = [parts[0] for parts in found.values() if len(parts) == 1 or not parts[0].series]
    for cases in map_roots(partial(_joined, output=str(output)), split):
        whole += cases
    return sorted(whole, key=lambda case: (case.path, case.name))


def cases_below(root: str, output: str, stopped: Callable[[], bool] | None = None) -> list[BatchCase]:
    """Return the case that a file is, or all below a folder; what cannot be read is a case with an error.

    Raises
    ------
    Cancelled, InstallationError
        As `find_cases`.
    """
    if not os.path.isdir(root):
        return [_file_case(root)]
    refused: list[OSError] = []
    images: list[str] = []
    others: list[str] = []
    for path in _unless_stopped(_files(root, output, refused.append), stopped):
        (images if _is_image(path) else others).append(path)
    series = group_series(map(Path, _unless_stopped(others, stopped)))
    cases = [_file_case(path) for path in images] + [_series_case(one, Path(output)) for one in series]
    return cases + [_refused_case(error) for error in refused]


def _joined(parts: Sequence[BatchCase], output: str) -> list[BatchCase]:
    """Return the one case of a series whose files were found in several places."""
    series = group_series(Path(file) for part in parts for file in part.files())
    return [_series_case(one, Path(output)) for one in series]


def _outermost(roots: Iterable[str]) -> list[str]:
    """Return each root once, without the folders below another one, which is searched whole."""
    once = dict.fromkeys(roots)
    folders = {root for root in once if os.path.isdir(root)}
    return [root for root in once if root not in folders or folders.isdisjoint(map(str, Path(root).parents))]


def _roots(given: str, output: Path, log: Callable[[str], None]) -> Iterator[str]:
    """Give what is searched at a time: a file, or one study of many."""
    if os.path.exists(given):
        matches = [given]
    elif glob.has_magic(given):
        matches = sorted(glob.glob(given, recursive=True))
        if not matches:
            log(f"Nothing matches {given}: check the pattern.")
    else:
        raise InputError(f"{given} does not exist: check the path.")
    # If a pattern names the slices of a series one by one, their folder is searched once.
    for match in matches:
        path = Path(os.path.abspath(match))
        if path.is_relative_to(output):
            continue
        if not path.is_dir():
            yield str(path.parent if not path.name.lower().endswith(EXTENSIONS) and _is_dicom(str(path)) else path)
        else:
            yield from _parts(path, output)


def _parts(folder: Path, output: Path) -> Iterator[str]:
    """Give the folders and images in a folder, or the folder itself where slices lie in it."""
    try:
        entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda entry: entry.name)
        others = [entry.path for entry in entries if entry.is_file() and not entry.name.lower().endswith(EXTENSIONS)]
        whole = any(is_dicom(Path(path)) for path in others)
    except OSError:
        # An error is reported when the folder is searched.
        whole = True
    if whole:
        yield str(folder)
        return
    for entry in entries:
        if Path(entry.path) != output and (entry.is_dir() or _is_image(entry.name)):
            yield entry.path


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.lower().endswith(NOT_CASES)


def _files(root: str, output: str, refused: Callable[[OSError], None]) -> Iterator[str]:
    for place, folders, names in os.walk(root, onerror=refused):
        folders[:] = sorted(name for name in folders if name[0] != "." and os.path.join(place, name) != output)
        yield from (os.path.join(place, name) for name in sorted(names) if name[0] != ".")


def _unless_stopped(paths: Iterable[str], stopped: Callable[[], bool] | None) -> Iterator[str]:
    for path in paths:
        if stopped is not None and stopped():
            raise Cancelled
        yield path


def _is_dicom(path: str) -> bool:
    try:
        return is_dicom(Path(path))
    except OSError:
        return False


def _file_case(path: str) -> BatchCase:
    """Return the case of a file, named by its folder, its name and a hash of its path."""
    whole = Path(path)
    extension = next((known for known in EXTENSIONS if whole.name.lower().endswith(known)), "")
    return BatchCase(_name(whole.parent.name, whole.name[: len(whole.name) - len(extension)], whole.as_posix()), path)


def _refused_case(error: OSError) -> BatchCase:
    case = _file_case(str(error.filename))
    return replace(case, error=f"The folder {case.path} cannot be read ({error.strerror}): check its permissions.")


def _series_case(series: Series, output: Path) -> BatchCase:
    """Return the case of a DICOM series; its files are listed in the run's working folder."""
    first = Path(os.path.abspath(series.files[0]))
    if series.damaged:
        return replace(_file_case(str(first)), error=series.left_out or "")
    # Not the patient's name or number: names of folders are seen by many.
    own = series.uid or first.name
    name = _name(first.parent.name, series.description or series.modality, f"{first.parent.as_posix()} {own}")
    listing = output / WORKING / SERIES / f"{name}.json"
    try:
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(json.dumps([os.path.abspath(file) for file in series.files]), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{listing} cannot be written ({error.strerror}): check permissions and free space."
        ) from error
    identifiers = f"{series.study_uid} {series.uid}" if series.uid else ""
    return BatchCase(name, str(first), str(listing), series.left_out or "", series=identifiers)


def _name(folder: str, own: str, identity: str) -> str:
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:HASH_LENGTH]
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{folder}_{own}").strip("._-")[:NAME_LENGTH]
    return f"{readable or 'case'}-{digest}"
