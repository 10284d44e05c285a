"""A small oblique CT that tests write as DICOM, and the only series of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.phantoms import rotation
from segmamba.io.dicom_index import Series, find_series
from segmamba.io.volume import Geometry

GEOMETRY = Geometry((9, 8, 10), (0.7, 0.8, 2.5), (-10.0, 20.5, -300.0), rotation(20, -15))
# Sagittal slices, as MR of the spine has: x runs to posterior, y down, slices from left to right.
SAGITTAL = Geometry((9, 8, 10), (0.9, 0.9, 4.0), (20.0, -70.0, 60.0), (0, 0, -1.0, 1.0, 0, 0, 0, -1.0, 0))


def some_ct(seed: int = 1) -> np.ndarray:
    """Return random voxels for `GEOMETRY`, indexed (z, y, x)."""
    return np.random.default_rng(seed).integers(-1000, 1500, GEOMETRY.size[::-1]).astype(np.int16)


def only(folder: Path) -> Series:
    """Return the series below a folder that has one."""
    (series,) = find_series(folder)
    return series
