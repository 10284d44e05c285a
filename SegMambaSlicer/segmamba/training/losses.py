"""The training loss: Dice and cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SMOOTHING = 1.0


def dice_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy plus one minus the mean soft Dice, a scalar.

    The Dice is taken over the whole batch at once, and its mean over the classes that are present in the labels, the
    background left out: it is easy, and large. V-Net's soft Dice (Milletari et al., 2016) without squares.

    Parameters
    ----------
    logits : Tensor (batch, classes, z, y, x)
        Any floating type; the loss is computed in float32.
    labels : Tensor (batch, z, y, x), int64
        From 0 to classes - 1.
    """
    # Sums over masks, as counting or adding up by label would make the processor wait for the GPU or the GPU's
    # threads for one another; torch.compile makes one pass of them.
    voxels = (0, 2, 3, 4)
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None, None]
    mask = labels[:, None] == classes
    log_probabilities = logits.float().log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    overlap = torch.where(mask, probabilities, 0.0).sum(voxels)
    reference = mask.sum(voxels).float()
    dice = (2 * overlap + SMOOTHING) / (reference + probabilities.sum(voxels) + SMOOTHING)
    counted = (reference[1:] > 0).float()
    mean_dice = (dice[1:] * counted).sum() / counted.sum().clamp(min=1.0)
    return functional.nll_loss(log_probabilities, labels) + 1.0 - mean_dice
