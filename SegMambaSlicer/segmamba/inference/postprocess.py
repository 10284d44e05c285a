"""Cleaning up a label map: stray pieces, islands and holes. The rules are our own, not a paper's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from segmamba.errors import ModelError
from segmamba.io.volume import Volume
from segmamba.models.manifest import KEEP_ALL
from segmamba.spine.column import ISLAND_MM3, column
from segmamba.utils.arrays import bounding_box, grown_box
from segmamba.utils.morphology import HOLE_MM3, TOUCHING, fill_holes, merge_islands

# No tumour that was painted for training is smaller (`segmamba.training.colorectal`), so a smaller one means nothing.
SMALLEST_TUMOUR_MM3 = 200.0
# Connected air of at least this much is lung where its median is above this many HU: gas in bowel, and the air around
# a patient, have less.
AIR_HU, LUNG_HU, LUNG_MM3 = -500, -950, 300_000.0
# Lungs are looked for on a grid about this coarse.
LUNG_GRID_MM = 3.0


def postprocess(labels: np.ndarray, volume: Volume, keep: str) -> np.ndarray:
    """Clean up a label map by one of the manifest's rules.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x).
    volume : Volume
        What was labelled, on the same grid.
    keep : str
        "all": nothing is changed. "largest_column": what is not connected to the vertebral column, and no
        piece of it, is dropped; small islands of a label go to the label that they touch most, or to the background
        if they touch none; small holes in a label are filled. "bowel", of a CT: pieces of which more than half is lung
        are dropped; pieces under 0.2 mL of a label go to the label that they touch most, or to the background; small
        holes are filled.

    Returns
    -------
    ndarray of uint8
        A new array, or ``labels`` itself for "all".

    Raises
    ------
    ModelError
        There is no such rule.
    """
    if keep == KEEP_ALL:
        return labels
    if keep not in ("largest_column", "bowel"):
        raise ModelError(f"There is no rule '{keep}' to keep structures by: correct the model's manifest entry.")
    foreground = bounding_box(labels > 0)
    if foreground is None:
        return labels.copy()
    # One voxel of background on all sides, where there is one, lets islands at the border see it.
    box = grown_box(foreground, labels.shape)
    part, geometry = labels[box].copy(), volume.geometry
    if keep == "bowel":
        drop_lung(part, volume.array[box], geometry.spacing[::-1])
        merge_islands(part, SMALLEST_TUMOUR_MM3 / geometry.voxel_volume)
    else:
        matrix = geometry.affine
        start = [piece.start for piece in reversed(box)]
        matrix[:3, 3] = (matrix @ [*start, 1.0])[:3]
        part[~column(part > 0, matrix)] = 0
        merge_islands(part, ISLAND_MM3 / geometry.voxel_volume)
    fill_holes(part, HOLE_MM3 / geometry.voxel_volume)
    result = np.zeros_like(labels)
    result[box] = part
    return result


def drop_lung(labels: np.ndarray, hounsfield: np.ndarray, spacing: Sequence[float]) -> None:
    """Remove, in place, connected pieces of which more than half is lung; both (z, y, x), spacing in mm alike.

    In a chest the colorectal network may take part of the lungs for a wide colon: few training samples show any.
    """
    coarse = tuple(slice(None, None, max(1, round(LUNG_GRID_MM / mm))) for mm in spacing)
    values = hounsfield[coarse]
    air, _ = ndimage.label(values < AIR_HU)
    voxel = float(np.prod([step.step * mm for step, mm in zip(coarse, spacing, strict=True)]))
    large = [n for n, size in enumerate(np.bincount(air.ravel())) if n and size * voxel >= LUNG_MM3]
    lungs = [n for n in large if np.median(values[air == n]) > LUNG_HU]
    if not lungs:
        return
    pieces, count = ndimage.label(labels > 0, TOUCHING)
    seen = pieces[coarse]
    inside = np.bincount(seen[np.isin(air, lungs)], minlength=count + 1)
    dropped = inside > 0.5 * np.bincount(seen.ravel(), minlength=count + 1)
    dropped[0] = False
    labels[dropped[pieces]] = 0
