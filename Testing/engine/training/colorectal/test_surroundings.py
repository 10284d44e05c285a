"""People of whom the bowel and the skin are labelled get the surroundings of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import small_bowel, small_spine

from segmamba.errors import InputError
from segmamba.training.colorectal.label_maps import bowel_arrays, prepare
from segmamba.training.colorectal.labels import MESENTERY, RECTUM
from segmamba.training.colorectal.surroundings import _filled, _give_way, _tall_enough, partial_tissue_map
from segmamba.training.synthesis.tissue_labels import (
    AIR,
    COLON,
    FAT,
    KIDNEY,
    LIVER,
    OUTSIDE,
    SMALL_BOWEL,
    SOFT,
    VERTEBRAE,
    organ,
)

COLON_CLASS, SMALL_BOWEL_CLASS = 20, 18


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The labels of the small bowel without anything else, its lowest part given as rectum."""
    tissues = small_bowel.tissues()
    organs = np.zeros(tissues.shape, np.uint8)
    organs[tissues == COLON] = COLON_CLASS
    shell = tissues == SMALL_BOWEL
    organs[shell] = SMALL_BOWEL_CLASS
    organs[14:30, 12:18, 44:56] = 0  # a surface, not a solid
    parts = np.where(tissues == COLON, 5, 0).astype(np.uint8)
    parts[:20][tissues[:20] == COLON] = 9
    small_spine.write(tmp_path / "who_organs.nii.gz", organs)
    small_spine.write(tmp_path / "who_colonparts.nii.gz", parts)
    small_spine.write(tmp_path / "who_body.nii.gz", (tissues != AIR).astype(np.uint8))
    return tmp_path


def test_what_is_labelled_stays_and_the_rest_is_lent(folder: Path) -> None:
    donor = small_bowel.tissues()
    tissues = partial_tissue_map(folder, "who", [donor], np.random.default_rng(0))
    own = small_bowel.tissues()
    assert ((tissues == COLON) | (tissues == RECTUM))[own == COLON].all()
    assert (tissues == RECTUM).sum() == (own[:20] == COLON).sum()
    assert not np.isin(tissues, (COLON, RECTUM))[own != COLON].any()
    assert (tissues == SMALL_BOWEL)[20, 15, 50]  # filled
    for lent in (LIVER, VERTEBRAE):
        place = np.argwhere(tissues == lent).mean(axis=0)
        assert np.abs(place - np.argwhere(own == lent).mean(axis=0)).max() < 8
    assert (tissues == AIR)[own == AIR].all() and not (tissues == AIR)[own != AIR].any()
    assert (tissues == FAT).any()
    whole = np.ones((30, 120, 120), bool)
    bowel = np.where(np.mgrid[:30, :120, :120][1] == 60, COLON, 0)
    filled = _filled(bowel, whole, 10.0)
    assert filled[15, 1, 60] == FAT and filled[15, 40, 60] == MESENTERY and filled[15, 100, 60] == SOFT  # the back


def test_lent_organs_give_way_to_the_bowel_on_its_side() -> None:
    bowel = np.zeros((9, 9, 9), bool)
    bowel[4, 4, 4] = True
    for label, gone in ((organ(21), np.s_[4:, 4, 4]), (LIVER, np.s_[:5, 4, 4]), (KIDNEY, np.s_[4, :5, 4])):
        lent = np.full(bowel.shape, label, np.uint8)
        expected = lent.copy()
        expected[gone] = AIR
        _give_way(lent, bowel)
        np.testing.assert_array_equal(lent, expected)
    bone = np.full(bowel.shape, VERTEBRAE, np.uint8)
    bone[5:] = OUTSIDE
    bowel[6, 4, 4] = True
    _give_way(bone, bowel)
    assert (bone == AIR).sum() == 1 and bone[4, 4, 4] == AIR  # the bowel's place, and nothing beyond the donor


def test_donors_reach_as_far_up_as_the_bowel_or_the_highest_is_taken() -> None:
    own = np.zeros((40, 1, 1), np.uint8)
    own[10:30] = COLON
    donors = []
    for top in (14, 26, 38):
        donor = np.where(np.arange(40) <= top, LIVER, OUTSIDE).astype(np.uint8)[:, None, None]
        donor[5:9] = COLON  # its lower end matches the own one
        donors.append(donor)
    assert _tall_enough(own, donors) == donors[1:]
    assert _tall_enough(own, donors[:1]) == donors[:1]
    own[30:] = COLON
    assert _tall_enough(own, donors[:2]) == donors[1:2]


def test_a_labelled_rectum_is_kept_but_a_new_course_has_a_new_one(folder: Path) -> None:
    tissues = partial_tissue_map(folder, "who", [small_bowel.tissues()], np.random.default_rng(0))
    real = bowel_arrays(tissues, np.random.default_rng(0))
    top = np.flatnonzero((real.tissues == RECTUM).any(axis=(1, 2))).max()
    assert top == 19 or (real.tissues == RECTUM).sum() == (tissues == RECTUM).sum()
    other = bowel_arrays(tissues, np.random.default_rng(0), new_course=True)
    assert (other.tissues == RECTUM).any()
    assert (other.tissues == RECTUM).sum() != (real.tissues == RECTUM).sum()


def test_people_with_and_without_vertebrae_are_prepared_together_or_one_by_one(folder: Path) -> None:
    small_spine.write_subjects(folder)
    classes = small_spine.organs()
    classes[4:56, 12:22, 10:40] = COLON_CLASS
    small_spine.write(folder / "whole_organs.nii.gz", classes)
    assert prepare(folder, folder / "maps") == ["who", "whole"]
    assert prepare(folder, folder / "one", only=["who"]) == ["who"]
    together, alone = (np.load(folder / name / "who_0.npz")["tissues"] for name in ("maps", "one"))
    np.testing.assert_array_equal(together, alone)


def test_other_grids_and_people_without_a_colon_are_refused(folder: Path) -> None:
    small_spine.write(folder / "who_body.nii.gz", np.eye(4, dtype=np.uint8)[None].repeat(4, axis=0))
    with pytest.raises(InputError, match="different grids"):
        partial_tissue_map(folder, "who", [], np.random.default_rng(0))
    shape = small_bowel.SHAPE
    for suffix, value in (("organs", 5), ("colonparts", 5), ("body", 1)):
        labels = np.zeros(shape, np.uint8)
        labels[10:60, 20:40, 20:40] = value
        small_spine.write(folder / f"who_{suffix}.nii.gz", labels)
    with pytest.raises(InputError, match="no colon"):
        partial_tissue_map(folder, "who", [], np.random.default_rng(0))
