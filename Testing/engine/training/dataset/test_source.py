"""Batches from cached cases."""

from __future__ import annotations

import numpy as np
import torch
from helpers.labelled_images import cached, image_of

from segmamba.training.dataset.cache import CachedCase
from segmamba.training.dataset.plan import IGNORED
from segmamba.training.dataset.source import CaseSource, cut

CPU = torch.device("cpu")
PATCH = (6, 6, 6)


def rare() -> CachedCase:
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[3, 25, 14] = 1
    return cached(np.zeros(labels.shape, np.float32), labels)


def test_a_part_of_each_batch_is_centred_on_a_structure() -> None:
    for share, expected in ((0.0, 0), (0.33, 1), (0.5, 2), (1.0, 4)):
        source = CaseSource([rare()], PATCH, (), CPU, share, augment=False)
        labels = torch.cat([source.batch(4).labels for _ in range(5)])
        found = (labels == 1).flatten(1).any(dim=1).reshape(5, 4).sum(dim=1)
        assert (found >= expected).all() and found.sum() < 5 * expected + 3


def test_each_structure_is_centred_on_as_often_however_small() -> None:
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[:, :, :10], labels[15, 15, 25] = 1, 2
    case = cached(np.zeros(labels.shape, np.float32), labels)
    case = CachedCase(**{**vars(case), "places": [np.argwhere(labels == value) for value in (1, 2)]})
    source = CaseSource([case], PATCH, (), CPU, 1.0, augment=False)
    found = torch.cat([source.batch(8).labels for _ in range(5)])
    assert 10 <= (found == 2).flatten(1).any(dim=1).sum() <= 30


def test_voxels_nobody_has_labelled_stay_marked_and_beyond_the_volume_is_background() -> None:
    image, labels = image_of(0)
    source = CaseSource([cached(image, np.full_like(labels, IGNORED))], PATCH, (), CPU, seed=3)
    found = torch.cat([source.batch(2).labels for _ in range(5)])
    assert set(found.unique().tolist()) == {0, IGNORED} and (found == IGNORED).float().mean() > 0.9


def test_a_source_that_begins_later_gives_the_same_batches() -> None:
    cases = [cached(*image_of(seed)) for seed in range(3)]
    whole = CaseSource(cases, PATCH, (2,), CPU, seed=5)
    batches = [whole.batch(2) for _ in range(6)]
    later = CaseSource(cases, PATCH, (2,), CPU, seed=5, first=4)
    for expected, found in zip(batches[4:], (later.batch(2), later.batch(2)), strict=True):
        assert torch.equal(expected.image, found.image) and torch.equal(expected.labels, found.labels)
    assert not torch.equal(batches[0].image, CaseSource(cases, PATCH, (2,), CPU, seed=6).batch(2).image)


def test_a_volume_smaller_than_the_patch_lies_in_its_middle() -> None:
    image, labels = image_of(0)
    source = CaseSource([cached(image, labels)], (16, 16, 16), (), CPU, augment=False)
    batch = source.batch(1)
    np.testing.assert_array_equal(batch.labels[0, 2:14, 2:14, 2:14], labels)
    assert batch.image[0, 0, :2].abs().max() == 0


def test_a_box_beyond_the_volume_holds_the_fill() -> None:
    volume = np.arange(8).reshape(2, 2, 2)
    np.testing.assert_array_equal(cut(volume, (1, 0, 0), (2, 1, 1), -1).ravel(), [4, -1])
    np.testing.assert_array_equal(cut(volume, (5, 0, 0), (1, 1, 1), -1).ravel(), [-1])
