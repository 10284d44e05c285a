"""What a report says of a run: the model, where and how its networks ran, and the times."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from segmamba import scan
from segmamba.inference.device import choose_device
from segmamba.inference.engine import Engine
from segmamba.inference.prediction import NetworkPass
from segmamba.inference.windows import window_count
from segmamba.io.volume import Volume
from segmamba.models.manifest import FineStage, Model, Postprocessing
from segmamba.reporting import DISCLAIMER
from segmamba.reporting import report as reporting
from segmamba.request import Options

# Smaller components that a threshold rejects are not told.
REJECTED_ML = 1.0


def describe(
    engine: Engine, volume: Volume, model: Model, run: dict[str, Any], timings: dict[str, float]
) -> dict[str, Any]:
    """Return what was used and how it ran: the report without what was found."""
    modality = {"modality": volume.modality, "modality_inferred": volume.modality_inferred}
    return {
        "report_version": reporting.REPORT_VERSION,
        "disclaimer": DISCLAIMER,
        "model": reporting.describe_model(model, engine.checkpoint, engine.digest),
        "software": reporting.describe_software(),
        "volume": reporting.describe_grid(volume.geometry) | modality,
        "run": run,
        "timings_s": timings,
    }


def describe_run(engine: Engine, model: Model, options: Options, passes: tuple[NetworkPass, ...]) -> dict[str, Any]:
    """Return how the network ran; ``fine`` is only there where a second stage did, on a grid of its own."""
    run = {
        **_describe_device(engine, passes[0].device),
        **_describe_windows(passes[0], model, options),
        "tta_axes": list(model.flip_axes) if options.tta else [],
        "refine": list(model.refinement) if options.refine else [],
        "postprocessing": (model.postprocessing if options.postprocess else Postprocessing.NONE).value,
        "margin_threshold": asdict(model.margin_threshold) if options.postprocess and model.margin_threshold else None,
        "options": asdict(options),
    }
    if model.fine is not None and len(passes) > 1:
        fine = passes[1]
        run["fine"] = _describe_device(engine, fine.device) | _describe_windows(fine, model.fine, options)
    return run


def describe_rejected(volumes_ml: np.ndarray, label: int) -> dict[str, Any]:
    """Return the components of a label that the margin threshold rejected, of those over `REJECTED_ML`."""
    told = volumes_ml[volumes_ml > REJECTED_ML]
    return {"label": label, "count": len(told), "largest_ml": round(float(told.max(initial=0)), 1)}


def rejected_note(rejected: dict[str, Any] | None, model: Model) -> str:
    """Return the sentence about components that the margin threshold rejected, or nothing."""
    if not rejected or not rejected["count"]:
        return ""
    name = next(label.name for label in model.labels if label.value == rejected["label"])
    count, largest = rejected["count"], rejected["largest_ml"]
    if count == 1:
        return f"{name}: one candidate of {largest:g} mL is too uncertain to be marked."
    return f"{name}: {count} candidates, the largest of {largest:g} mL, are too uncertain to be marked."


def _describe_device(engine: Engine, ran_on: torch.device) -> dict[str, Any]:
    """Return where a network ran: where memory ran out that is not the device that was chosen."""
    kind = ran_on.type
    device, backend = engine.device, engine.backend
    if kind != device.kind:
        device, backend = choose_device(kind, "auto"), scan.chosen_backend(kind)
    return {
        "device": device.name,
        "device_title": device.title,
        "precision": device.precision,
        "scan_backend": backend,
    }


def _describe_windows(ran: NetworkPass, stage: Model | FineStage, options: Options) -> dict[str, Any]:
    """Return the windows of a stage; ``work`` is their time in windows of the model's own size."""
    overlap = stage.overlap if options.overlap is None else options.overlap
    window = ran.window or stage.patch
    count = window_count(ran.grid.geometry.size[::-1], window, overlap)
    return {
        "model_grid": reporting.describe_grid(ran.grid.geometry),
        "patch": list(window),
        "windows": count,
        "work": round(count * math.prod(window) / math.prod(stage.patch), 2),
        "overlap": overlap,
    }
