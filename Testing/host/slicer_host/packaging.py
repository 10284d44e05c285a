"""``slicer.packaging``, and what it runs: child processes that say what a test wants, and install nothing."""

from __future__ import annotations

import subprocess
import sys

import slicer

# As in Slicer, the names and the order in which they change are part of what code under test meets.
_pip_install_in_progress = False
PROGRAM = """
import os, sys, time
hold, status, *lines = sys.argv[1:]
for line in lines:
    print(line, flush=True)
while os.path.exists(hold):
    time.sleep(0.01)
sys.exit(int(status))
"""


class Pip:
    """What Slicer's Python was asked to run as a module, and what that shall answer.

    Attributes
    ----------
    calls : list of list of str
        Module and arguments of each call.
    lines : list of str
        What each call writes.
    returncode : int
        Its exit status.
    failing : set of str
        Modules that fail, whatever ``returncode`` is.
    hold : Path
        While this file exists, calls do not end.
    """

    def __init__(self, folder):
        self.calls = []
        self.lines = ["Successfully installed everything"]
        self.returncode = 0
        self.failing = set()
        self.hold = folder / "pip runs"

    def execute(self, module, args, blocking=True, logCallback=None, completedCallback=None):
        """Stand in for ``slicer.util.executePythonModule``."""
        self.calls.append([module, *args])
        status = 1 if module in self.failing else self.returncode
        program = [sys.executable, "-IS", "-c", PROGRAM, str(self.hold), str(status), *self.lines]
        if blocking:
            subprocess.run(program, check=True)
            return
        slicer.util.launchConsoleProcess(
            program,
            useStartupEnvironment=False,
            blocking=False,
            logCallback=logCallback,
            completedCallback=completedCallback,
        )


def isPipInstallInProgress():
    return _pip_install_in_progress


def pip_install(
    requirements,
    constraints=None,
    no_deps_requirements=None,
    skip_packages=None,
    blocking=True,
    show_progress=True,
    requester=None,
    logCallback=None,
    completedCallback=None,
):
    """Run pip as Slicer does: one at a time, and until its end it counts as running."""
    global _pip_install_in_progress
    if not blocking and _pip_install_in_progress:
        raise RuntimeError(
            "A non-blocking pip_install is already in progress. Wait for it to complete or use blocking=True."
        )
    arguments = ["install", *(requirements.split() if isinstance(requirements, str) else requirements)]

    def completed(status):
        global _pip_install_in_progress
        _pip_install_in_progress = False
        if completedCallback:
            completedCallback(status)

    if blocking:
        slicer.util.executePythonModule("pip", arguments)
        return
    _pip_install_in_progress = True
    try:
        slicer.util.executePythonModule("pip", arguments, False, logCallback, completed)
    except Exception:
        _pip_install_in_progress = False
        raise
