"""The losses: mask against a plain implementation with one-hot volumes; offsets, levels and ribs each on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segmamba.networks.spine_mamba import LEVELS, MASK, OFFSET, RIB
from segmamba.training.losses import SACRUM_IF_BONE, UNKNOWN, VERTEBRA_IF_BONE, dice_cross_entropy, vertebra_loss

CLASSES = 5
SACRUM = 26
CERTAIN = 40.0
both_stages = pytest.mark.parametrize("channels", [33, 6])


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


def one_hot(values: torch.Tensor, classes: int) -> torch.Tensor:
    """Return certain logits (batch, classes, z, y, x)."""
    return CERTAIN * torch.nn.functional.one_hot(values, classes).movedim(-1, 1).float()


def spine() -> tuple[torch.Tensor, torch.Tensor]:
    """Return levels with L4, L5 and the sacrum, and random offsets in mm."""
    levels = torch.zeros((2, 6, 5, 4), dtype=torch.int64)
    levels[:, 4, 1:4], levels[:, 2, 1:4], levels[0, 0, 1:4] = 23, 24, SACRUM
    return levels, 15 * torch.randn((2, 3, 6, 5, 4), generator=torch.Generator().manual_seed(0))


def perfect(levels: torch.Tensor, offsets: torch.Tensor, channels: int) -> torch.Tensor:
    """Return the answer that is right everywhere; where there is no vertebra, offsets and levels are whatever."""
    answer = torch.zeros((len(levels), channels, *levels.shape[1:]))
    answer[:, MASK] = one_hot((levels > 0).long() + (levels == SACRUM), 3)
    answer[:, OFFSET] = offsets / 20
    if channels == 33:
        answer[:, LEVELS] = one_hot((levels - 1).clamp(min=0), 26)
        answer[:, RIB] = torch.where(ribs_of(levels) > 0, CERTAIN, -CERTAIN)[:, None]
    return answer


def ribs_of(levels: torch.Tensor) -> torch.Tensor:
    """Return ribs (batch, z, y, x) in the background, at one side."""
    ribs = (levels == 0).long()
    ribs[..., 1:] = 0
    return ribs


def loss_of(answer: torch.Tensor, levels: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    return vertebra_loss(answer, levels, offsets, ribs_of(levels))


@both_stages
def test_a_perfect_answer_costs_nothing(channels: int) -> None:
    levels, offsets = spine()
    assert loss_of(perfect(levels, offsets, channels), levels, offsets).item() == pytest.approx(0, abs=1e-5)


@both_stages
def test_a_wrong_mask_costs_the_loss_of_the_mask(channels: int) -> None:
    levels, offsets = spine()
    answer = perfect(levels, offsets, channels)
    answer[:, MASK] = answer[:, MASK].roll(1, dims=1)
    target = (levels > 0).long() + (levels == SACRUM)
    expected = dice_cross_entropy(answer[:, MASK], target).item()
    assert expected > CERTAIN
    assert loss_of(answer, levels, offsets).item() == pytest.approx(expected)


@both_stages
@pytest.mark.parametrize("level", [23, SACRUM])
def test_the_mask_tells_sacrum_from_vertebra(channels: int, level: int) -> None:
    levels, offsets = spine()
    answer = perfect(levels, offsets, channels)
    swapped = answer.clone()
    swapped[:, 1], swapped[:, 2] = answer[:, 2], answer[:, 1]
    answer[:, MASK] = torch.where((levels == level)[:, None], swapped[:, MASK], answer[:, MASK])
    assert loss_of(answer, levels, offsets).item() > 1


@both_stages
def test_a_wrong_offset_costs_its_length_less_half_a_millimetre_an_axis(channels: int) -> None:
    levels, offsets = spine()
    wrong = perfect(levels, offsets + 20.0, channels)
    assert loss_of(wrong, levels, offsets).item() == pytest.approx(3 * (1 - 0.5 / 20), abs=1e-4)
    near = perfect(levels, offsets + 0.5, channels)
    assert loss_of(near, levels, offsets).item() == pytest.approx(3 * 0.5 * 0.5**2 / 20, abs=1e-4)


@both_stages
def test_the_sacrum_and_the_background_have_no_loss_of_offsets(channels: int) -> None:
    levels, offsets = spine()
    answer = perfect(levels, offsets, channels)
    elsewhere = ((levels == 0) | (levels == SACRUM))[:, None]
    answer[:, OFFSET] += torch.where(elsewhere, 1000.0, 0.0)
    assert loss_of(answer, levels, offsets).item() == pytest.approx(0, abs=1e-5)


def test_a_wrong_level_costs_its_cross_entropy_on_all_levels_and_the_sacrum() -> None:
    levels, offsets = spine()
    for level in (23, 24, SACRUM):
        answer = perfect(levels, offsets, 33)
        answer[:, LEVELS] = torch.where((levels == level)[:, None], one_hot(0 * levels, 26), answer[:, LEVELS])
        share = (levels == level).sum() / (levels > 0).sum()
        assert loss_of(answer, levels, offsets).item() == pytest.approx(CERTAIN * share.item())


def test_levels_of_the_background_cost_nothing() -> None:
    levels, offsets = spine()
    answer = perfect(levels, offsets, 33)
    answer[:, LEVELS] = torch.where((levels == 0)[:, None], 7.0 * torch.randn(2, 26, 6, 5, 4), answer[:, LEVELS])
    assert loss_of(answer, levels, offsets).item() == pytest.approx(0, abs=1e-5)


def test_a_missed_rib_costs_cross_entropy_and_dice() -> None:
    levels, offsets = spine()
    answer = perfect(levels, offsets, 33)
    answer[:, RIB] = -CERTAIN
    share = ribs_of(levels).float().mean().item()
    ribs = ribs_of(levels).sum().item()
    assert loss_of(answer, levels, offsets).item() == pytest.approx(CERTAIN * share + 1 - 1 / (ribs + 1), rel=1e-4)


@both_stages
def test_without_any_vertebra_only_mask_and_ribs_are_trained(channels: int) -> None:
    levels, offsets = spine()
    answer = torch.randn((2, channels, 6, 5, 4), generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = loss_of(answer, 0 * levels, offsets)
    (gradient,) = torch.autograd.grad(loss, answer)
    assert gradient.isfinite().all()
    assert gradient[:, MASK].any()
    assert not gradient[:, OFFSET].any()
    if channels == 33:
        assert not gradient[:, LEVELS].any()
        assert gradient[:, RIB].any()


@both_stages
def test_half_precision_answers_give_a_loss_in_single_precision(channels: int) -> None:
    levels, offsets = spine()
    answer = torch.randn((2, channels, 6, 5, 4), generator=torch.Generator().manual_seed(2)).bfloat16()
    loss = loss_of(answer, levels, offsets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_of(answer.float(), levels, offsets).item())


def test_voxels_to_ignore_change_neither_loss_nor_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (1, 4, 4, 4), generator=generator)
    labels[:, :, 2:] = 255
    logits = torch.randn((1, 2, 4, 4, 4), generator=generator, requires_grad=True)
    loss = dice_cross_entropy(logits, labels, ignore=255)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[..., 2:, :].abs().max() == 0
    torch.testing.assert_close(loss, dice_cross_entropy(logits[:, :, :, :2], labels[:, :, :2]))


@both_stages
def test_what_nobody_has_drawn_costs_nothing(channels: int) -> None:
    levels, offsets = spine()
    answer = perfect(levels, offsets, channels)
    unknown = levels.clone()
    unknown[:, :2] = UNKNOWN
    answer[:, :, :2] = torch.randn(answer[:, :, :2].shape, generator=torch.Generator().manual_seed(0))
    ribs = ribs_of(levels)
    ribs[:, :2] = UNKNOWN
    assert vertebra_loss(answer, unknown, offsets, ribs).item() == pytest.approx(0, abs=1e-4)


@both_stages
@pytest.mark.parametrize(("code", "right"), [(VERTEBRA_IF_BONE, 1), (SACRUM_IF_BONE, 2)])
def test_of_bone_in_a_known_place_only_the_kind_counts(channels: int, code: int, right: int) -> None:
    levels, offsets = spine()
    levels[:, :2] = code
    answer = perfect(levels.masked_fill(levels == code, 0), offsets, channels)

    def cost(kind: int) -> float:
        answer[:, MASK][:, :, :2] = -CERTAIN
        answer[:, MASK][:, kind, :2] = CERTAIN
        if channels == 33:
            answer[:, LEVELS][:, :, :2] = -CERTAIN
            answer[:, LEVELS][:, SACRUM - 1, :2] = CERTAIN
        return vertebra_loss(answer, levels, offsets, torch.full_like(levels, UNKNOWN)).item()

    background, vertebra, sacrum = (cost(kind) for kind in range(3))
    wrong = {1: sacrum, 2: vertebra}[right]
    assert background == pytest.approx({1: vertebra, 2: sacrum}[right], abs=1e-4)
    assert wrong > background + CERTAIN
