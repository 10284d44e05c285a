"""Dice + cross-entropy, without one-hot volumes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def dice_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy plus one minus the mean soft Dice of the classes present.

    Parameters
    ----------
    logits : Tensor (batch, classes, z, y, x)
        Any floating type; the loss is computed in float32.
    labels : Tensor (batch, z, y, x), int64
    """
    logits = logits.float()
    classes = logits.shape[1]
    cross_entropy = functional.cross_entropy(logits, labels)
    probabilities = logits.softmax(dim=1)
    flat = labels.flatten()
    at_label = probabilities.gather(1, labels[:, None]).flatten()
    overlap = torch.zeros(classes, device=logits.device).index_add(0, flat, at_label)
    reference = torch.bincount(flat, minlength=classes).float()
    predicted = probabilities.sum(dim=(0, 2, 3, 4))
    dice = (2 * overlap + 1.0) / (reference + predicted + 1.0)
    counted = (reference > 0).float()
    counted[0] = 0.0  # the background is easy, and large
    mean_dice = (dice * counted).sum() / counted.sum().clamp(min=1.0)
    return cross_entropy + 1.0 - mean_dice
