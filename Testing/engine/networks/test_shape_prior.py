"""The shape prior against the same sums written out plainly."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from segmamba.networks.shape_prior import HEADS, ClassTransformer, CrossUpdate, ShapePrior, resample
from segmamba.networks.shape_prior import _interpolation_weights as weights_of


def random(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Return a module whose parameters are none of their first values, which may hide what they do."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(
    ("given", "wanted", "columns"),
    [
        (2, 2, [[1, 0], [0, 1]]),
        (2, 4, [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]),
        (4, 2, [[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]]),
        (3, 1, [[2 / 7, 3 / 7, 2 / 7]]),
    ],
)
def test_interpolation_weights_are_triangles_of_the_coarser_cell(
    given: int, wanted: int, columns: list[list[float]]
) -> None:
    expected = torch.tensor(columns, dtype=torch.float32).T
    torch.testing.assert_close(weights_of(given, wanted, torch.device("cpu")), expected)


def test_resampling_treats_each_axis_with_its_own_size_and_keeps_the_type() -> None:
    volume = random(1, 2, 4, 3, 2).double()
    sizes = (2, 3, 4)
    expected = volume
    for axis, wanted in enumerate(sizes, start=2):
        weights = weights_of(volume.shape[axis], wanted, torch.device("cpu")).double()
        expected = torch.tensordot(expected, weights, dims=([axis], [0])).movedim(-1, axis)
    found = resample(volume, sizes)
    assert found.dtype == torch.float64 and found.shape == (1, 2, *sizes)
    torch.testing.assert_close(found, expected)
    assert resample(volume, (4, 3, 2)) is volume


def test_the_transformer_attends_class_by_class_with_a_bias_of_their_relation() -> None:
    classes, cells = 3, 6
    block = randomised(ClassTransformer(classes, cells))
    tokens = random(2, classes, cells)
    normed = block.norm1(tokens)
    query, key, value = block.query_key_value(normed).chunk(3, dim=-1)
    width = query.shape[-1] // HEADS
    mixed = torch.zeros_like(query)
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        scores = query[..., part] @ key[..., part].mT / math.sqrt(width) + block.relation[head]
        mixed[..., part] = scores.softmax(dim=-1) @ value[..., part]
    attended = tokens + block.project(mixed)
    expected = attended + block.mlp(block.norm2(attended))
    torch.testing.assert_close(block(tokens), expected)


def test_the_cross_update_adds_the_maps_weighted_by_their_correlation_with_each_feature() -> None:
    update = CrossUpdate()
    with torch.no_grad():
        update.sharpness.fill_(3.0)
    features, prior = random(2, 4, 3, 4, 5), random(2, 3, 3, 4, 5)

    def standardised(maps: torch.Tensor) -> torch.Tensor:
        flat = maps.flatten(2)
        return functional.layer_norm(flat, flat.shape[2:])

    correlation = standardised(features) @ standardised(prior).mT / (3 * 4 * 5)
    assert correlation.abs().max() <= 1
    taken = (3.0 * correlation).softmax(dim=-1) @ prior.flatten(2)
    torch.testing.assert_close(update(features, prior), features + taken.view_as(features))
    half = update(features.bfloat16(), prior.bfloat16())
    assert half.dtype == torch.bfloat16


def test_the_sharpness_begins_where_one_class_can_be_singled_out() -> None:
    assert CrossUpdate().sharpness.item() == 8.0


def test_skips_are_refined_from_coarse_to_fine_with_a_prior_that_learns_from_them() -> None:
    module = randomised(ShapePrior((5, 4, 3), classes=2, grid=(2, 3, 2)))
    skips = [random(2, 5, 2, 3, 2), random(2, 4, 4, 6, 4), random(2, 3, 8, 12, 8)]
    prior = module.prior.repeat(2, 1, 1, 1, 1)
    expected = []
    for level, skip in enumerate(skips):
        tokens = resample(prior, (2, 3, 2)).reshape(2, 2, 12)
        updated = tokens
        for block in module.self_update:
            updated = block(updated)
        change = (updated - tokens).reshape(2, 2, 2, 3, 2)
        size = skip.shape[2:]
        prior = resample(prior, size) + resample(change, size)
        expected.append(module.cross_updates[level](skip, prior))
        if level < 2:
            prior = prior + module.refresh[level](expected[-1])
    found = module(skips)
    assert len(found) == 3 and len(module.refresh) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_prior_begins_small_and_relations_begin_at_nothing() -> None:
    torch.manual_seed(0)
    module = ShapePrior((4,), classes=3, grid=(4, 4, 4))
    assert module.prior.std().item() == pytest.approx(0.02, rel=0.2)
    assert module.prior.shape == (1, 3, 4, 4, 4)
    assert all(not block.relation.any() for block in module.self_update)
