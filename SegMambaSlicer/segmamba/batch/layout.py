"""The files of a run below its output folder; the folder of a case is complete or absent."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from segmamba.errors import OutputError

CASES, WORKING, SERIES, LOCK = "cases", ".working", "series", ".lock"
ROWS, TABLE, PARQUET, OVERVIEW = "rows.jsonl", "table.csv", "table.parquet", "overview.html"
REPORT, PREVIEW, THUMBNAIL, RECORD = "report.json", "preview.png", "thumbnail.jpg", "case.json"
PAGE = "page.html"
# Attempts to put a folder in its place; only a second writer of the same case makes it fail once.
PUBLISHING_ATTEMPTS = 5


def prepare(folder: Path) -> None:
    """Make the folders of a run, and remove what an interrupted one left unfinished.

    Raises
    ------
    OutputError
        They cannot be made.
    """
    try:
        clear(folder)
        (folder / CASES).mkdir(parents=True, exist_ok=True)
        # Unfinished results are for this user only.
        (folder / WORKING).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The folder {folder} cannot be written to ({error.strerror}): choose another one."
        ) from error


def clear(folder: Path) -> None:
    """Remove what is only of use during a run."""
    shutil.rmtree(folder / WORKING, ignore_errors=True)


@contextlib.contextmanager
def working_folder(folder: Path, name: str) -> Iterator[Path]:
    """Give an empty folder on the disk of the results, which is removed at the end of the block unless published.

    Raises
    ------
    OutputError
        It cannot be made.
    """
    place = folder / WORKING / f"{name}.{secrets.token_hex(4)}"
    try:
        place.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{place} cannot be created ({error.strerror}): check permissions and free space.") from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def publish(work: Path, target: Path) -> None:
    """Replace a case's folder by a finished working folder, by renaming.

    Between the two renames there is no folder, never a mixture.

    Raises
    ------
    OutputError
        The operating system reports an error.
    """
    old = work.with_name(f"{work.name}.old")
    error: OSError | None = None
    for _ in range(PUBLISHING_ATTEMPTS):
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, old)
            os.rename(work, target)
            return
        except OSError as refused:
            error = refused
        finally:
            shutil.rmtree(old, ignore_errors=True)
    raise OutputError(
        f"{target} cannot be written ({error}): close programs that use it, and check permissions and free space."
    )
