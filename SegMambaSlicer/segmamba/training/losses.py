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
# Codes of voxels beside the levels, where nobody has drawn what is there. Of the first two one is known: if it is bone,
# then of a vertebra or of the sacrum; of the last one nothing.
VERTEBRA_IF_BONE, SACRUM_IF_BONE, UNKNOWN = 251, 252, 253


def vertebra_loss(answer: Tensor, levels: Tensor, offsets: Tensor, ribs: Tensor) -> Tensor:
    """Return the sum of the losses of the mask, the offsets and, where the network predicts them, levels and ribs.

    Parameters
    ----------
    answer : Tensor (batch, channels, z, y, x)
        See `segmamba.networks.spine_mamba`: 6 channels, or 33 with levels and ribs. Any floating type; the
        loss is computed in float32.
    levels : Tensor (batch, z, y, x), int64
        0 in the background; or one of the codes above, which count neither for the ribs nor as background.
    offsets : Tensor (batch, 3, z, y, x)
        In mm; used on vertebrae but not on the sacrum, and where they are known: NaN stands for an unknown one.
    ribs : Tensor (batch, z, y, x), int64
        0 or 1; `UNKNOWN` counts for nothing.
    """
    sacrum = levels == VERTEBRAE
    vertebra = (levels > 0) & (levels < VERTEBRAE)
    drawn = levels <= VERTEBRAE
    mask = torch.where(drawn, vertebra + 2 * sacrum, UNKNOWN)
    loss = dice_cross_entropy(answer[:, MASK], mask, UNKNOWN) + _bone_loss(answer, levels)
    aims = offsets.nan_to_num() / OFFSET_UNIT_MM
    error = functional.smooth_l1_loss(answer[:, OFFSET].float(), aims, reduction="none", beta=OFFSET_BETA)
    loss = loss + _mean(error.sum(dim=1), vertebra & offsets.isfinite().all(dim=1))
    if answer.shape[1] > OFFSET.stop:
        log_probabilities = answer[:, LEVELS].float().log_softmax(dim=1)
        numbered = drawn & (levels > 0)
        target = torch.where(numbered, levels - 1, 0)
        loss = loss + _mean(-log_probabilities.gather(1, target[:, None])[:, 0], numbered)
        rib = answer[:, RIB].float()
        loss = loss + dice_cross_entropy(torch.cat([torch.zeros_like(rib), rib], dim=1), ribs, UNKNOWN)
    return loss


def _bone_loss(answer: Tensor, levels: Tensor) -> Tensor:
    """Return how wrong the kind of what is taken for bone is, where it is known and what is bone is not.

    A mean over the bone, by its probability: whether there is bone is not learned from this.
    """
    log_probabilities = answer[:, MASK].float().log_softmax(dim=1)
    bone = log_probabilities[:, 1:].logsumexp(dim=1)
    weights = bone.detach().exp()
    loss = torch.zeros((), device=answer.device)
    for code, channel in ((VERTEBRA_IF_BONE, 1), (SACRUM_IF_BONE, 2)):
        share = torch.where(levels == code, weights, 0.0)
        surprise = torch.where(levels == code, bone - log_probabilities[:, channel], 0.0)
        loss = loss + (share * surprise).sum() / share.sum().clamp(min=1.0)
    if answer.shape[1] > OFFSET.stop:
        share = torch.where(levels == SACRUM_IF_BONE, weights, 0.0)
        surprise = -answer[:, LEVELS].float().log_softmax(dim=1)[:, VERTEBRAE - 1]
        loss = loss + (share * surprise).sum() / share.sum().clamp(min=1.0)
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
