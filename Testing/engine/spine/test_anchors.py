"""A level that is set: the vertebra there has it, and the others follow as the model says, not by a plain shift."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.simulated_answers import centroids, simulate

from segmamba.errors import InputError
from segmamba.spine.anchors import Anchor, Anchored, set_levels, set_levels_beyond
from segmamba.spine.decode import Column, decode
from segmamba.spine.fine import _extended
from segmamba.spine.hmm import Numbering, label_observations, label_with_anchors
from segmamba.spine.level_model import Observations
from segmamba.spine.levels import C1, C2, DISTANCES_MM, L1, L4, L5, L6, SACRUM, SACRUM_MM, T12, T13

SPACING = 2.0
WHOLE = list(range(C1, L5 + 1))


def seen(levels: list[int], claims: list[int], sacrum: bool = False, sureness: float = 0.8) -> Observations:
    """Return vertebrae on a straight line, as far apart as their levels say, and a network that claims others."""
    depth = np.r_[0.0, np.cumsum(DISTANCES_MM)]
    centres = np.array([[-depth[level - 1], 0.0, 0.0] for level in levels])
    shares = np.full((len(claims), SACRUM), (1 - sureness) / (SACRUM - 1))
    shares[np.arange(len(claims)), np.array(claims) - 1] = sureness
    below = centres[-1] - [SACRUM_MM, 0.0, 0.0] if sacrum else None
    count = len(levels)
    return Observations(
        np.log(shares), centres, np.full(count, 40.0), below, np.zeros(count, bool), np.full(count, np.nan), False
    )


def anchored(column: Observations, anchors: dict[int, int]) -> Numbering:
    return label_with_anchors(column, anchors, label_observations(column))


@pytest.mark.parametrize("by", [-4, -1, 1, 3])
def test_the_column_follows_one_level_however_far_the_network_is_off(by: int) -> None:
    claims = list(range(12, 20))
    levels = [level + by for level in claims]
    numbering = anchored(seen(levels, claims), {3: levels[3]})
    assert numbering.levels.tolist() == levels
    assert numbering.confidence[3] == pytest.approx(1)
    assert numbering.certain and numbering.reason == ""


def test_a_landmark_that_is_clear_stays_and_the_change_is_told_elsewhere() -> None:
    # From C1 to a sacrum, one vertebra fewer than usual; a person knows that the last one is L5.
    claims = WHOLE[:-1]
    column = seen(claims, claims, sacrum=True)
    assert label_observations(column).levels.tolist() == claims
    numbering = anchored(column, {len(claims) - 1: L5})
    assert numbering.levels[:7].tolist() == WHOLE[:7]
    assert numbering.levels[-1] == L5
    assert numbering.variants


def test_a_false_vertebra_below_l5_is_left_out_and_no_sixth_lumbar_one_made() -> None:
    column = seen([19, 20, 21, 22, 23, 24, 25], [18, 19, 20, 21, 22, 23, 24])
    top = column.centres[-1].copy()
    column.volumes[-1], column.centres[-1] = 15.0, column.centres[-2] - [20.0, 0.0, 0.0]
    column = Observations(**{**vars(column), "sacrum": top - [12.0, 0.0, 0.0]})
    assert anchored(column, {5: L5}).levels.tolist() == [19, 20, 21, 22, 23, L5, 0]


def test_two_anchors_with_a_vertebra_too_few_between_them_leave_one_level_out() -> None:
    column = seen([18, 19, 20, 22, 23, 24], [18, 19, 20, 21, 22, 23])
    numbering = anchored(column, {1: T12, 5: L5})
    assert numbering.levels.tolist() == [18, 19, 20, 22, 23, 24]
    assert numbering.variants == ("Between L1 and L3 no L2 was found.",)


def test_a_person_outweighs_network_and_ribs_but_not_what_tells_of_a_missed_vertebra() -> None:
    levels = [16, 17, 18, 19, 20, 21]
    ribs = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    column = Observations(**{**vars(seen(levels, [level - 1 for level in levels])), "ribs": ribs})
    assert anchored(column, {0: 16}).certain
    numbering = anchored(seen([18, 19, 20, 21, 22, 23], [18, 19, 20, 22, 23, 24]), {2: L1, 3: L1 + 2})
    assert not numbering.certain
    assert numbering.reason == "L1 and L3 are as close as neighbours: check the levels."


def test_a_person_may_know_of_a_t13_where_no_rib_is_seen() -> None:
    column = seen([18, 19, 20, 21, 22, 23], [18, 19, 20, 21, 22, 23])
    numbering = anchored(column, {2: T13})
    assert numbering.levels.tolist() == [18, 19, T13, 20, 21, 22]
    assert "thirteenth thoracic" in numbering.variants[0]


@pytest.mark.parametrize("anchors", [{2: L5, 5: L4}, {0: L5, 5: L5}, {3: L6, 5: L6}])
def test_anchors_that_contradict_each_other_are_refused(anchors: dict[int, int]) -> None:
    column = seen([18, 19, 20, 21, 22, 23], [18, 19, 20, 21, 22, 23])
    with pytest.raises(InputError, match="cannot all be where they are said to be"):
        anchored(column, anchors)


def test_an_anchor_that_would_leave_vertebrae_without_a_level_is_refused() -> None:
    column = seen(list(range(8, 20)), list(range(8, 20)))
    with pytest.raises(InputError, match="with C2 there, 10 vertebrae would be left without a level"):
        anchored(column, {11: C2})


def test_an_anchor_that_leaves_a_single_vertebra_without_a_level_is_taken() -> None:
    # What lies above C1 may be a part of the skull.
    column = seen(list(range(C1, 7)), list(range(C1, 7)))
    assert label_observations(column).levels[0] == C1
    assert anchored(column, {1: C1}).levels.tolist() == [0, *range(C1, 6)]


@pytest.fixture(scope="module")
def loin() -> tuple[Column, dict[int, np.ndarray]]:
    """Four vertebrae whose network is one level off, without a sacrum, and their true centroids."""
    step, levels = 17, (21, 22, 23, 24)
    z, y, x = np.indices((step * 4 + 16, 56, 48))
    labels = np.zeros(z.shape, np.uint8)
    for number, level in enumerate(levels):
        high = np.abs(z - (z.shape[0] - 16 - number * step))
        ring = np.hypot(y - 38, x - 24)
        body = (high < 6) & (np.hypot(y - 22, x - 24) < 9)
        labels[body | ((high < 4) & (ring > 6) & (ring < 9))] = level
    claims = {level: level - 1 for level in levels}
    answers = simulate(labels, SPACING, np.random.default_rng(0), offset_noise_mm=1.0, mask_noise=0.1, claims=claims)
    return decode(*answers.arrays, SPACING), centroids(labels, SPACING)


def test_the_vertebra_at_a_point_gets_the_level_and_the_labels_follow(loin) -> None:
    column, centres = loin
    assert column.levels.tolist() == [20, 21, 22, 23]
    for shift in ((0, 0, 0), (0, -17, 0), (10, 0, 0), (0, 0, 30)):
        found = set_levels(column, [Anchor(23, centres[23] + shift)], SPACING)
        assert found.column.levels.tolist() == [21, 22, 23, 24] and found.problem == ""
        assert found.owners == (2,)
    assert set(np.unique(found.column.labels)) == {0, 21, 22, 23, 24}
    assert ((found.column.labels > 0) == (column.labels > 0)).all()


def test_a_point_away_from_any_vertebra_changes_nothing_and_is_told(loin) -> None:
    column, centres = loin
    far = Anchor(L5, centres[24] + [0, 60, 0])
    found = set_levels(column, [far], SPACING)
    assert found.column is column and found.owners == (None,)
    assert found.problem == "The anchor L5 was not used, as no vertebra lies within 15 mm of it."
    both = set_levels(column, [far, Anchor(L4, centres[23])], SPACING)
    assert both.column.levels.tolist() == [21, 22, 23, 24] and both.owners == (None, 2)
    assert both.problem == found.problem


def test_contradictions_change_nothing_and_are_told(loin) -> None:
    column, centres = loin
    two = set_levels(column, [Anchor(L4, centres[23]), Anchor(L5, centres[23] + [2, 0, 0])], SPACING)
    assert two.problem == "The anchors L4, L5 were not used, as one vertebra cannot have two levels."
    turned = set_levels(column, [Anchor(L5, centres[22]), Anchor(L4, centres[24])], SPACING)
    assert turned.problem == "The anchors L5, L4 were not used, as L5 and L4 cannot all be where they are said to be."
    assert two.column is turned.column is column


def test_levels_of_another_segmentation_hold_where_they_overlap(loin) -> None:
    column, centres = loin
    others = [Anchor(level, centre, by_person=False) for level, centre in centres.items()]
    beyond = Anchor(L1, centres[21] + [60, 0, 0], by_person=False)
    doubled = Anchor(L6, centres[24] - [9, 0, 0], by_person=False)
    found = set_levels(column, [beyond, *others, doubled], SPACING)
    assert found.column.levels.tolist() == [21, 22, 23, 24]
    assert found.owners == (None, 0, 1, 2, 3, None) and found.problem == ""
    nothing = set_levels(column, [beyond], SPACING)
    assert nothing.column is column
    assert nothing.problem == (
        "The levels of the other segmentation were not used, as no vertebra lies within 15 mm of one of its own."
    )
    of_person = Anchor(L4, centres[22])
    assert set_levels(column, [of_person, others[1]], SPACING).column.levels.tolist() == [22, 23, 24, 25]


def test_an_anchor_on_a_vertebra_that_only_the_fine_pass_finds_is_for_that_one(loin) -> None:
    column, centres = loin
    step = np.array([34.0, 0, 0])
    anchor = Anchor(21, centres[21] + 0.35 * step)
    found = set_levels(column, [anchor], SPACING)
    assert found.column.levels[0] == 21
    extended = _extended(found.column, 0, -1, centres[21] - 0.2 * step, centres[21] + 0.5 * step)
    moved = set_levels_beyond(found, [anchor], extended)
    assert moved.column.levels.tolist() == [22, 23, 24, 25]
    assert _extended(moved.column, 0, -1, centres[21], centres[21]).levels[0] == 21
    near = Anchor(21, centres[21])
    assert set_levels_beyond(found, [near], extended) is found
    # As near to one as to the other.
    halfway = _extended(found.column, 0, -1, np.array([20.0, 0, 0]), np.array([26.0, 0, 0]))
    assert set_levels_beyond(found, [Anchor(21, np.array([23.0, 0, 0]))], halfway) is found
    assert isinstance(found, Anchored)


def test_an_anchor_below_the_last_vertebra_is_for_the_one_that_only_the_fine_pass_finds(loin) -> None:
    column, centres = loin
    step = np.array([34.0, 0, 0])
    anchor = Anchor(24, centres[24] - 0.35 * step)
    found = set_levels(column, [anchor], SPACING)
    assert found.column.levels[-1] == 24
    extended = _extended(found.column, -1, 1, centres[24] + 0.2 * step, centres[24] - 0.5 * step)
    assert set_levels_beyond(found, [anchor], extended).column.levels.tolist() == [20, 21, 22, 23]
    assert set_levels_beyond(found, [Anchor(24, centres[24])], extended) is found


def test_without_a_vertebra_no_anchor_holds() -> None:
    empty = np.zeros((3, 8, 8, 8), np.float32)
    empty[0] = 1
    column = decode(empty, np.zeros((3, 8, 8, 8), np.float32), np.zeros((26, 8, 8, 8), np.float16), SPACING)
    found = set_levels(column, [Anchor(L5, np.zeros(3))], SPACING)
    assert found.column is column and "was not used" in found.problem
