"""The loss against a plain implementation with one-hot volumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segmamba.training.losses import dice_cross_entropy

CLASSES = 5


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((2, CLASSES, 4, 5, 6), generator=generator)
    labels = torch.randint(0, CLASSES, (2, 4, 5, 6), generator=generator)
    labels[labels == 3] = 0  # a class that is not there
    return logits, labels


def plain_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Voxel by class tables in double precision: the definition, step by step."""
    table = np.moveaxis(logits.astype(np.float64), 1, -1).reshape(-1, CLASSES)
    one_hot = np.eye(CLASSES)[labels.ravel()]
    exponentials = np.exp(table - table.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    cross_entropy = -np.log(probabilities[one_hot > 0]).mean()
    dice = []
    for label in np.unique(labels[labels > 0]):
        ours, theirs = probabilities[:, label], one_hot[:, label]
        dice.append((2 * (ours * theirs).sum() + 1) / (ours.sum() + theirs.sum() + 1))
    return float(cross_entropy + 1 - np.mean(dice))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_equals_one_hot_dice_and_cross_entropy(seed: int) -> None:
    logits, labels = example(seed)
    assert dice_cross_entropy(logits, labels).item() == pytest.approx(plain_loss(logits.numpy(), labels.numpy()))


def test_a_perfect_prediction_costs_nothing() -> None:
    _, labels = example()
    logits = 50 * torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).float()
    assert dice_cross_entropy(logits, labels).item() == pytest.approx(0, abs=1e-5)


def test_half_precision_logits_are_summed_in_single_precision() -> None:
    logits, labels = example()
    rounded = logits.bfloat16()
    loss = dice_cross_entropy(rounded, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain_loss(rounded.float().numpy(), labels.numpy()))


def test_without_a_vertebra_only_the_cross_entropy_pulls() -> None:
    logits, labels = example()
    logits.requires_grad_()
    empty = torch.zeros_like(labels)
    loss = dice_cross_entropy(logits, empty)
    assert loss.item() == pytest.approx(1 + torch.nn.functional.cross_entropy(logits, empty).item())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert (gradient[:, 0] < 0).all()


def test_following_the_gradient_lowers_the_loss() -> None:
    logits, labels = example()
    logits.requires_grad_()
    before = dice_cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(before, logits)
    after = dice_cross_entropy(logits - 10 * gradient, labels)
    assert after < before
