"""The record in a case's folder: the input, model and settings that its files come from, and their digests."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segmamba.batch.fingerprint import Fingerprint, file_digest, unchanged
from segmamba.batch.layout import RECORD
from segmamba.errors import InputError, OutputError
from segmamba.utils.atomic import atomic_write

RECORD_VERSION = 2


@dataclass(frozen=True)
class CaseRecord:
    """What is known of a case that is done.

    Attributes
    ----------
    name, path : str
        Of the case.
    input : Fingerprint
    model : dict
        As in `segmamba.batch.plan.Plan`.
    settings : str
        Hash, see there.
    outputs : dict
        Name and SHA-256 of each other file of the case.
    run : dict
        How it went: ``seconds`` in all, ``timings_s`` of the engine, ``finished`` (UTC), ``attempts``, ``host``. All
        that differs from one run to the next of the same case is here and nowhere else.
    """

    name: str
    path: str
    input: Fingerprint
    model: dict[str, str]
    settings: str
    outputs: dict[str, str]
    run: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the record into its folder."""
        text = json.dumps({"version": RECORD_VERSION, **asdict(self)}, indent=2)
        with atomic_write(folder / RECORD, (".json",)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def output_digests(folder: Path) -> dict[str, str]:
    """Return name and SHA-256 of the files in a folder, without the record."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name != RECORD}


def up_to_date_record(folder: Path, files: Sequence[str], settings: str) -> CaseRecord | None:
    """Return the record of a case that need not be done again, or None.

    It is up to date if the settings and the input are the same as now, and every output is there as it was written.
    Other files that somebody put there do not matter. The record of an input that was only touched is rewritten, so
    that the input is read whole only once.

    Parameters
    ----------
    folder : Path
        Of the case.
    files : sequence of str
        Of the input.
    settings : str
        Hash of the run's settings.

    Raises
    ------
    InputError
        A file of the input is not there or cannot be read.
    """
    record = read_record(folder)
    if record is None or record.settings != settings:
        return None
    now = unchanged(files, record.input)
    if now is None:
        return None
    if not are_outputs_there(folder, record):
        return None
    if now != record.input:
        record = replace(record, input=now)
        # Results in a read-only folder are up to date all the same.
        with contextlib.suppress(OutputError):
            record.write(folder)
    return record


def are_outputs_there(folder: Path, record: CaseRecord) -> bool:
    """Say whether every output of a case is in its folder as it was written."""
    try:
        return all(file_digest(folder / name) == digest for name, digest in record.outputs.items())
    except InputError:
        return False


def preserve_user_files(folder: Path, successor: Path) -> None:
    """Copy a user's own files from a case's folder to the one that replaces it; OSError where that fails."""
    record = read_record(folder)
    own = {RECORD, *(record.outputs if record is not None else ())}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in own or (successor / path.name).exists():
            continue
        if path.is_dir():
            shutil.copytree(path, successor / path.name)
        else:
            shutil.copy2(path, successor / path.name)


def read_record(folder: Path) -> CaseRecord | None:
    """Return the record in a folder; None if it is damaged or of another version: the case is then done again."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if content.pop("version") != RECORD_VERSION:
            return None
        return CaseRecord(**{**content, "input": Fingerprint(**content["input"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def is_of_other_version(cases: Path, names: Iterable[str]) -> bool:
    """Say whether the first of these cases that is done has a record of another version of this software.

    Parameters
    ----------
    cases : Path
        The folder with the folders of all cases.
    names : iterable of str
        The cases of a run.
    """
    done = {path.name for path in cases.iterdir()}
    for name in names:
        if name in done:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                content = json.loads((cases / name / RECORD).read_text(encoding="utf-8"))
                return bool(content["version"] != RECORD_VERSION)
    return False
