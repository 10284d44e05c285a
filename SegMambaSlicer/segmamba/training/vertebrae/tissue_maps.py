"""Tissue label maps in memory: read, upsampled, with the centroid of every vertebra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from segmamba.errors import InputError
from segmamba.training.synthesis.npz import read_arrays
from segmamba.training.synthesis.scanner import blur
from segmamba.training.synthesis.tissue_labels import SPACING, VERTEBRAE

# Indicators of a structure are smoothed by this many voxels before they are compared on the finer grid: it takes the
# steps off a surface. More of it thins rods and plates of two or three voxels.
SMOOTHING = 0.5


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One tissue label map.

    Attributes
    ----------
    subject : str
        Several maps may show one subject.
    tissues : Tensor (z, y, x), uint8
        Of `segmamba.training.synthesis.tissue_labels`; axes to left, posterior and superior.
    centres : dict of int to tuple of float
        Mean position (z, y, x in voxels) of each vertebra's voxels.
    spacing : float
        Of the grid in mm.
    """

    subject: str
    tissues: Tensor
    centres: dict[int, tuple[float, ...]]
    spacing: float = SPACING


def load_anatomies(files: Sequence[Path], device: torch.device, spacing: float = SPACING) -> list[Anatomy]:
    """Read the files that `label_maps.prepare` wrote; for a finer ``spacing`` (mm) interpolate them.

    Raises
    ------
    InputError
        There are no files, or one is damaged.
    """
    if not files:
        raise InputError(
            "There is no tissue label map to train on: make some with "
            "'python -m segmamba.training.vertebrae.label_maps'."
        )
    anatomies = []
    for file in files:
        (tissues,) = read_arrays(file, ["tissues"], "'python -m segmamba.training.vertebrae.label_maps'")
        centres = vertebra_centres(tissues)
        on_device = torch.from_numpy(tissues).to(device)
        finer = min(spacing, SPACING)
        if finer < SPACING:
            # Every structure has a shape of its own: to try for each which algorithm is best takes ten times as long.
            with torch.backends.cudnn.flags(benchmark=False):
                on_device = upsample(on_device, tissues, SPACING / finer)
            ratio = (np.array(on_device.shape) - 1) / (np.array(tissues.shape) - 1)
            centres = {label: tuple(np.array(centre) * ratio) for label, centre in centres.items()}
        anatomies.append(Anatomy(file.stem.rsplit("_", 1)[0], on_device, centres, finer))
    return anatomies


def vertebra_centres(tissues: np.ndarray) -> dict[int, tuple[float, ...]]:
    """Return the mean position (z, y, x in voxels) of each vertebra's voxels in a tissue label map (z, y, x)."""
    voxels = np.flatnonzero((tissues > 0) & (tissues <= VERTEBRAE))  # few, so this is faster than whole maps
    labels = tissues.ravel()[voxels]
    counts = np.bincount(labels, minlength=VERTEBRAE + 1)
    sums = [np.bincount(labels, place, VERTEBRAE + 1) for place in np.unravel_index(voxels, tissues.shape)]
    return {int(n): tuple(float(total[n] / counts[n]) for total in sums) for n in np.flatnonzero(counts)}


def upsample(tissues: Tensor, values: np.ndarray, factor: float) -> Tensor:
    """Return a tissue label map on a grid ``factor`` times finer, with smooth surfaces between structures.

    Each structure's indicator is smoothed and interpolated linearly; the largest wins.

    Parameters
    ----------
    tissues : Tensor (z, y, x), uint8
    values : ndarray (z, y, x), uint8
        The same on the CPU.
    factor : float
        Greater than one; corner voxels stay at the corners.
    """
    shape = [round((n - 1) * factor) + 1 for n in tissues.shape]
    # In whole numbers, as rounding could lose the last slice.
    steps = [(n - 1, m - 1) for n, m in zip(tissues.shape, shape, strict=True)]
    best = torch.zeros(shape, dtype=torch.float16, device=tissues.device)
    result = torch.zeros(shape, dtype=torch.uint8, device=tissues.device)
    for label, place in enumerate(ndimage.find_objects(values.astype(np.int32) + 1)):
        if place is None:
            continue
        wide = [slice(max(0, p.start - 2), min(n, p.stop + 2)) for p, n in zip(place, values.shape, strict=True)]
        first = [-(-p.start * fine // coarse) for p, (coarse, fine) in zip(wide, steps, strict=True)]
        last = [(p.stop - 1) * fine // coarse for p, (coarse, fine) in zip(wide, steps, strict=True)]
        indicator = blur((tissues[tuple(wide)] == label).float(), SMOOTHING)
        for axis, (coarse, fine) in enumerate(steps):
            where = (
                torch.arange(first[axis], last[axis] + 1, device=tissues.device) * (coarse / fine) - wide[axis].start
            )
            low = where.floor().long().clamp(0, max(0, indicator.shape[axis] - 2))
            part = (where - low).view([-1 if i == axis else 1 for i in range(3)])
            high = (low + 1).clamp(max=indicator.shape[axis] - 1)
            indicator = indicator.index_select(axis, low) * (1 - part) + indicator.index_select(axis, high) * part
        box = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
        wins = indicator > best[box]
        best[box] = torch.where(wins, indicator.half(), best[box])
        result[box] = torch.where(wins, label, result[box].int()).to(torch.uint8)
    return result
