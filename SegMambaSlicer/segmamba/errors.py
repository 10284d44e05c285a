"""Typed errors. Every message is one sentence that says what is wrong and what to do next."""

from __future__ import annotations

import re

# With this environment variable set, an error shows its traceback.
DEBUG_VARIABLE = "SEGMAMBA_DEBUG"
MISSING = re.compile(r"No module named '([\w.]+)'")


class SegMambaError(Exception):
    """Base of all errors that a user can see.

    Attributes
    ----------
    exit_code : int
        Exit status of the command line for this kind of error.
    """

    exit_code = 1


class InputError(SegMambaError):
    """The input volume cannot be read or cannot be segmented as it is."""

    exit_code = 3


class ModelError(SegMambaError):
    """The model is unknown, its checkpoint is missing or damaged, or it does not suit the input."""

    exit_code = 4


class DeviceError(SegMambaError):
    """The device is not available or has too little memory."""

    exit_code = 5


class DeviceLost(DeviceError):
    """The GPU failed in mid-run. What ran on it is lost, and so is its process for further work."""


class OutputError(SegMambaError):
    """The result cannot be written."""

    exit_code = 6


class WorkerError(SegMambaError):
    """The worker process died or sent an invalid answer."""

    exit_code = 7


class InstallationError(SegMambaError):
    """A package is missing or does not work."""

    exit_code = 8


def package_problem(error: ImportError | str) -> str | None:
    """Return what an import that failed, or the last line of its traceback, means; None if it is about no package."""
    missing = MISSING.search(str(error))
    if missing:
        name = missing[1].partition(".")[0]
        return f"The package {name} is missing: install it with 'pip install {name}', or run 'segmamba doctor'."
    if isinstance(error, ImportError) or "ImportError: " in error:
        return f"A package does not load ({error}): run 'segmamba doctor'."
    return None


class Cancelled(SegMambaError):
    """The user stopped the job."""

    exit_code = 130

    def __init__(self, message: str = "The job was cancelled; nothing was written.") -> None:
        super().__init__(message)


ERRORS_BY_NAME: dict[str, type[SegMambaError]] = {
    error.__name__: error
    for error in (
        SegMambaError,
        InputError,
        ModelError,
        DeviceError,
        DeviceLost,
        OutputError,
        WorkerError,
        InstallationError,
        Cancelled,
    )
}
