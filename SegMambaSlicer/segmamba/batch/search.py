"""What there is below a folder: images, DICOM series, and what a batch leaves out, with the reason."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from segmamba.batch.batch_case import EXTENSIONS, BatchCase, file_case, refused_case, series_case
from segmamba.batch.datafiles import data_files
from segmamba.batch.label_maps import why_label_map
from segmamba.batch.layout import CASES, RECORD, REPORT, ROWS
from segmamba.errors import Cancelled
from segmamba.io.dicom_headers import DIRECTORY_NAME, is_dicom
from segmamba.io.dicom_index import group_series

SEGMENTATIONS = (".seg.nrrd", ".seg.nhdr")
# DICOM files are sometimes called so, too.
AMBIGUOUS = (".img", ".hdr")
VOXELS_OF_PAIRS = (".img", ".img.gz")
SEGMENTATION = "It is a segmentation (.seg.nrrd), not an image."
RESULTS = "It holds the results of an earlier batch."
RESULT = "It is a result of an earlier batch."
# Of each file at first; all of one extension become one case.
LOOKED_FOR = "that a batch looks for (NIfTI, NRRD, MetaImage, DICOM)."
OTHER_KIND = f"It is not an image {LOOKED_FOR}"


def cases_below(root: str, output: str, stopped: Callable[[], bool] | None = None) -> list[BatchCase]:
    """Return the case that a file is, or all below a folder.

    What is left out is a case with the reason, and what cannot be read a case with an error. Hidden files and folders,
    and files below ``output``, are not looked at.

    Raises
    ------
    Cancelled
        ``stopped`` said so.
    InstallationError
        There is DICOM, and a package that it needs is missing.
    """
    if not os.path.isdir(root):
        return [image_case(root, output)]
    cases: list[BatchCase] = []
    images, others = split_files(_unless_stopped(_files(root, output, cases.append), stopped))
    cases += [image_case(path, output) for path in _unless_stopped(images, stopped)]
    series = group_series(map(Path, _unless_stopped(others, stopped)))
    cases += [series_case(one, Path(output)) for one in series]
    known = set().union(*((*one.files, *one.copies) for one in series))
    return cases + [other_case(path) for path in others if path not in known and Path(path).name != DIRECTORY_NAME]


def split_files(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the images among files and the others, neither with the data files of an image's header."""
    images: list[str] = []
    others: list[str] = []
    for path in paths:
        (images if is_image(path) else others).append(path)
    headers = [path for path in images if header_of(path) == path]
    parts = {part for path in headers for part in _data_files(path)}
    return [path for path in images if path not in parts], [path for path in others if path not in parts]


def header_of(path: str) -> str:
    """Return the header of a pair whose voxels a file has, if it is there; else the file itself."""
    header = next(iter(data_files(path)), path) if path.lower().endswith(VOXELS_OF_PAIRS) else path
    return header if os.path.isfile(header) else path


def image_case(path: str, output: str) -> BatchCase:
    """Return the case of a file; a label map or a result is left out."""
    case = file_case(path)
    if (Path(path).parent / RECORD).is_file():
        return replace(case, skipped=RESULT)
    # An image that was segmented once is not read again.
    if path.lower().endswith(EXTENSIONS) and not (Path(output) / CASES / case.name / RECORD).is_file():
        return replace(case, skipped=why_label_map(path) or "")
    return case


def results_case(folder: str) -> BatchCase | None:
    """Return the case, left out, of a folder with results of this software; None for another folder."""
    place = Path(folder)
    of_batch = (place / ROWS).is_file() and (place / CASES).is_dir()
    of_case = (place / RECORD).is_file() and (place / REPORT).is_file()
    return file_case(folder, RESULTS if of_batch else RESULT) if of_batch or of_case else None


def other_case(path: str) -> BatchCase:
    """Return the case, left out, of a file that a batch does not take for an image."""
    return file_case(path, SEGMENTATION if path.lower().endswith(SEGMENTATIONS) else OTHER_KIND)


def joined_others(cases: Iterable[BatchCase]) -> list[BatchCase]:
    """Return cases with one for all files of other kinds that have the same extension: there may be thousands."""
    found: list[BatchCase] = []
    others: dict[str, list[BatchCase]] = defaultdict(list)
    for case in cases:
        if case.skipped == OTHER_KIND:
            others[Path(case.path).suffix.lower()].append(case)
        else:
            found.append(case)
    for extension, same in others.items():
        first = min(same, key=lambda case: case.path)
        if len(same) > 1:
            files = f"{extension} files" if extension else "files without an extension"
            text = f"It and {len(same) - 1} more {files} are not images {LOOKED_FOR}"
            first = replace(first, skipped=text)
        found.append(first)
    return found


def is_image(path: str) -> bool:
    """Tell whether a file counts as an image by its name, and where that may be DICOM's by its content."""
    name = path.lower()
    if not name.endswith(EXTENSIONS) or name.endswith(SEGMENTATIONS):
        return False
    return not (name.endswith(AMBIGUOUS) and looks_like_dicom(path))


def looks_like_dicom(path: str) -> bool:
    """Tell whether a file is DICOM; not so what cannot be opened."""
    try:
        return is_dicom(Path(path))
    except OSError:
        return False


def _data_files(path: str) -> list[str]:
    try:
        return data_files(path)
    except OSError:
        # The run says so.
        return []


def _files(root: str, output: str, add: Callable[[BatchCase], None]) -> Iterator[str]:
    """Give the files below a folder, and its unreadable folders and those with results as cases to ``add``."""
    for place, folders, names in os.walk(root, onerror=lambda error: add(refused_case(error))):
        results = results_case(place) if ROWS in names or RECORD in names else None
        if results is not None:
            add(results)
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if name[0] != "." and os.path.join(place, name) != output)
        yield from (os.path.join(place, name) for name in sorted(names) if name[0] != ".")


def _unless_stopped(paths: Iterable[str], stopped: Callable[[], bool] | None) -> Iterator[str]:
    for path in paths:
        if stopped is not None and stopped():
            raise Cancelled
        yield path
