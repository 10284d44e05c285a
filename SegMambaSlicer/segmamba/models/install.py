"""Changes to the user's models folder: one process at a time, and whole or not at all."""

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
from segmamba.utils.memory import gibibytes

LOCKS = ".locks"
PARTIAL = ".part"
SECONDS_BETWEEN_TRIES = 0.2
# Names of `file_name`, and partial files: what `add` may remove. A file put there by hand has another name and stays.
LEFTOVER = re.compile(rf"-[0-9a-f]{{8}}\.\w+$|{re.escape(PARTIAL)}$")
# Kept free beyond what a file needs.
DISK_RESERVE = 16 * 2**20


@contextmanager
def changing(model: ListedModel, cancelled: Callable[[], bool] | None = None) -> Iterator[Path]:
    """Give a model's folder to this process alone; others wait. The system frees the lock of a process that dies.

    Raises
    ------
    OutputError
        The folder cannot be written, or there is no room.
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
            # Only an empty folder goes.
            with contextlib.suppress(OSError):
                folder.rmdir()
            lock.release()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the system's errors into a sentence that says what to do.

    Raises
    ------
    OutputError
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"The models folder {folder} cannot be written ({error.strerror or error}): free some space, ask for the "
            f"right to write there, or set {VARIABLES[MODELS]} to another folder."
        ) from error


def check_space(folder: Path, needed: int) -> None:
    """Find out before any work whether ``needed`` bytes have room.

    Raises
    ------
    OutputError
        They have not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + DISK_RESERVE:
        raise OutputError(
            f"{folder} has {gibibytes(free)} free and {gibibytes(needed)} are needed: free some space, or set "
            f"{VARIABLES[MODELS]} to a folder on another disk."
        )


def file_name(model: ListedModel, suffix: str, sha256: str) -> str:
    """Return a name that no other version of the model's checkpoint has, so that old and new stay apart."""
    return f"{Path(model.file.name).stem}-{sha256[:8]}{suffix}"


def add(folder: Path, temporary: Path, record: Record) -> None:
    """Make a verified file the model's checkpoint, then remove what it replaces. To be called within `changing`."""
    os.replace(temporary, folder / record.file)
    draft = folder / f"{RECORD_NAME}{PARTIAL}"
    draft.write_text(record.to_json(), encoding="utf-8")
    os.replace(draft, folder / RECORD_NAME)
    for path in folder.iterdir():
        if path.name != record.file and LEFTOVER.search(path.name):
            # Windows keeps a file that a running job has open: the next change takes it away.
            with contextlib.suppress(OSError):
                path.unlink()


def remove(model: ListedModel) -> int:
    """Remove a model from the user's models folder and return how many bytes that freed.

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
            f"'{model.id}' is not in {store.models_folder()}, so it cannot be removed: what comes with the software or "
            "is in a shared folder stays."
        )
    with changing(model):
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        # The record goes first: a model half removed is one that is not installed.
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
