"""What a path or a file turns out to be, found before a reader of images or the system stumbles over it."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from pathlib import Path

from segmamba.errors import InputError, OutputError, SegMambaError

GZIP = b"\x1f\x8b"
# The bytes of a NIfTI header up to and with its magic, which that of NIfTI 2 has earlier.
HEADER = 348
PACKED = ".nii.gz"
# What each kind begins with, and a name that it may have.
BEGINNINGS = ((b"NRRD0", ".nrrd"), (b"ObjectType", ".mha"), (b"NDims", ".mha"), (b"Comment", ".mha"))


def file_state(path: Path) -> tuple[int, int] | None:
    """Return size and time of change of a file, which tell whether it was changed; None where it is not there."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def check_text(path: str | os.PathLike[str], kind: type[SegMambaError] = InputError) -> None:
    """Raise an error of a kind if a path is not valid text: readers written in C++ end the process at it."""
    text = os.fspath(path)
    if not readable(text) == text or "\0" in text:
        raise kind(f"The path {readable(text)!r} has characters that are not valid text: rename the file or folder.")


def readable(text: str) -> str:
    """Return a text with question marks for what cannot be shown, such as bytes of an odd encoding in a file name."""
    return text.encode("utf-8", "replace").decode("utf-8")


def check_input(path: Path) -> None:
    """Make sure that a path leads to a file or a folder that can be opened.

    Raises
    ------
    InputError
        It does not.
    """
    check_text(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()
        elif stat.S_ISREG(mode):
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} does not exist: check the path.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}): check its name and permissions.") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise InputError(f"{path} is neither a file nor a folder: give the volume's own file.")


def check_name(path: Path) -> None:
    """Make sure that a path can be that of a new file.

    Raises
    ------
    OutputError
        It is not valid text, longer than the system takes, or leads through folders that cannot be entered.
    """
    check_text(path, OutputError)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): choose another name or folder.") from error


def misnamed(path: Path) -> str | None:
    """Return what is wrong with a file's name, as a sentence, if its content is an image of another kind; else None."""
    found = _extension_by_content(path)
    name = path.name.lower()
    fitting = {".nrrd": (".nrrd", ".nhdr"), ".mha": (".mha", ".mhd"), ".nii": (".nii", ".hdr", ".img")}
    if found is None or name.endswith(fitting.get(found, (found,))):
        return None
    return f"{path} holds what belongs in a {found} file: change its extension to {found}."


def is_gzip(path: Path) -> bool:
    """Say whether a file begins as gzip files do."""
    with path.open("rb") as stream:
        return stream.read(len(GZIP)) == GZIP


def _extension_by_content(path: Path) -> str | None:
    with path.open("rb") as stream:
        beginning = stream.read(HEADER)
    if not beginning.startswith(GZIP):
        return _extension(beginning)
    try:
        with gzip.open(path, "rb") as stream:
            beginning = stream.read(HEADER)
    except (EOFError, OSError, zlib.error):
        return None
    # Of the kinds that are known here only NIfTI is packed as a whole.
    return PACKED if _extension(beginning) == ".nii" else None


def _extension(beginning: bytes) -> str | None:
    if beginning[344:348] in (b"n+1\0", b"ni1\0") or beginning[4:8] in (b"n+2\0", b"ni2\0"):
        return ".nii"
    return next((extension for start, extension in BEGINNINGS if beginning.startswith(start)), None)
