"""What `instance_prior.py` needs besides `segmamba.spine.vertebra_patch`: fits, canals of mean shapes, changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from degraded import enclosed
from scipy import ndimage
from torch import Tensor

from segmamba.spine.fit_together import fit_together
from segmamba.spine.frames import column_frames
from segmamba.spine.levels import ORDER, SACRUM
from segmamba.spine.shape_model import FURTHEST, GRID, Fit, ShapeModel
from segmamba.spine.vertebra_patch import SHAPE, SIZE, changed, channels, half_extent, share
from segmamba.utils.arrays import label_boxes

# Masks with less are not fitted.
SMALLEST_ML = 2.0
# The thin arches of a mean shape (C1) are closed only if what is this far outside of it belongs to it.
WALLS_MM = (0.0, 1.0, 2.0, 3.0)


def fits_of(labels: np.ndarray, spacing_mm: float, model: ShapeModel, device: torch.device) -> dict[int, Fit]:
    """Return the fits of the shape model to all vertebrae of a label map (z, y, x) that are large enough."""
    frames = column_frames(labels, spacing_mm)
    masks = {}
    for level, box in label_boxes(labels).items():
        mask = labels[box] == level
        if level in ORDER and mask.sum() * spacing_mm**3 / 1000 >= SMALLEST_ML:
            masks[level] = (box, mask)
    return fit_together(masks, labels.shape, model, {level: frames[level] for level in masks}, spacing_mm, device)


def canals(model: ShapeModel) -> np.ndarray:
    """Return the signed distance to the canal that each level's mean shape encloses, in local mm: (25, *GRID).

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


def _largest(plane: np.ndarray) -> np.ndarray:
    """Return the largest piece of a mask: transverse foramina and gaps beside ribs are no canal."""
    pieces, count = ndimage.label(plane)
    largest: np.ndarray = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if count else plane
    return largest


def inputs_of(given: Tensor, distance: Tensor, canal: Tensor, widths: Tensor, with_shape: bool) -> Tensor:
    """Return `channels`, those of the shape model set to zero without it."""
    made = channels(given, distance, canal, widths)
    if not with_shape:
        made[:, SHAPE] = 0
    return made


def refined(probabilities: Tensor, changes: Sequence[tuple[int, Fit, np.ndarray, Tensor]], spacing_mm: float) -> Tensor:
    """Return class probabilities (classes, z, y, x) after changes of vertebrae's logits.

    Of each vertebra its class, its fit, half the extent of its patch and the change of its logit (*SIZE).
    """
    found = probabilities.clone()
    for number, fit, half, change in changes:
        found[number][fit.box] = changed(probabilities, number, change, fit, half, spacing_mm)
    for _, fit, _, _ in changes:
        share(found, fit.box)
    return found


def vertebrae_in(values: Sequence[int]) -> dict[int, int]:
    """Return the class of each vertebra (not of the sacrum) among label values, the background's first."""
    return {value: number for number, value in enumerate(values) if value in ORDER and value != SACRUM}
