"""Connected components from runs are those that scipy finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from segmamba.utils.runs import runs_of


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_components_are_those_of_scipy(seed: int, corners: bool) -> None:
    random = np.random.default_rng(seed)
    mask = random.random(random.integers(1, 9, 3)) < random.random()
    numbers, count = ndimage.label(mask, np.ones((3, 3, 3)) if corners else None)
    runs = runs_of(mask, corners)
    voxels = np.flatnonzero(mask)
    np.testing.assert_array_equal(runs.numbers(voxels), numbers.ravel()[voxels] - 1)
    np.testing.assert_array_equal(runs.sizes, np.bincount(numbers.ravel(), minlength=count + 1)[1:])


def test_the_voxels_of_chosen_components_come_together_and_one_by_one() -> None:
    random = np.random.default_rng(0)
    numbers, count = ndimage.label(random.random((6, 7, 8)) < 0.2)
    chosen = random.random(count) < 0.5
    runs = runs_of(numbers > 0)
    expected = [np.flatnonzero(numbers == number + 1) for number in np.flatnonzero(chosen)]
    assert len(expected) > 3
    np.testing.assert_array_equal(runs.voxels(chosen), np.sort(np.concatenate(expected)))
    for found, wanted in zip(runs.each(chosen), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("seed", range(10))
def test_components_at_the_border_are_told_from_those_within(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random(random.integers(1, 9, 3)) < 0.3
    numbers, count = ndimage.label(mask)
    inner = np.zeros(mask.shape, bool)
    inner[1:-1, 1:-1, 1:-1] = True
    expected = np.isin(np.arange(1, count + 1), numbers[~inner])
    np.testing.assert_array_equal(runs_of(mask).at_border(mask.shape), expected)


def test_a_mask_without_voxels_has_no_components() -> None:
    runs = runs_of(np.zeros((2, 3, 4), bool))
    assert not len(runs.sizes) and not list(runs.each(np.zeros(0, bool))) and not len(runs.voxels(np.zeros(0, bool)))
