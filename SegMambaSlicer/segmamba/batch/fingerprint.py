"""Is an input still the same? Its content's hash says so; its size and time of change say so faster."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmamba.errors import InputError
from segmamba.utils.hashing import file_sha256


@dataclass(frozen=True)
class Fingerprint:
    """What distinguishes an input from another one.

    Attributes
    ----------
    stamp : str
        SHA-256 of names, sizes and times of change of all files: cheap, no file is opened.
    content : str
        SHA-256 of names and contents of all files.
    """

    stamp: str
    content: str


def fingerprint_of(files: Sequence[str]) -> Fingerprint:
    """Return the fingerprint of an input; its files are read whole.

    Raises
    ------
    InputError
        A file cannot be read.
    """
    return Fingerprint(stamp(files), digest_of((Path(file).name, file_digest(file)) for file in sorted(files)))


def stamp(files: Sequence[str]) -> str:
    """Return `Fingerprint.stamp`.

    Raises
    ------
    InputError
        A file is not there.
    """
    try:
        states = [(Path(file).name, os.stat(file)) for file in sorted(files)]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}): check the file.") from error
    return digest_of((name, state.st_size, state.st_mtime_ns) for name, state in states)


def unchanged(files: Sequence[str], before: Fingerprint) -> Fingerprint | None:
    """Return the fingerprint of an input if its stamp or, where that differs, its content is as before; else None.

    Raises
    ------
    InputError
        A file cannot be read.
    """
    if stamp(files) == before.stamp:
        return before
    now = fingerprint_of(files)
    return now if now.content == before.content else None


def file_digest(file: str | Path) -> str:
    """Return the SHA-256 of a file.

    Raises
    ------
    InputError
        It cannot be read.
    """
    try:
        return file_sha256(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): check the file.") from error


def digest_of(content: Any) -> str:
    """Return the SHA-256 of what JSON can hold; the order of a mapping's keys does not matter."""
    value = list(content) if isinstance(content, Iterable) and not isinstance(content, (dict, str)) else content
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
