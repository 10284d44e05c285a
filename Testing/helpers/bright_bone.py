"""An engine that is right on the phantom: a tiny model whose network takes for bone what is as bright as bone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import tiny
from helpers.phantoms import BONE, WATER
from segmamba.inference import engine, pipeline
from segmamba.io.read import read_volume
from segmamba.models.manifest import Model, load_manifest
from segmamba.request import Options

CLASSES = len(tiny.LABELS) + 1
# The model's channel is the intensity over 500.
THRESHOLD = (BONE + WATER) / 2 / 500
VALUE = tiny.LABELS[0]["value"]


class BrightBone(torch.nn.Module):
    """Logits of the first structure grow with the brightness; those of the others never win."""

    def __init__(self) -> None:
        super().__init__()
        self.steepness = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        bone = (image[:, :1] - THRESHOLD) * self.steepness
        others = [torch.full_like(bone, -100.0)] * (CLASSES - 2)
        return torch.cat([torch.zeros_like(bone), bone, *others], dim=1)


def write_model(folder: Path, spacing: float) -> Model:
    """Write a tiny model of a spacing in mm and return it."""
    preprocessing = tiny.model_entry({})["preprocessing"] | {"spacing_mm": [spacing] * 3}
    return load_manifest(tiny.write_model(folder, preprocessing=preprocessing)).default("vertebrae")


@pytest.fixture
def bright_bone(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on every model has that network."""
    monkeypatch.setattr(engine, "_network", lambda *_: BrightBone())


def segment(path: Path, model: Model, root: Path) -> np.ndarray:
    """Read a file and return its labels."""
    options = Options(device="cpu", precision="float32")
    return pipeline.segment(read_volume(path), model, options, root=root).labels
