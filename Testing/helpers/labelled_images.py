"""Data sets of a few small images: a bright cube in noise, and its label map."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from segmamba.inference.model_grid import ModelGrid
from segmamba.io.volume import Geometry
from segmamba.training.dataset.cache import CachedCase

EYE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
NNUNET: dict[str, Any] = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "cube": 1}, "file_ending": ".nii"}
DECATHLON: dict[str, Any] = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "colon cancer primaries"}}


def image_of(seed: int, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, float32, and its labels, uint8: (size, size, size)."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size, size), np.uint8)
    z, y, x = rng.integers(1, size // 2, 3)
    labels[z : z + size // 2, y : y + size // 2, x : x + size // 2] = 1
    image = 100 + rng.normal(0, 10, labels.shape) + 100 * labels
    return image.astype(np.float32), labels


def write(array: np.ndarray, path: Path, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Path:
    """Write an array (z, y, x) as an image."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(list(spacing))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_described(
    folder: Path, names: Sequence[str], description: dict[str, Any], ending: str = "_0000", size: int = 12
) -> Path:
    """Write a data set with a ``dataset.json``; ``ending`` is what an image's name has more than its labels'."""
    for seed, name in enumerate(names):
        image, labels = image_of(seed, size)
        write(image, folder / "imagesTr" / f"{name}{ending}.nii")
        write(labels, folder / "labelsTr" / f"{name}.nii")
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def cached(image: np.ndarray, labels: np.ndarray, name: str = "a") -> CachedCase:
    """Return a case of one channel on a grid of 1 mm, with all its places of class 1."""
    z, y, x = labels.shape
    geometry = Geometry((x, y, z), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), EYE)
    grid = ModelGrid(geometry, geometry, (slice(0, z), slice(0, y), slice(0, x)))
    places = [np.argwhere(labels == 1).astype(np.int32)]
    return CachedCase(name, name, image[None].astype(np.float16), labels, places, (0.0,), grid)
