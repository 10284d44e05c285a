"""Components of large masks, which ITK finds, are those of small ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from segmamba.utils import morphology
from segmamba.utils.arrays import indices_of, mean_index


@pytest.mark.parametrize("corners", [False, True])
def test_components_of_a_large_mask_have_the_numbers_of_those_of_a_small_one(
    corners: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(20, 25, 31)), 0.8)
    for mask in (noise > 0.15, noise[:, ::-1, 3:] > 0.25, noise > 9):
        small, count = morphology.connected_components(mask, corners)
        with monkeypatch.context() as patch:
            patch.setattr(morphology, "LARGE", 1)
            large, same = morphology.connected_components(mask, corners)
        assert same == count
        assert np.array_equal(large, small)


@pytest.mark.parametrize("seed", range(20))
def test_depth_and_cavities_are_those_of_scipy(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = ndimage.binary_dilation(random.random(random.integers(1, 25, 3)) < 0.05, iterations=1 + seed % 5)
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
    for distance in (0.3, 1.0, 2.0, float(np.sqrt(5)), 3.7):
        assert np.array_equal(morphology.further_inside(mask, distance), depth > distance)
    shell = mask & (depth < 2)
    assert np.array_equal(morphology.filled(shell), ndimage.binary_fill_holes(shell))


def test_only_small_holes_that_one_label_encloses_are_filled() -> None:
    labels = np.zeros((12, 30, 12), np.uint8)
    labels[1:11, 1:11, 1:11] = 3
    labels[4, 4, 4] = labels[7:9, 7:9, 7:9] = 0
    labels[1:11, 15:29, 1:11] = 4
    labels[5, 15:20, 5] = 0  # a tunnel that reaches the outside
    labels[5, 25, 5] = 3  # no background
    expected = labels.copy()
    expected[4, 4, 4] = 3
    morphology.fill_holes(labels, 7)
    assert np.array_equal(labels, expected)
    morphology.fill_holes(labels, 8)
    assert (labels[7:9, 7:9, 7:9] == 3).all()


@pytest.mark.parametrize("steps", [1, 3])
def test_a_mask_grows_through_faces_as_scipys_does(steps: int) -> None:
    mask = np.random.default_rng(2).random((9, 12, 11)) > 0.97
    assert np.array_equal(morphology.dilated(mask, steps), ndimage.binary_dilation(mask, iterations=steps))
    assert mask.mean() < 0.05


@pytest.mark.parametrize("part", [0.5, 0.7, 0.9, 1.0])
def test_holes_are_filled_as_by_scipy(part: float) -> None:
    mask = np.random.default_rng(0).random((9, 10, 11)) < part
    np.testing.assert_array_equal(morphology.filled(mask), ndimage.binary_fill_holes(mask))


def test_the_mean_index_is_that_of_the_voxels_of_a_part_of_an_array_too() -> None:
    mask = np.random.default_rng(0).random((9, 20, 300)) < 0.1
    for part in (mask, mask[1:7, ::2, 5:200], np.ones((300, 2, 3), bool)):
        np.testing.assert_allclose(mean_index(part), np.argwhere(part).mean(axis=0), rtol=1e-12)


def test_the_indices_of_what_is_there_are_those_of_the_whole_array() -> None:
    values = np.zeros((9, 20, 30), np.int16)
    assert all(not index.size for index in indices_of(values))
    values[3:5, 7, 2:9:2] = 4
    for given in (values, values > 0):
        for found, expected in zip(indices_of(given), np.nonzero(given), strict=True):
            np.testing.assert_array_equal(found, expected)
