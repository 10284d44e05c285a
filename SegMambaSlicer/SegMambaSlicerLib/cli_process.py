"""The command line ``segmamba`` in a process of its own, without waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer

from segmamba.errors import InstallationError
from segmamba.worker.client import worker_environment
from segmamba_mrml.application import worker_python


def startCommand(arguments: list[str], onLine: Callable[[str], None], onEnd: Callable[[int], None]) -> Any:
    """Start ``segmamba`` with arguments, and return the process.

    Parameters
    ----------
    arguments : list of str
    onLine : callable
        Called with each line that it writes.
    onEnd : callable
        Called with its exit status.

    Raises
    ------
    InstallationError
        Python is not there, or cannot be run.
    """
    command = [worker_python(), "-m", "segmamba", *arguments]
    try:
        return slicer.util.launchConsoleProcess(
            command,
            useStartupEnvironment=False,
            updateEnvironment=worker_environment(),
            blocking=False,
            logCallback=onLine,
            completedCallback=onEnd,
        )
    except OSError as error:
        raise InstallationError(f"{command[0]} cannot be run ({error}): install 3D Slicer again.") from error
