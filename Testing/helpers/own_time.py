"""Time that does not depend on what else a machine does: none in which other programs had the processor."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil

# Seconds after which something that a test waits for will not come; whatever is waited for ends the waiting.
PATIENCE = 300.0
_SCHEDULED = Path("/proc/thread-self/schedstat")


def own_time() -> float:
    """Return a time in seconds that stands still while this thread could run but is not given a processor.

    It goes on while the thread waits for something else. Where the system does not tell (it is not Linux) it is the
    clock on the wall.
    """
    waited = 0
    with contextlib.suppress(OSError):
        waited = int(_SCHEDULED.read_text().split()[1])
    return time.perf_counter() - waited / 1e9


def seconds_computed(process: int | None = None) -> float:
    """Return for how long all processes below this one have computed that have ended, and one that runs."""
    here = psutil.Process().cpu_times()
    seconds = here.children_user + here.children_system
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [] if process is None else _with_children(psutil.Process(process)):
            times = each.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return float(seconds)


def _with_children(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]
