"""A ``PythonSlicer``: in Slicer, Python is a launcher with a child process that does the work."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from pathlib import Path

# Where the stand-in for Slicer runs, sys.executable is a launcher.
PYTHON = sys.executable


def launch(python, start):
    """Start a child process and end as it ends; of one that crashes or is killed only this much is said.

    ``start`` returns the child's number, or 0 in the child, for which this returns.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    child = start()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status < 0:
            print(f"error: [{python}] exit abnormally - Report the problem.", file=sys.stderr, flush=True)
        os._exit(1 if status < 0 else status)


LAUNCHER = f"""
import os, signal, sys
{inspect.getsource(launch)}
launch(sys.argv[1], lambda: os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ))
"""


def make_launcher(folder: Path) -> Path:
    """Make a ``PythonSlicer`` in a folder and return its path.

    As in Slicer it starts Python as a child process and waits for it. It passes no signal on; of a child that crashes
    or is killed it only says so, and exits with status 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script, program = folder / "PythonSlicer", folder / "launcher.py"
    program.write_text(LAUNCHER, encoding="utf-8")
    # Without site and environment it costs little.
    script.write_text(f'#!/bin/sh\nexec "{PYTHON}" -IS "{program}" "{PYTHON}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return script
