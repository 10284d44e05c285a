"""Small images of noise, and files of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def saved(path: Path, image: sitk.Image) -> Path:
    sitk.WriteImage(image, str(path))
    return path
