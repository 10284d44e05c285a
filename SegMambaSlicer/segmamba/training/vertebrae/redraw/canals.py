"""The canal that mean shapes of vertebrae enclose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from segmamba.spine.shape_model import FURTHEST, GRID, ShapeModel
from segmamba.spine.vertebra_patch import SIZE, half_extent

# The canal is what bone surrounds in axial planes, with gaps between laminae closed; smaller holes are not canal.
SMALLEST_CANAL_MM2, GAP_MM = 60.0, 8.0
# The thin arches of a mean shape (C1) are closed only if what is this far outside of it belongs to it.
WALLS_MM = (0.0, 1.0, 2.0, 3.0)


def canals(model: ShapeModel) -> np.ndarray:
    """Return the signed distance to the canal that each level's mean shape encloses, in local mm: ``(25, *GRID)``.

    Planes that enclose none have that of the next one that does: the canal runs through. What does not lie where the
    middle plane has its canal is another hole. Clipped as the shapes are; the furthest where a mean encloses nothing.
    """
    found = np.full((len(model.means), *GRID), FURTHEST, np.float32)
    for number, mean in enumerate(model.means):
        steps = 2 * half_extent(number + 1, model) / (np.array(SIZE) - 1)
        fine = ndimage.zoom(mean, np.array(SIZE) / mean.shape, order=1, grid_mode=False)
        for wall in WALLS_MM:
            canal = np.stack([_largest(enclosed(plane < wall, steps[1:])) for plane in fine])
            planes = np.flatnonzero(canal.any(axis=(1, 2)))
            if len(planes):
                break
        else:
            continue
        middle = canal[planes[np.abs(planes - SIZE[0] / 2).argmin()]]
        planes = np.array([n for n in planes if (canal[n] & middle).sum() >= canal[n].sum() / 2])
        nearest = planes[np.abs(planes - np.arange(SIZE[0])[:, None]).argmin(axis=1)]
        canal = canal[nearest] & (fine >= 0)
        distance = ndimage.distance_transform_edt(~canal, sampling=steps)
        distance -= ndimage.distance_transform_edt(canal, sampling=steps)
        found[number] = ndimage.zoom(np.clip(distance, -FURTHEST, FURTHEST), 0.5, order=1, grid_mode=False)
    return found


def enclosed(plane: np.ndarray, steps: Sequence[float]) -> np.ndarray:
    """Return what bone encloses in a plane (y, x), once gaps of up to `GAP_MM` in it are closed; ``steps`` in mm."""
    if not plane.any():
        return plane
    pad = [int(np.ceil(GAP_MM / step)) for step in steps]
    padded = np.pad(plane, [(width, width) for width in pad])
    grown = ndimage.distance_transform_edt(~padded, sampling=steps) <= GAP_MM / 2
    closed = padded | (grown & (ndimage.distance_transform_edt(grown, sampling=steps) > GAP_MM / 2))
    inner = tuple(slice(width, -width) for width in pad)
    hole = (ndimage.binary_fill_holes(closed) & ~padded)[inner]
    core = hole & ~closed[inner]
    pieces, count = ndimage.label(hole)
    sizes = np.bincount(pieces[core], minlength=count + 1) * steps[0] * steps[1]
    sizes[0] = 0
    canal: np.ndarray = (sizes >= SMALLEST_CANAL_MM2)[pieces]
    return canal


def _largest(plane: np.ndarray) -> np.ndarray:
    """Return the largest piece of a mask: transverse foramina and gaps beside ribs are no canal."""
    pieces, count = ndimage.label(plane)
    largest: np.ndarray = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if count else plane
    return largest
