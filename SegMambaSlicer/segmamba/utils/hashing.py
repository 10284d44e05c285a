"""SHA-256 of files."""

from __future__ import annotations

import hashlib
import os


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal text.

    Raises
    ------
    OSError
        The file cannot be read.

    Examples
    --------
    >>> import os
    >>> file_sha256(os.devnull)[:16]
    'e3b0c44298fc1c14'
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
