"""``slicer.packaging``: says what it was asked to install, and installs nothing."""

from __future__ import annotations

import subprocess

import qt


class Pip:
    """What pip was asked for, and what it shall answer."""

    def __init__(self):
        self.calls = []
        self.lines = ["Successfully installed everything"]
        self.returncode = 0

    def run(self, arguments, blocking, logCallback, completedCallback):
        self.calls.append(arguments)
        if blocking:
            if self.returncode:
                raise subprocess.CalledProcessError(self.returncode, arguments, "\n".join(self.lines))
            return
        qt.QTimer.singleShot(0, lambda: self._finish(logCallback, completedCallback))

    def _finish(self, logCallback, completedCallback):
        for line in self.lines if logCallback else []:
            logCallback(line)
        if completedCallback:
            completedCallback(self.returncode)


pip = Pip()


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
    """Record the wish; the answer is ``pip``'s."""
    words = requirements.split() if isinstance(requirements, str) else list(requirements)
    pip.run(["install", *words], blocking, logCallback, completedCallback)
