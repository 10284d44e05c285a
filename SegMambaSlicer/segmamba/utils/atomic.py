"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from segmamba.errors import OutputError
from segmamba.utils.paths import check_name


def check_output(path: str | os.PathLike[str], extensions: Sequence[str]) -> None:
    """Make sure, before any work is done, that a result can be written to ``path``.

    Raises
    ------
    OutputError
        The extension is not one of ``extensions``, the name cannot be one, or the folder is not there or not writable.
    """
    path = Path(path)
    _extension(path, extensions)
    check_name(path)
    folder = path.absolute().parent
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file.")
    if not folder.is_dir():
        raise OutputError(f"The folder {folder} does not exist: create it, or choose another one.")
    try:
        # Only an attempt tells the truth on network drives and on Windows.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be written to: choose another one.") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], extensions: Sequence[str]) -> Iterator[Path]:
    """Give a temporary name beside ``path`` that becomes ``path`` when the block ends without an error.

    Whatever happens, there is never a partial file at ``path``, and no temporary file stays.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    path = Path(path)
    extension = _extension(path, extensions)
    try:
        with replacing(path, extension) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path} cannot be written: check the folder's permissions and free space.") from error


@contextlib.contextmanager
def replacing(path: Path, extension: str = ".part") -> Iterator[Path]:
    """Do what `atomic_write` does, for any name and with the errors as they come.

    Parameters
    ----------
    path : Path
    extension : str
        End of the temporary name. A process that is killed leaves that file.
    """
    temporary = path.absolute().with_name(f".{secrets.token_hex(8)}{extension}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _extension(path: Path, extensions: Sequence[str]) -> str:
    name = path.name.lower()
    for extension in extensions:
        if name.endswith(extension) and len(name) > len(extension):
            return extension
    raise OutputError(f"{path} has no extension that can be written: use {', '.join(extensions)}.")
