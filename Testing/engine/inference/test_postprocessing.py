"""Cleaning up: what is no column goes, islands and holes are mended, and the rest stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.phantoms import OBLIQUE, STRAIGHT, positions, true_labels

from segmamba.inference.postprocessing import RULES, postprocess
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import Postprocessing

GRIDS = {"straight": STRAIGHT, "oblique": OBLIQUE}
LONG = Geometry((60, 60, 130), (3.0, 3.0, 3.0), (-90.0, -90.0, 0.0), STRAIGHT.direction)


def ball(geometry: Geometry, centre: tuple[float, float, float], radius: float) -> np.ndarray:
    return np.linalg.norm(positions(geometry) - centre, axis=-1) < radius


def ct(geometry: Geometry) -> Volume:
    """A CT of water."""
    return Volume(np.zeros(geometry.size[::-1], np.int16), geometry)


def clean(labels: np.ndarray, geometry: Geometry) -> np.ndarray:
    return postprocess(labels, ct(geometry), Postprocessing.LARGEST_COLUMN)


@pytest.mark.parametrize("name", GRIDS)
def test_a_clean_column_is_left_alone(name: str) -> None:
    labels = true_labels(GRIDS[name])
    np.testing.assert_array_equal(clean(labels, GRIDS[name]), labels)


def test_the_input_is_not_changed() -> None:
    labels = true_labels(STRAIGHT)
    labels[0, 0, 0] = 20
    before = labels.copy()
    assert clean(labels, STRAIGHT)[0, 0, 0] == 0
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("name", GRIDS)
def test_a_big_piece_beside_the_column_is_dropped(name: str) -> None:
    truth = true_labels(GRIDS[name])
    labels = truth.copy()
    labels[ball(GRIDS[name], (-42.0, -35.0, 100.0), 13.0)] = 21
    assert np.count_nonzero(labels) > np.count_nonzero(truth)
    np.testing.assert_array_equal(clean(labels, GRIDS[name]), truth)


def test_small_specks_are_dropped() -> None:
    truth = true_labels(STRAIGHT)
    labels = truth.copy()
    labels[ball(STRAIGHT, (5.0, 5.0, 160.0), 5.0)] = 20
    np.testing.assert_array_equal(clean(labels, STRAIGHT), truth)


def test_a_curved_column_in_pieces_is_kept() -> None:
    labels = np.zeros(LONG.size[::-1], np.uint8)
    for number in range(10):
        angle = np.radians(-50 + 11 * number)
        centre = (0.0, 40 - 190 * (1 - np.cos(angle)), 190 + 190 * np.sin(angle))
        labels[ball(LONG, centre, 14.0)] = 10 + number
    truth = labels.copy()
    labels[ball(LONG, (70.0, 0.0, 190.0), 13.0)] = 5
    np.testing.assert_array_equal(clean(labels, LONG), truth)


def test_an_island_goes_to_the_label_around_it() -> None:
    truth = true_labels(STRAIGHT)
    labels = truth.copy()
    labels[ball(STRAIGHT, (4.0, 8.0, 99.0), 4.0)] = 20
    np.testing.assert_array_equal(clean(labels, STRAIGHT), truth)


def test_a_speck_of_a_label_of_its_own_goes_to_the_label_around_it() -> None:
    truth = true_labels(STRAIGHT)
    labels = truth.copy()
    labels[ball(STRAIGHT, (4.0, 8.0, 99.0), 4.0)] = 3
    np.testing.assert_array_equal(clean(labels, STRAIGHT), truth)


def test_no_label_is_left_with_nothing_but_a_speck_beside_another_speck() -> None:
    truth = true_labels(STRAIGHT)
    labels = truth.copy()
    near = ball(STRAIGHT, (4.0, 8.0, 99.0), 6.0)
    first_half = positions(STRAIGHT)[..., 0] < 4
    labels[near & first_half] = 3
    labels[near & ~first_half] = 4
    np.testing.assert_array_equal(clean(labels, STRAIGHT), truth)


def test_an_arch_without_pedicles_keeps_its_label() -> None:
    labels = true_labels(STRAIGHT)
    labels[(np.abs(positions(STRAIGHT)[..., 1] - 14) < 2) & (labels == 21)] = 0
    cleaned = clean(labels, STRAIGHT)
    np.testing.assert_array_equal(cleaned, labels)
    assert (cleaned == 21)[:, positions(STRAIGHT)[0, :, 0, 1] > 16].sum() * STRAIGHT.voxel_volume > 1000


def test_a_small_hole_is_filled_and_a_large_one_is_not() -> None:
    labels = true_labels(STRAIGHT)
    labels[ball(STRAIGHT, (9.0, 4.0, 126.0), 3.5)] = 0
    large = ball(STRAIGHT, (4.0, 8.0, 99.0), 9.0)
    labels[large] = 0
    cleaned = clean(labels, STRAIGHT)
    assert np.all(cleaned[ball(STRAIGHT, (9.0, 4.0, 126.0), 3.5)] == 20)
    assert not cleaned[large].any()


def test_an_empty_result_stays_empty() -> None:
    assert not clean(np.zeros((5, 6, 7), np.uint8), STRAIGHT).any()


def test_without_a_rule_nothing_changes() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    np.testing.assert_array_equal(postprocess(labels, ct(STRAIGHT), Postprocessing.NONE), labels)


def test_every_rule_that_a_manifest_can_name_is_there() -> None:
    assert set(RULES) == set(Postprocessing) - {Postprocessing.NONE}


@pytest.mark.parametrize("name", GRIDS)
def test_bowel_keeps_tumours_from_a_fifth_of_a_millilitre_and_loses_smaller_pieces_and_holes(name: str) -> None:
    geometry = GRIDS[name]
    truth = np.zeros(geometry.size[::-1], np.uint8)
    truth[ball(geometry, (5.0, -10.0, 100.0), 35.0)] = 2
    truth[ball(geometry, (5.0, -10.0, 118.0), 5.5)] = 1  # 0.7 mL in the colon
    labels = truth.copy()
    labels[ball(geometry, (5.0, -10.0, 85.0), 3.0)] = 1  # 0.1 mL in the colon
    labels[ball(geometry, (5.0, -10.0, 150.0), 3.0)] = 1  # 0.1 mL on its own
    labels[ball(geometry, (20.0, -10.0, 100.0), 3.0)] = 0  # a bubble
    cleaned = postprocess(labels, ct(geometry), Postprocessing.BOWEL)
    assert (truth == 1).any() and not np.array_equal(labels, truth)
    np.testing.assert_array_equal(cleaned, truth)


def test_bowel_in_pieces_far_from_each_other_is_kept() -> None:
    labels = np.zeros(STRAIGHT.size[::-1], np.uint8)
    labels[ball(STRAIGHT, (-25.0, -30.0, 60.0), 8.0)] = 2
    labels[ball(STRAIGHT, (30.0, 15.0, 150.0), 8.0)] = 3
    np.testing.assert_array_equal(postprocess(labels, ct(STRAIGHT), Postprocessing.BOWEL), labels)


@pytest.mark.parametrize(("air", "kept"), [(-850, False), (-1000, True)])
def test_bowel_in_the_lungs_is_dropped_but_not_bowel_full_of_gas(air: int, kept: bool) -> None:
    volume = ct(LONG)
    volume.array[ball(LONG, (0.0, 0.0, 250.0), 60.0)] = air  # 900 mL
    labels = np.zeros(LONG.size[::-1], np.uint8)
    labels[ball(LONG, (10.0, 0.0, 240.0), 30.0)] = 2
    labels[ball(LONG, (0.0, 0.0, 60.0), 30.0)] = 2
    cleaned = postprocess(labels, volume, Postprocessing.BOWEL)
    assert (labels[60:] > 0).any() and (cleaned[60:] > 0).any() == kept
    np.testing.assert_array_equal(cleaned[:60], labels[:60])


def test_bowel_beside_the_lungs_is_kept_whole() -> None:
    volume = ct(LONG)
    volume.array[ball(LONG, (0.0, 0.0, 250.0), 60.0)] = -850
    labels = np.zeros(LONG.size[::-1], np.uint8)
    labels[ball(LONG, (0.0, 0.0, 180.0), 30.0)] = 2
    assert ((labels > 0) & (volume.array < -500)).any()
    np.testing.assert_array_equal(postprocess(labels, volume, Postprocessing.BOWEL), labels)
