"""A worker that does everything but run a network, and fails as a file beside the manifest tells it.

It needs no torch, so that it starts quickly. ``python faulty_worker.py``
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from segmamba.io.volume import Volume
from segmamba.models.manifest import Model
from segmamba.worker import server as worker

FAULT = "fault.json"
WINDOWS, WINDOW_SECONDS = 10, 0.01
VALUE, BRIGHT = 20, 300
REPLACE = os.replace


def labels_of(array: np.ndarray) -> np.ndarray:
    """Return the labels that the stand-in for a network finds."""
    return np.where(array > BRIGHT, VALUE, 0).astype(np.uint8)


def fail(kind: str) -> None:
    """Make something go wrong in this process."""
    if kind == "hang":
        time.sleep(3600)
    elif kind == "memory":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
        # Larger than the limit, and touched, as the answer of a network would be.
        np.ones(1 << 24)
    elif kind == "gpu lost":
        raise RuntimeError("CUDA error: unspecified launch failure")
    elif kind == "gpu memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    elif kind == "crash":
        ctypes.string_at(0)
    elif kind == "disk full":
        os.replace = full  # type: ignore[assignment]
    elif kind == "clock":
        now = time.time
        time.time = lambda: now() - 86400.0
    elif kind == "surprise":
        raise KeyError("surprise")


def full(*arguments: Any) -> None:
    """Refuse as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def segment(
    volume: Volume,
    model: Model,
    options: Any,
    progress: Callable[[str, float], None],
    cancelled: Callable[[], bool],
    checkpoint: Path | None,
    root: Path,
) -> SimpleNamespace:
    """Stand in for `segmamba.inference.pipeline.segment`."""
    from segmamba.errors import Cancelled

    os.replace = REPLACE
    fault = json.loads((root / FAULT).read_text())
    for window in range(WINDOWS):
        if cancelled():
            raise Cancelled()
        if fault["window"] == window:
            fail(fault["kind"])
        time.sleep(WINDOW_SECONDS)
        progress("predict", (window + 1) / WINDOWS)
    report = {"timings_s": {}, "summary": "done", "run": {"warnings": [], "notes": []}}
    labels = labels_of(volume.array)
    nothing = {"isotropic": None, "answer": None}
    return SimpleNamespace(labels=labels, report=report, model=model, geometry=volume.geometry, **nothing)


if __name__ == "__main__":
    pipeline = ModuleType("segmamba.inference.pipeline")
    pipeline.segment = segment  # type: ignore[attr-defined]
    sys.modules["segmamba.inference.pipeline"] = pipeline
    worker.main()
