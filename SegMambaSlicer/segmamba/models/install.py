"""Changes to the user's models folder, by one process at a time and atomic."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segmamba.errors import Cancelled, InstallationError, ModelError, OutputError
from segmamba.models import store
from segmamba.models.manifest import ListedModel
from segmamba.models.record import RECORD_NAME, Record
from segmamba.models.settings import MODELS, VARIABLES
from segmamba.utils.atomic import replacing
from segmamba.utils.memory import gibibytes

LOCKS = ".locks"
PARTIAL = ".part"
SECONDS_BETWEEN_TRIES = 0.2
# Names from `file_name` and of partial files, which `add` may remove. Other files were put there by hand and stay.
LEFTOVER = re.compile(rf"-[0-9a-f]{{8}}\.\w+$|{re.escape(PARTIAL)}$")
# Bytes kept free in addition to those of a file.
DISK_RESERVE = 16 * 2**20


@contextmanager
def changing(model: ListedModel, cancelled: Callable[[], bool] | None = None) -> Iterator[Path]:
    """Lock a model's folder for this process; others wait. The system releases the lock of a process that dies.

    Raises
    ------
    OutputError
        The folder cannot be written, or the disk is full.
    Cancelled
        While it waited for another process.
    """
    folder = store.model_folder(model)
    lock = _lock(store.models_folder() / LOCKS / f"{model.id}.lock")
    with writing(folder):
        _acquire(lock, cancelled or (lambda: False))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
        finally:
            # This fails unless the folder is empty.
            with contextlib.suppress(OSError):
                folder.rmdir()
            lock.release()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn operating system errors into an error that says what to do.

    Raises
    ------
    OutputError
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"The models folder {folder} cannot be written ({error.strerror or error}): free some space, ask for "
            f"permission to write there, or set {VARIABLES[MODELS]} to another folder."
        ) from error


def check_space(folder: Path, needed: int) -> None:
    """Check that a folder has room for ``needed`` bytes before any work is done.

    Raises
    ------
    OutputError
        It has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + DISK_RESERVE:
        raise OutputError(
            f"{folder} has {gibibytes(free)} free and {gibibytes(needed)} are needed: free some space, or set "
            f"{VARIABLES[MODELS]} to a folder on another disk."
        )


def file_name(model: ListedModel, suffix: str, sha256: str) -> str:
    """Return a file name that is unique to this version of the model's checkpoint."""
    return f"{Path(model.file.name).stem}-{sha256[:8]}{suffix}"


def add(folder: Path, temporary: Path, record: Record) -> None:
    """Make a verified file the model's checkpoint, then remove the old one. Call this within `changing`."""
    os.replace(temporary, folder / record.file)
    with replacing(folder / RECORD_NAME, PARTIAL) as draft:
        draft.write_text(record.to_json(), encoding="utf-8")
    for path in folder.iterdir():
        if path.name != record.file and LEFTOVER.search(path.name):
            # Windows does not delete a file that a running job has open: the next change will.
            with contextlib.suppress(OSError):
                path.unlink()


def remove(model: ListedModel) -> int:
    """Remove a model from the user's models folder and return the number of bytes freed.

    Raises
    ------
    ModelError
        It is not there.
    OutputError
        The folder cannot be changed.
    """
    folder = store.model_folder(model)
    if not folder.is_dir():
        raise ModelError(
            f"'{model.id}' is not in {store.models_folder()}, so it cannot be removed: bundled models and those in a "
            "shared folder stay."
        )
    with changing(model):
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        # The record is removed first: without it, a half removed model does not count as installed.
        (folder / RECORD_NAME).unlink(missing_ok=True)
        shutil.rmtree(folder)
    return size


def _lock(path: Path) -> Any:
    try:
        from filelock import FileLock
    except ImportError as error:
        raise InstallationError("The package filelock is missing: install it (pip install filelock).") from error
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def _acquire(lock: Any, cancelled: Callable[[], bool]) -> None:
    from filelock import Timeout

    while True:
        try:
            lock.acquire(timeout=SECONDS_BETWEEN_TRIES)
            return
        except Timeout:
            if cancelled():
                raise Cancelled() from None
