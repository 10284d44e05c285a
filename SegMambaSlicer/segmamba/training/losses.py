"""The training losses of a vertebra network (mask, offset, level, rib) and of a colorectal one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from segmamba.networks.spine_mamba import LEVELS, MASK, OFFSET, OFFSET_UNIT_MM, RIB
from segmamba.training.synthesis.tissue_labels import VERTEBRAE

SMOOTHING = 1.0
# Below this, errors of the offset are squared, in units of `OFFSET_UNIT_MM`: 1 mm.
OFFSET_BETA = 1.0 / OFFSET_UNIT_MM


def vertebra_loss(answer: Tensor, levels: Tensor, offsets: Tensor, ribs: Tensor) -> Tensor:
    """Return the sum of the losses of the mask, the offsets and, where the network predicts them, levels and ribs.

    Parameters
    ----------
    answer : Tensor (batch, channels, z, y, x)
        See `segmamba.networks.spine_mamba`: 6 channels, or 33 with levels and ribs. Any floating type; the
        loss is computed in float32.
    levels : Tensor (batch, z, y, x), int64
        0 in the background.
    offsets : Tensor (batch, 3, z, y, x)
        In mm; used on vertebrae but not on the sacrum.
    ribs : Tensor (batch, z, y, x), bool
    """
    sacrum = levels == VERTEBRAE
    vertebra = (levels > 0) & ~sacrum
    loss = dice_cross_entropy(answer[:, MASK], vertebra + 2 * sacrum)
    error = functional.smooth_l1_loss(
        answer[:, OFFSET].float(), offsets / OFFSET_UNIT_MM, reduction="none", beta=OFFSET_BETA
    )
    loss = loss + _mean(error.sum(dim=1), vertebra)
    if answer.shape[1] > OFFSET.stop:
        log_probabilities = answer[:, LEVELS].float().log_softmax(dim=1)
        target = (levels - 1).clamp(min=0)
        loss = loss + _mean(-log_probabilities.gather(1, target[:, None])[:, 0], levels > 0)
        rib = answer[:, RIB].float()
        loss = loss + dice_cross_entropy(torch.cat([torch.zeros_like(rib), rib], dim=1), ribs.long())
    return loss


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Return the mean of values in a region, 0 for an empty one."""
    return torch.where(where, values, 0.0).sum() / where.sum().clamp(min=1)


def dice_cross_entropy(logits: Tensor, labels: Tensor, ignore: int | None = None) -> Tensor:
    """Return the mean cross-entropy plus one minus the mean soft Dice, a scalar.

    The Dice is taken over the whole batch at once, and its mean over the classes that are present in the labels, the
    background left out: it is easy, and large. V-Net's soft Dice (Milletari et al., 2016) without squares.

    Parameters
    ----------
    logits : Tensor (batch, classes, z, y, x)
        Any floating type; the loss is computed in float32.
    labels : Tensor (batch, z, y, x), int64
        From 0 to classes - 1, or ``ignore``.
    ignore : int, optional
        Voxels of this value count in neither part: nobody has labelled them.
    """
    # Sums over masks, as counting or adding up by label would make the processor wait for the GPU or the GPU's
    # threads for one another; torch.compile makes one pass of them.
    voxels = (0, 2, 3, 4)
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None, None]
    mask = labels[:, None] == classes
    log_probabilities = logits.float().log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    if ignore is not None:
        probabilities = torch.where(labels[:, None] == ignore, 0.0, probabilities)
    overlap = torch.where(mask, probabilities, 0.0).sum(voxels)
    reference = mask.sum(voxels).float()
    dice = (2 * overlap + SMOOTHING) / (reference + probabilities.sum(voxels) + SMOOTHING)
    counted = (reference[1:] > 0).float()
    mean_dice = (dice[1:] * counted).sum() / counted.sum().clamp(min=1.0)
    if ignore is None:
        return functional.nll_loss(log_probabilities, labels) + 1.0 - mean_dice
    counted_voxels = reference.sum().clamp(min=1.0)
    return 1.0 - mean_dice - torch.where(mask, log_probabilities, 0.0).sum() / counted_voxels
