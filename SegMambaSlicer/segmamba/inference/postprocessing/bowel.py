"""Post-processing of colon, rectum and their tumours on CT."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segmamba.io.volume import Volume
from segmamba.utils.morphology import HOLE_MM3, connected_components, fill_holes, merge_small_components
from segmamba.utils.runs import runs_of

# No tumour synthesised for training is smaller (`segmamba.training.colorectal`), so a smaller one means nothing.
SMALLEST_TUMOUR_MM3 = 200.0
# Connected air of at least this much is lung where its median is above this many HU: gas in bowel, and the air around
# a patient, have less.
AIR_HU, LUNG_HU, LUNG_MM3 = -500, -950, 300_000.0
# Lungs are looked for on a grid about this coarse.
LUNG_GRID_MM = 3.0


def clean_bowel(labels: np.ndarray, volume: Volume) -> np.ndarray:
    """Drop components in the lungs, then repair each label.

    Components under 0.2 mL of a label go to the label that they touch most, or to the background; small holes in a
    label are filled.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x).
    volume : Volume
        The CT in HU, on the same grid.

    Returns
    -------
    ndarray of uint8
    """
    kept = without_lung(labels, volume.array, volume.geometry.spacing[::-1])
    merge_small_components(kept, SMALLEST_TUMOUR_MM3 / volume.geometry.voxel_volume)
    fill_holes(kept, HOLE_MM3 / volume.geometry.voxel_volume)
    return kept


def without_lung(labels: np.ndarray, hounsfield: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return labels without the connected components that lie more than half in the lungs.

    In a chest the colorectal network may take part of the lungs for a wide colon: few training samples show any.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x).
    hounsfield : ndarray
        The CT, of the same shape.
    spacing : sequence of float
        Millimetres along z, y, x.

    Returns
    -------
    ndarray of uint8
        A new array.
    """
    coarse = tuple(slice(None, None, max(1, round(LUNG_GRID_MM / mm))) for mm in spacing)
    values = hounsfield[coarse]
    air, _ = connected_components(values < AIR_HU)
    voxel = float(np.prod([step.step * mm for step, mm in zip(coarse, spacing, strict=True)]))
    large = [n for n, size in enumerate(np.bincount(air.ravel())) if n and size * voxel >= LUNG_MM3]
    lungs = [n for n in large if np.median(values[air == n]) > LUNG_HU]
    if not lungs:
        return labels.copy()
    runs = runs_of(labels > 0, corners=True)
    # Each labelled voxel of the coarse grid says which component it is of.
    positions = np.ogrid[tuple(slice(0, size, step.step) for size, step in zip(labels.shape, coarse, strict=True))]
    voxels = np.ravel_multi_index(tuple(positions), labels.shape)
    seen = labels[coarse] > 0
    total, inside = (
        np.bincount(runs.numbers(voxels[chosen]), minlength=len(runs.sizes))
        for chosen in (seen, seen & np.isin(air, lungs))
    )
    kept = labels.copy(order="C")
    kept.reshape(-1)[runs.voxels(inside > 0.5 * total)] = 0
    return kept
