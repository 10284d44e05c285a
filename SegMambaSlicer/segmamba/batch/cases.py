"""Which cases there are: files and DICOM series below folders, or those that a pattern names."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from segmamba.batch.batch_case import EXTENSIONS, BatchCase, series_case
from segmamba.batch.search import (
    OTHER_KIND,
    cases_below,
    header_of,
    is_image,
    joined_others,
    looks_like_dicom,
    other_case,
    results_case,
    split_files,
)
from segmamba.errors import InputError
from segmamba.io.dicom_headers import is_dicom
from segmamba.io.dicom_index import group_series

Map = Callable[[Callable[[Any], list["BatchCase"]], Sequence[Any]], Iterable[list["BatchCase"]]]


def find_cases(
    inputs: Sequence[str],
    output: Path,
    map_roots: Map = map,
    log: Callable[[str], None] = print,
    stopped: Callable[[], bool] | None = None,
) -> list[BatchCase]:
    """Return the cases of folders, files and patterns, sorted by path; files below ``output`` are not looked at.

    A DICOM series is one case, wherever its files lie. What is left out is a case with the reason: label maps and other
    segmentations, results of earlier batches, DICOM series that are not scans, and files of other kinds (one case for
    each extension). A file that is named, or that a pattern matches, is a case of whatever kind it is.

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
    passed_over: list[BatchCase] = []
    roots = _outermost(root for given in inputs for root in _roots(given, output, log, passed_over.append))
    found: dict[str, list[BatchCase]] = {}
    for cases in map_roots(partial(cases_below, output=str(output), stopped=stopped), roots):
        for case in cases:
            found.setdefault(case.series or case.name, []).append(case)
    for case in passed_over:
        found.setdefault(case.name, [case])
    if all(parts[0].skipped == OTHER_KIND for parts in found.values()):
        known = ", ".join(EXTENSIONS)
        raise InputError(f"There is no image in {', '.join(inputs)}: give folders, or patterns, of {known} or DICOM.")
    split = [parts for parts in found.values() if len(parts) > 1 and parts[0].series]
    whole = [parts[0] for parts in found.values() if len(parts) == 1 or not parts[0].series]
    for cases in map_roots(partial(_joined, output=str(output)), split):
        whole += cases
    return sorted(joined_others(whole), key=lambda case: (case.path, case.name))


def _joined(parts: Sequence[BatchCase], output: str) -> list[BatchCase]:
    """Return the one case of a series whose files were found in several places."""
    series = group_series(Path(file) for part in parts for file in part.files())
    return [series_case(one, Path(output)) for one in series]


def _outermost(roots: Iterable[str]) -> list[str]:
    """Return each root once, without the folders below another one, which is searched whole."""
    once = dict.fromkeys(roots)
    folders = {root for root in once if os.path.isdir(root)}
    return [root for root in once if root not in folders or folders.isdisjoint(map(str, Path(root).parents))]


def _roots(
    given: str, output: Path, log: Callable[[str], None], pass_over: Callable[[BatchCase], None]
) -> Iterator[str]:
    """Give what is searched at a time: a file, or one study of many; ``pass_over`` gets what is left out."""
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
            # The directory of a disc, which is DICOM too, also stands for its folder.
            yield str(path.parent) if not is_image(str(path)) and looks_like_dicom(str(path)) else header_of(str(path))
        else:
            yield from _parts(path, output, pass_over)


def _parts(folder: Path, output: Path, pass_over: Callable[[BatchCase], None]) -> Iterator[str]:
    """Give the folders and images in a folder, or the folder itself where slices lie in it or it holds results."""
    try:
        entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda entry: entry.name)
        images, others = split_files(entry.path for entry in entries if entry.is_file())
        whole = any(is_dicom(Path(path)) for path in others) or results_case(str(folder)) is not None
    except OSError:
        # An error is reported when the folder is searched.
        whole = True
    if whole:
        yield str(folder)
        return
    for path in others:
        pass_over(other_case(path))
    for entry in entries:
        if Path(entry.path) != output and (entry.is_dir() or entry.path in images):
            yield entry.path
