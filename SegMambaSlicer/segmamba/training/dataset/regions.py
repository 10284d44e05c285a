"""Regions that may overlap, such as a whole tumour and its core: an output with a sigmoid for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segmamba.training.dataset.plan import IGNORED

SMOOTHING = 1.0


def region_loss(logits: Tensor, labels: Tensor, regions: Sequence[Sequence[int]], ignore: int | None = None) -> Tensor:
    """Return the mean binary cross-entropy plus one minus the mean soft Dice, a scalar.

    The Dice is taken over the whole batch at once, and its mean over the regions that are present in it.

    Parameters
    ----------
    logits : Tensor (batch, regions, z, y, x)
        Any floating type; the loss is computed in float32.
    labels : Tensor (batch, z, y, x), int64
        Classes from 0 on, or ``ignore``.
    regions : sequence of sequence of int
        The classes that each region is made of.
    ignore : int, optional
        Voxels of this value count in neither part: nobody has labelled them.
    """
    logits = logits.float()
    # Comparisons with numbers, and not a table of them: a recorded CUDA graph may copy nothing from the processor.
    inside = torch.stack([_any_of(labels, classes) for classes in regions], dim=1)
    surprise = functional.binary_cross_entropy_with_logits(logits, inside.float(), reduction="none")
    probabilities = logits.sigmoid()
    if ignore is None:
        cross_entropy = surprise.mean()
    else:
        known = (labels != ignore)[:, None]
        count = known.sum().clamp(min=1) * len(regions)
        cross_entropy = torch.where(known, surprise, 0.0).sum() / count
        probabilities = torch.where(known, probabilities, 0.0)
    voxels = (0, 2, 3, 4)
    overlap = torch.where(inside, probabilities, 0.0).sum(voxels)
    reference = inside.sum(voxels).float()
    dice = (2 * overlap + SMOOTHING) / (reference + probabilities.sum(voxels) + SMOOTHING)
    counted = (reference > 0).float()
    return cross_entropy + 1.0 - (dice * counted).sum() / counted.sum().clamp(min=1.0)


def dice_of_regions(
    found: np.ndarray, reference: np.ndarray, names: Sequence[str], regions: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Return the Dice of each region that the reference has; voxels that nobody has labelled do not count.

    Parameters
    ----------
    found : ndarray of bool (regions, z, y, x)
    reference : ndarray of uint8 (z, y, x)
        Classes, or `IGNORED`.
    names : sequence of str
        Of the regions.
    regions : sequence of sequence of int
        The classes that each region is made of.
    """
    known = reference != IGNORED
    dice = {}
    for mask, name, classes in zip(found, names, regions, strict=True):
        ours, theirs = mask & known, np.isin(reference, classes)
        if theirs.any():
            dice[name] = float(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    return dice


def written_classes(found: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Return the class of the last region that each voxel is in, uint8 (z, y, x); 0 where it is in none.

    Parameters
    ----------
    found : ndarray of bool (regions, z, y, x)
    classes : sequence of int
        The class that is written for each region.
    """
    written = np.zeros(found.shape[1:], np.uint8)
    for mask, value in zip(found, classes, strict=True):
        written[mask] = value
    return written


def _any_of(labels: Tensor, classes: Sequence[int]) -> Tensor:
    inside = labels == classes[0]
    for other in classes[1:]:
        inside = inside | (labels == other)
    return inside
