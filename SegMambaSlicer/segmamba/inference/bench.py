"""How long a model's networks take on this machine: one window of noise each, and from that an estimate of a scan."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from segmamba.inference.context import RunContext
from segmamba.inference.engine import prepare
from segmamba.inference.forecast import fine_windows, with_fitted_window
from segmamba.inference.sliding_window import identity, predict
from segmamba.inference.windows import Windows, window_count
from segmamba.models.manifest import Model
from segmamba.request import Options

# A window is run until so many seconds have passed, and at most so often.
SECONDS, MOST = 5.0, 20
# A chest CT without the air around the patient, in mm along x, y, z.
CHEST_MM = (360.0, 300.0, 333.0)


@dataclass(frozen=True)
class StageTime:
    """A network's window.

    Attributes
    ----------
    patch : tuple of int
        Voxels along z, y, x.
    seconds : float
        The fastest of several runs.
    """

    patch: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Bench:
    """What `bench` measured.

    Attributes
    ----------
    device, precision : str
        The maker's name of what the networks ran on, and their precision.
    stages : tuple of StageTime
        One for each stage of the model.
    chest_seconds : float
        Estimate of the networks' time in a chest CT of `CHEST_MM`, without test-time augmentation.
    warnings : tuple of str
        One sentence for each fallback.
    """

    device: str
    precision: str
    stages: tuple[StageTime, ...]
    chest_seconds: float
    warnings: tuple[str, ...]


def bench(model: Model, options: Options, root: Path | None = None) -> Bench:
    """Measure a model's networks, each on one window.

    Parameters
    ----------
    model : Model
        Installed.
    options : Options
        Device, precision and scan.
    root : Path, optional
        Folder of the manifest that the model is from.

    Raises
    ------
    ModelError, DeviceError
    """
    engine = prepare(model, options, None, root)
    context = RunContext(torch.device(engine.device.name), engine.device.dtype)
    warnings = list(engine.warnings)
    # The networks of two stages carry the names of the stages.
    patches = {"coarse": model.patch, "fine": model.fine.patch} if model.fine is not None else {"": model.patch}
    stages = []
    for name, patch in patches.items():
        network = engine.network.get_submodule(name)
        image = torch.randn(len(model.preprocessing.normalization), *patch)
        seconds, told = _fastest(network, image, context)
        stages.append(StageTime(patch, seconds))
        warnings += told
    size = _chest_size(model)
    fitted = with_fitted_window(model, size, model.overlap) if engine.device.kind == "cpu" else model
    windows = window_count(size[::-1], fitted.patch, model.overlap)
    chest = windows * math.prod(fitted.patch) / math.prod(model.patch) * stages[0].seconds
    if model.fine is not None:
        chest += fine_windows(size, model, replace(options, overlap=None)) * stages[1].seconds
    title = f"{engine.device.title}, scan {engine.backend}"
    return Bench(title, engine.device.precision, tuple(stages), chest, tuple(dict.fromkeys(warnings)))


def _chest_size(model: Model) -> tuple[int, int, int]:
    x, y, z = (round(length / step) for length, step in zip(CHEST_MM, model.preprocessing.spacing, strict=True))
    return x, y, z


def _fastest(network: torch.nn.Module, image: torch.Tensor, context: RunContext) -> tuple[float, tuple[str, ...]]:
    """Return the seconds of the fastest of some runs of one window, and warnings; a GPU's first run compiles."""
    windows = Windows(tuple(image.shape[1:]))
    taken: list[float] = []
    warnings: tuple[str, ...] = ()
    begin = time.perf_counter()
    while len(taken) < MOST and (len(taken) < 2 or time.perf_counter() - begin < SECONDS):
        start = time.perf_counter()
        output = predict(network, image, windows, context, identity)
        # The copy waits for what a GPU has not done yet.
        output.values[:, :1, :1, :1].cpu()
        taken.append(time.perf_counter() - start)
        warnings = output.warnings
    return min(taken), warnings
