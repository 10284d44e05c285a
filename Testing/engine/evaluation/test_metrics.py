"""Overlap, distances and identification on shapes whose figures are known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.phantoms import OBLIQUE, VERTEBRAE, true_labels

from segmamba.evaluation.metrics import (
    centroids,
    confusion_matrix,
    dice_by_label,
    dice_foreground,
    dice_from_confusion,
    identified,
    surface_distances,
)


def ball(radius: float, spacing: tuple[float, float, float], centre: tuple[float, float, float]) -> np.ndarray:
    """Return a ball in a box of 60 mm; ``centre`` in mm."""
    index = np.meshgrid(*(np.arange(int(60 / step)) * step for step in spacing), indexing="ij")
    return sum((place - middle) ** 2 for place, middle in zip(index, centre, strict=True)) <= radius**2


def test_dice_is_two_overlaps_by_both_sizes() -> None:
    reference = np.array([[[0, 1, 1, 2, 2]]])
    labels = np.array([[[1, 1, 0, 2, 2]]])
    assert dice_by_label(labels, reference) == {1: 0.5, 2: 1.0}
    assert dice_foreground(labels, reference) == 0.75
    assert dice_foreground(0 * labels, 0 * reference) == 0
    assert dice_by_label(0 * labels, reference) == {1: 0, 2: 0}


def test_the_table_counts_pairs_of_values() -> None:
    table = confusion_matrix(np.array([0, 1, 2, 2, 0], np.uint8), np.array([0, 1, 1, 255, 255], np.uint8))
    assert {(row, column): table[row, column] for row, column in np.argwhere(table)} == {
        (1, 1): 1,
        (1, 2): 1,
        (255, 2): 1,
        (255, 0): 1,
    }
    assert dice_from_confusion(table, 1, 2) == 0.5
    assert dice_from_confusion(table, 7, 8) == 0


def test_parallel_plates_are_as_far_apart_as_their_slices() -> None:
    first, second = np.zeros((2, 20, 8, 8), dtype=bool)
    first[4], second[7] = True, True
    assert surface_distances(first, second, (2.5, 1.0, 1.0)) == (7.5, 7.5)
    assert surface_distances(first, second, (1.0, 9.0, 9.0)) == (3.0, 3.0)


def test_the_average_is_over_both_surfaces_and_the_hausdorff_distance_is_the_worse_direction() -> None:
    first, second = np.zeros((2, 1, 1, 300), dtype=bool)
    first[..., 100] = True
    second[..., 100] = second[..., 110] = second[..., 111] = True
    # From ours 0; from theirs 0, 10 and 11 mm: 95% of the way from the lowest to the highest of three is 10.9.
    average, hausdorff = surface_distances(first, second, (1.0, 1.0, 1.0))
    assert average == pytest.approx(21 / 4)
    assert hausdorff == pytest.approx(10.9)
    assert surface_distances(second, first, (1.0, 1.0, 1.0)) == pytest.approx((average, hausdorff))


def test_a_shifted_cube_is_off_by_its_shift_at_two_faces() -> None:
    first, second = np.zeros((2, 20, 20, 20), dtype=bool)
    first[5:10, 5:10, 5:10], second[5:10, 5:10, 6:11] = True, True
    # Each cube's surface has 98 voxels. Of ours, the 25 of the outer face are 1 mm away, and those 9 of the inner
    # face that lie in the other cube's inside are too; the others are shared. The same for theirs.
    average, hausdorff = surface_distances(first, second, (3.0, 3.0, 1.0))
    assert average == pytest.approx((25 + 9) / 98)
    assert hausdorff == 1.0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)])
def test_concentric_balls_are_as_far_apart_as_their_radii(spacing: tuple[float, float, float]) -> None:
    small, large = (ball(radius, spacing, (30, 30, 30)) for radius in (12, 17))
    average, hausdorff = surface_distances(small, large, spacing)
    assert average == pytest.approx(5, abs=max(spacing) / 4)
    assert hausdorff == pytest.approx(5, abs=max(spacing))


def test_distances_agree_with_monai() -> None:
    metrics = pytest.importorskip("monai.metrics")
    import torch

    spacing = (2.5, 0.8, 1.1)
    first = ball(13, spacing, (30, 28, 33)) | ball(9, spacing, (44, 30, 30))
    second = ball(15, spacing, (27, 30, 30))
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (first, second)]
    average = metrics.compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=spacing)
    worst = metrics.compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
    assert surface_distances(first, second, spacing) == pytest.approx((float(average), float(worst)), rel=1e-4)


def test_centroids_are_places_in_the_patient_whatever_the_grid() -> None:
    found = centroids(true_labels(OBLIQUE), OBLIQUE)
    assert found.keys() == VERTEBRAE.keys()
    for value, place in found.items():
        assert place == pytest.approx(VERTEBRAE[value], abs=0.5)


def test_a_vertebra_is_identified_within_20_mm_and_if_no_other_is_nearer() -> None:
    reference = {20: np.array([0.0, 0, 30]), 21: np.array([0.0, 0, 0])}
    assert identified(20, {20: np.array([0.0, 0, 44])}, reference)
    assert not identified(20, {20: np.array([0.0, 0, 50.5])}, reference)
    # 19 mm away, and 11 mm from the next one.
    assert not identified(20, {20: np.array([0.0, 0, 11])}, reference)
    assert not identified(20, {21: np.array([0.0, 0, 30])}, reference)
