"""Invented courses of the large bowel: other ones each time, within the room that there is, in one piece."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import small_bowel
from scipy import ndimage

from segmamba.training.colorectal.centreline import lengths_along
from segmamba.training.colorectal.course import KEPT_MM, RADII_MM, _tube, random_course
from segmamba.training.colorectal.label_maps import bowel_arrays
from segmamba.training.colorectal.labels import LARGE, MESENTERY
from segmamba.training.synthesis.tissue_labels import AIR, COLON, LIVER, SMALL_BOWEL, SOFT, SPACING, VERTEBRAE


@pytest.fixture(scope="module")
def cavity() -> np.ndarray:
    return ndimage.binary_erosion(small_bowel.tissues() != AIR, iterations=4)


@pytest.fixture(scope="module")
def courses(cavity: np.ndarray) -> list[np.ndarray]:
    return [random_course(small_bowel.tissues(), cavity, np.random.default_rng(seed)) for seed in range(4)]


def lengths_of(bowel: np.ndarray) -> np.ndarray:
    return lengths_along(bowel, ndimage.distance_transform_edt(bowel, sampling=SPACING), SPACING)


def test_the_course_is_another_one_for_each_seed_and_the_same_for_one(
    courses: list[np.ndarray], cavity: np.ndarray
) -> None:
    masks = [small_bowel.tissues() == COLON, *(tissues == COLON for tissues in courses)]
    for number, one in enumerate(masks):
        for other in masks[:number]:
            assert 2 * (one & other).sum() / (one.sum() + other.sum()) < 0.9
    again = random_course(small_bowel.tissues(), cavity, np.random.default_rng(0))
    np.testing.assert_array_equal(again, courses[0])


def test_it_takes_the_place_of_soft_tissue_and_small_bowel_only(courses: list[np.ndarray], cavity: np.ndarray) -> None:
    before = small_bowel.tissues()
    for tissues in courses:
        for organ in (LIVER, VERTEBRAE, AIR):
            np.testing.assert_array_equal(tissues == organ, before == organ)
        new = (tissues == COLON) & (before != COLON)
        assert set(np.unique(before[new])) <= {SOFT, SMALL_BOWEL}
        assert cavity[new].all()
        assert set(np.unique(tissues[before == COLON])) <= {COLON, SOFT}


def test_it_is_a_long_bowel_whose_lower_end_is_what_it_was(courses: list[np.ndarray]) -> None:
    before = small_bowel.tissues() == COLON
    lowest = before & (lengths_of(before) <= KEPT_MM)
    for tissues in courses:
        bowel = tissues == COLON
        assert bowel[lowest].all()
        pieces, _ = ndimage.label(bowel, np.ones((3, 3, 3)))
        assert np.bincount(pieces[bowel]).max() > 0.8 * bowel.sum()
        assert np.nanmax(lengths_of(bowel)) > 0.6 * small_bowel.length_mm()


def test_loops_that_meet_keep_a_gap() -> None:
    room = np.ones((40, 40, 60), bool)
    there = np.stack([np.full(100, 20.0), np.full(100, 14.0), np.linspace(5, 55, 100)], axis=1)
    back = there[::-1] + (0.0, 10.0, 0.0)  # closer than both radii
    tube = _tube(np.concatenate([there, back]), np.full(200, 10.0), room, np.random.default_rng(0))
    assert not tube[20, 12:27, 10].all()
    assert tube[20, 14, 10:50].all() and tube[20, 24, 10:50].all()
    deepest = ndimage.distance_transform_edt(tube, sampling=SPACING).max()
    assert deepest < min(RADII_MM[1], 13.0)


def test_a_map_can_be_made_of_it(cavity: np.ndarray) -> None:
    real, other = (
        bowel_arrays(small_bowel.tissues(), np.random.default_rng(3), new_course=how) for how in (False, True)
    )
    assert not np.array_equal(real.tissues, other.tissues)
    assert len(other.seeds) > 50
    assert other.centreline_index[np.isin(other.tissues, LARGE)].max() > 20
    left = np.isin(real.tissues, LARGE) & ~np.isin(other.tissues, (*LARGE, SMALL_BOWEL))
    assert left.any() and (other.tissues[left] == MESENTERY).all()  # no lump where the bowel was
