"""How a server is run: where it listens, what it takes, how long it keeps something, and its token."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from segmamba.errors import InputError, OutputError

# The name of a variable, not a token.
TOKEN_VARIABLE = "SEGMAMBA_SERVER_TOKEN"  # nosec B105
SHORTEST_TOKEN = 20
GIB = 2**30


@dataclass(frozen=True)
class ServerSettings:
    """What a server does, whatever the jobs.

    Attributes
    ----------
    host, port : str, int
        Where it listens; port 0 is a free one.
    folder : Path or None
        Where uploads and results lie for a time, each server's in a private folder of its own; None is the folder for
        temporary files.
    workers : int or None
        Worker processes; None is one per GPU, or one without a GPU.
    device : str
        For the networks, as in `segmamba.request.Options`.
    manifest : str or None
        A manifest of models instead of the software's own.
    waiting : int
        Jobs that may wait, besides those that run.
    upload_bytes, unpacked_bytes : int
        The most that a job may send, and that this may be when it is unpacked.
    disk_bytes : int
        The most that all jobs' uploads and results may take together.
    kept_s : float
        Seconds after which a result that nobody fetched is deleted.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    folder: Path | None = None
    workers: int | None = None
    device: str = "auto"
    manifest: str | None = None
    waiting: int = 32
    upload_bytes: int = 2 * GIB
    unpacked_bytes: int = 4 * GIB
    disk_bytes: int = 32 * GIB
    kept_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers is {self.workers}: give at least 1.")
        if not 0 <= self.port < 2**16:
            raise InputError(f"--port is {self.port}: give a number below 65536, 0 for a free one.")
        lowest = min(self.waiting, self.upload_bytes, self.unpacked_bytes, self.disk_bytes, self.kept_s)
        if lowest <= 0:
            raise InputError("A limit of the server is not above 0: give a larger number.")


def server_token(file: Path) -> str:
    """Return the token that clients have to send: that of the environment, else of a file, which is made if missing.

    Raises
    ------
    InputError
        The token is too short, or others may read the file.
    OutputError
        The file cannot be made.
    """
    given = os.environ.get(TOKEN_VARIABLE)
    if given is not None:
        return _checked(given.strip(), f"the environment variable {TOKEN_VARIABLE}")
    try:
        with contextlib.suppress(FileExistsError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
                stream.write(secrets.token_urlsafe(32) + "\n")
        return private_text(file)
    except OSError as error:
        raise OutputError(
            f"The token file {file} cannot be written or read ({error.strerror}): choose another one with --token-file."
        ) from error


def private_text(file: Path) -> str:
    """Return the token in a file that only its owner can read; `InputError` otherwise, OSError if there is none."""
    if sys.platform != "win32" and stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise InputError(f"Others can read the token file {file}: run 'chmod 600' on it, or let a new one be made.")
    return _checked(file.read_text(encoding="utf-8").strip(), str(file))


def _checked(token: str, place: str) -> str:
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"The token in {place} is not one: give at least {SHORTEST_TOKEN} letters and digits, such as those of "
            "'openssl rand -hex 32'."
        )
    return token
