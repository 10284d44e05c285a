"""The processes that a child of Slicer consists of: a launcher, and the Python that does the work."""

from __future__ import annotations

import time
from typing import Any

import psutil

from helpers.own_time import PATIENCE


def behind(child: Any) -> psutil.Process:
    """Return the Python behind the launcher that a child (or worker) is, once the launcher has started it."""
    end = time.monotonic() + PATIENCE
    while not (found := psutil.Process(child.pid).children()):
        assert time.monotonic() < end, "the launcher has started nothing"
        time.sleep(0.001)
    return found[0]


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process still has its memory."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
