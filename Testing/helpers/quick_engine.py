"""Engines without a child process: to test and measure what is around them."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from segmamba.batch.engine import Engine
from segmamba.models.store import sha256
from segmamba.request import Request
from segmamba.utils.words import counted


class QuickEngine(Engine):
    """Finds one structure in no time: writes what the engine would write, without reading the input."""

    def run(self, request: Request, alone: bool = False) -> dict[str, Any]:
        return quick_run(request)


class EngineHere(Engine):
    """Segments in this process, which has imported torch already: a child process takes seconds for that."""

    def run(self, request: Request, alone: bool = False) -> dict[str, Any]:
        from segmamba.inference.file_to_file import segment_file

        return segment_file(request)


class SlowEngine(QuickEngine):
    """Takes long enough for a worker to be killed at a case."""

    def run(self, request: Request, alone: bool = False) -> dict[str, Any]:
        time.sleep(0.5)
        return quick_run(request)


def quick_run(request: Request) -> dict[str, Any]:
    """Write the outputs of a request and return a report."""
    Path(request.output).write_bytes(b"labels")
    assert request.preview is not None
    Image.new("RGB", (640, 320)).save(request.preview)
    if request.page is not None:
        Path(request.page).write_text("<!doctype html>", encoding="utf-8")
    checkpoint = Path(str(request.manifest)).with_name("tiny.safetensors")
    segment = {"name": "L1 vertebra", "value": 20, "volume_ml": 1.5, "mean_confidence": 0.9, "at_border": False}
    used = {"device": "cpu", "precision": "float32", "scan_backend": "torch", "warnings": [], "notes": []}
    return {
        "model": {"checkpoint_sha256": sha256(checkpoint)},
        "software": {"segmamba": "0"},
        "volume": {"modality": request.options.modality, "modality_inferred": False},
        "run": {**used, "device_title": f"none, {counted(threads(), 'thread')}", "options": asdict(request.options)},
        "timings_s": {"total": 0.0},
        "segments": [segment],
        "measurements": [{"name": "L1 vertebra", "anterior_height_mm": 25.5, "flag": None}],
        **({"page": request.page} if request.page is not None else {}),
        "look_first": [{"value": 20, "text": "L1: look."}],
        "summary": "1 structure found: L1 vertebra.",
    }


def threads() -> int:
    """Return how many threads PyTorch would take: with MKL both variables count, without it the first."""
    return min(int(os.environ.get(name, 1)) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))


def write_inputs(folder: Path, count: int) -> None:
    """Write files that only look like volumes from outside."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"ct{number:04d}.nii").write_bytes(bytes(range(100)) + str(number).encode())
