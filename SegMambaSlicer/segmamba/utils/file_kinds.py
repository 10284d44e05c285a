"""What a file is that was given for a checkpoint, told from its first bytes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

BEGINNING = 1024
LFS_POINTER = b"version https://git-lfs"
WEB_PAGE = re.compile(rb"^\s*(<!doctype\s+html|<html|<\?xml|<head|<script)", re.IGNORECASE)
# Unpacking is for the user to do: an archive may hold several files.
ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"7z\xbc\xaf\x27\x1c": "7-zip",
    b"Rar!": "RAR",
    b"\x28\xb5\x2f\xfd": "zstd",
}
OTHERS = {
    b"\x89HDF": "an HDF5 file (of Keras or MATLAB)",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"NRRD0": "an image",
    b"SQLite": "a database",
}
TAR_MARK = (257, b"ustar")
DICOM_MARK = (128, b"DICM")
TORCH_CONTENT, TORCH_CODE = "data.pkl", "/code/"
# The beginning of a safetensors file: eight bytes with the length of its header, a JSON object.
LONGEST_HEADER = 100_000_000


def is_safetensors(path: Path) -> bool:
    """Tell by its content whether a file is in the format safetensors, whole or not."""
    with path.open("rb") as stream:
        beginning = stream.read(9)
    return beginning[8:] == b"{" and int.from_bytes(beginning[:8], "little") <= LONGEST_HEADER


def why_no_checkpoint(path: Path) -> str | None:
    """Return what a file is that cannot hold network weights, and what to do, as the end of a sentence; else None.

    Examples
    --------
    >>> page = Path("download.pt")
    >>> _ = page.write_text("<!DOCTYPE html><title>Sign in</title>")
    >>> why_no_checkpoint(page)
    'is a web page, not a checkpoint: open the link in a browser, sign in if it asks for it, and save the file itself.'
    >>> page.unlink()
    """
    with path.open("rb") as stream:
        beginning = stream.read(BEGINNING)
    if not beginning.strip(b"\0"):
        return "is empty: download or copy it again."
    if beginning.startswith(LFS_POINTER):
        return "is a pointer of Git LFS, not the checkpoint itself: fetch that with 'git lfs pull', or download it."
    if WEB_PAGE.match(beginning.lstrip(b"\xef\xbb\xbf")):
        return (
            "is a web page, not a checkpoint: open the link in a browser, sign in if it asks for it, and save the "
            "file itself."
        )
    for mark, name in ARCHIVES.items():
        if beginning.startswith(mark):
            return f"is packed ({name}): unpack it, and give the checkpoint in it."
    if _has(beginning, TAR_MARK):
        return "is packed (tar): unpack it, and give the checkpoint in it."
    for mark, what in OTHERS.items():
        if beginning.startswith(mark):
            return f"is {what}, not a checkpoint of PyTorch: give a .pt, .pth or .safetensors file."
    if _has(beginning, DICOM_MARK):
        return "is an image, not a checkpoint of PyTorch: give a .pt, .pth or .safetensors file."
    if zipfile.is_zipfile(path):
        return _about_zip(path)
    if _is_text(beginning):
        return "is a text file, not a checkpoint: give a .pt, .pth or .safetensors file."
    return None


def _has(beginning: bytes, mark: tuple[int, bytes]) -> bool:
    place, content = mark
    return beginning[place : place + len(content)] == content


def _about_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return None
    if not any(name.endswith(TORCH_CONTENT) for name in names):
        return "is packed (zip): unpack it, and give the checkpoint in it."
    if any(TORCH_CODE in name for name in names):
        return "is a TorchScript program, not weights: save them with torch.save(model.state_dict(), ...)."
    return None


def _is_text(beginning: bytes) -> bool:
    """Tell whether bytes are text in UTF-8, whose last character may be cut off, or in UTF-16."""
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    try:
        text = beginning.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 3:
            return False
        text = beginning[: error.start].decode("utf-8")
    return all(character.isprintable() or character.isspace() for character in text)
