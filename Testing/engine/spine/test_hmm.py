"""Numbering a column from evidence and distances."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from segmamba.spine.factors import STATES
from segmamba.spine.hmm import (
    CERTAIN,
    CERTAIN_RING,
    Numbering,
    _landmark,
    _moved,
    _named,
    _reason,
    _variants,
    label_levels,
)
from segmamba.spine.levels import (
    DISTANCES_MM,
    L6,
    SACRUM,
    SACRUM_MM,
    SACRUM_TOP_MM,
    T13,
)

WHOLE = list(range(1, 25))


def column(levels: list[int], scale: float = 1.0) -> np.ndarray:
    """Return centres on a straight line, as far apart as the levels say."""
    depth = scale * np.r_[0.0, np.cumsum(DISTANCES_MM)]
    return np.array([[-depth[level - 1], 0.0, 0.0] for level in levels])


def evidence(claims: list[int], sureness: float = 0.8) -> np.ndarray:
    """Return the evidence of a network that claims these levels."""
    shares = np.full((len(claims), SACRUM), (1 - sureness) / (SACRUM - 1))
    shares[np.arange(len(claims)), np.array(claims) - 1] = sureness
    return np.log(shares)


def numbered(
    levels: list[int],
    claims: list[int],
    sacrum: bool = False,
    scale: float = 1.0,
    sureness: float = 0.8,
    ribs: list[float] | None = None,
):
    centres = column(levels, scale)
    below = centres[-1] - [SACRUM_MM * scale, 0.0, 0.0] if sacrum else None
    found = None if ribs is None else np.array(ribs)
    return label_levels(evidence(claims, sureness), centres, np.full(len(levels), 30.0), below, ribs=found)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_right_evidence_gives_the_right_levels_in_small_and_tall_people(scale: float) -> None:
    numbering = numbered(WHOLE, WHOLE, sacrum=True, scale=scale)
    assert numbering.levels.tolist() == WHOLE
    assert numbering.certain and numbering.reason == "" and numbering.variants == ()


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("initial", [8, 12, 16, 20])
def test_evidence_that_is_off_by_one_from_a_level_down_is_corrected_where_both_ends_are_in_view(
    initial: int, by: int
) -> None:
    claims = [level if level < initial else level + by for level in WHOLE]
    numbering = numbered(WHOLE, claims, sacrum=True)
    assert numbering.levels.tolist() == WHOLE
    assert numbering.certain


def test_a_slip_in_the_thorax_without_a_landmark_is_never_called_certain() -> None:
    levels = list(range(10, 18))
    numbering = numbered(levels, [10, 11, 12, 13, 15, 16, 17, 18])
    assert not numbering.certain
    assert numbering.runner_up is not None and numbering.runner_up_probability > 0.05


def test_five_thoracic_vertebrae_are_not_certain_and_the_reason_says_why() -> None:
    numbering = numbered([11, 12, 13, 14, 15], [11, 12, 13, 14, 15])
    assert not numbering.certain and numbering.probability < CERTAIN
    assert "neither C1, C2, the first or last rib nor the sacrum is clearly in view" in numbering.reason
    assert "T4 could be T" in numbering.reason


def test_evidence_that_says_nothing_leaves_all_numberings_open() -> None:
    numbering = numbered([11, 12, 13, 14, 15], [11, 12, 13, 14, 15], sureness=1 / SACRUM)
    assert numbering.probability < 0.3 and (numbering.confidence < 0.3).all()


def test_single_wrong_answers_do_not_break_the_order() -> None:
    levels = list(range(18, 25))
    assert numbered(levels, [18, 20, 20, 21, 22, 24, 24], sacrum=True).levels.tolist() == levels


def test_a_vertebra_that_was_not_found_leaves_a_gap_in_the_numbers() -> None:
    levels = [18, 19, 20, 22, 23, 24]
    numbering = numbered(levels, levels, sacrum=True)
    assert numbering.levels.tolist() == levels
    assert numbering.variants == ("Between L1 and L3 no L2 was found.",)


def test_evidence_alone_makes_no_gap_where_the_distance_has_none() -> None:
    levels = list(range(15, 25))
    claims = [level - (level < 19) for level in levels]
    assert numbered(levels, claims, sacrum=True).levels.tolist() == levels


@pytest.mark.parametrize("ribs", [None, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
def test_no_level_is_left_out_between_neighbours_one_step_apart(ribs: list[float] | None) -> None:
    centres = column([18, 19, 20, 21, 22, 23])
    found = None if ribs is None else np.array(ribs)
    below = centres[-1] - [SACRUM_MM, 0.0, 0.0]
    numbering = label_levels(evidence([18, 19, 20, 22, 23, 24]), centres, np.full(6, 40.0), below, ribs=found)
    assert (np.diff(numbering.levels) == 1).all() and not numbering.certain
    if ribs is not None:
        assert numbering.levels.tolist() == [18, 19, 20, 21, 22, 23]
        assert numbering.variants == ("The sacrum follows L4.",)


def test_a_doubled_vertebra_is_counted_once() -> None:
    levels = list(range(18, 25))
    centres = column(levels)
    centres = np.insert(centres, 3, (centres[2] + centres[3]) / 2, axis=0)
    sacrum = centres[-1] - [SACRUM_MM, 0, 0]
    claims = [18, 19, 20, 20, 21, 22, 23, 24]
    numbering = label_levels(evidence(claims), centres, np.full(8, 30.0), sacrum)
    assert numbering.levels.tolist() == [18, 19, 20, 0, 21, 22, 23, 24]


@pytest.mark.parametrize("gap", [24.0, 27.0, 33.0])
def test_nothing_is_left_out_between_two_that_are_more_than_one_step_apart(gap: float) -> None:
    levels = [20, 21, 22, 23, 24, 25]
    claims = [20, 21, 22, 22, 23, 24]  # a network that knows five lumbar vertebrae alone
    depth = np.cumsum([0.0, 31.0, 31.0, gap, 31.0, 31.0])
    centres = np.c_[-depth, np.zeros((6, 2))]
    # T12 above, to which the network is sure; no sacrum.
    centres = np.r_[[[31.0, 0, 0]], centres]
    numbering = label_levels(evidence([19, *claims], 0.9), centres, np.full(7, 45.0))
    assert numbering.levels.tolist() == [19, *levels]
    assert not numbering.certain


def test_one_wider_disc_does_not_make_two_vertebrae_of_one() -> None:
    centres = column([19, 20, 21, 22, 23])
    centres[2:] -= [9.0, 0.0, 0.0]
    below = centres[-1] - [SACRUM_MM, 0.0, 0.0]
    numbering = label_levels(evidence([19, 21, 22, 23, 24]), centres, np.full(5, 40.0), below)
    assert (np.diff(numbering.levels) == 1).all() and not numbering.certain
    assert numbering.reason == "There may be four lumbar vertebrae: check the levels."


def test_two_vertebrae_found_as_one_do_not_shift_the_numbers_below() -> None:
    levels = [level for level in WHOLE if level not in (5, 12)]
    centres = column(levels)
    for merged in (4, 11):  # in the middle between the level and the one below it
        centres[levels.index(merged)] -= [DISTANCES_MM[merged - 1] / 2, 0, 0]
    numbering = label_levels(evidence(levels), centres, np.full(len(levels), 30.0))
    assert numbering.levels.tolist()[5:9] == levels[5:9] and numbering.levels.tolist()[12:] == levels[12:]


def test_a_sixth_lumbar_vertebra_is_reported_as_a_variant() -> None:
    levels = list(range(15, L6 + 1))
    numbering = numbered(levels, levels, sacrum=True)
    assert numbering.levels.tolist() == levels
    assert "sixth lumbar" in numbering.variants[0]


THIRTEEN = [*range(12, 20), T13, *range(20, 25)]


def thirteen(claims: list[int], ribs: list[int]) -> Numbering:
    """Number a column with T13, from C1 to the sacrum, with ribs at some of its levels."""
    levels = [*range(1, 12), *THIRTEEN]
    centres = column(list(range(11, 25)))
    top = column(list(range(1, 13)))
    centres = np.vstack([top[:-1] - top[-1] + centres[0], centres])
    found = np.array([float(level in ribs) for level in levels])
    below = centres[-1] - [SACRUM_MM, 0.0, 0.0]
    return label_levels(evidence([*range(1, 12), *claims]), centres, np.full(len(levels), 30.0), below, ribs=found)


@pytest.mark.parametrize("called", [19, 20])
def test_a_thirteenth_thoracic_vertebra_is_told_by_its_rib_whatever_the_network_calls_it(called: int) -> None:
    numbering = thirteen([*range(12, 20), called, *range(20, 25)], [*range(8, 20), T13])
    assert numbering.levels.tolist() == [*range(1, 12), *THIRTEEN]
    assert numbering.variants == ("There is a thirteenth thoracic vertebra, or a rib at L1: look at the ribs.",)


def test_where_the_network_counts_six_lumbar_ones_t13_is_what_is_next_and_neither_is_certain() -> None:
    numbering = thirteen([*range(12, 20), *range(20, 26)], [*range(8, 20), T13])
    assert numbering.levels.tolist() == list(range(1, L6 + 1))
    assert numbering.runner_up is not None and numbering.runner_up.tolist() == [*range(1, 12), *THIRTEEN]
    assert not numbering.certain


def test_without_a_rib_below_t12_a_column_of_25_has_six_lumbar_vertebrae() -> None:
    levels = list(range(1, L6 + 1))
    for ribs in (None, [float(8 <= level <= 19) for level in levels], [0.0] * len(levels)):
        assert numbered(levels, levels, sacrum=True, ribs=ribs).levels.tolist() == levels


def test_a_rib_at_l1_alone_makes_no_t13_where_24_vertebrae_are_in_view() -> None:
    ribs = [float(8 <= level <= 20) for level in WHOLE]
    numbering = numbered(WHOLE, WHOLE, sacrum=True, ribs=ribs)
    assert numbering.levels.tolist() == WHOLE and not numbering.certain


def test_a_column_without_t12_is_reported_as_a_variant() -> None:
    levels = [14, 15, 16, 17, 18, 20, 21, 22, 23, 24]
    centres = column([14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
    numbering = label_levels(evidence(levels), centres, np.full(10, 30.0), centres[-1] - [SACRUM_MM, 0, 0])
    assert numbering.levels.tolist() == levels
    assert numbering.variants == ("There is no T12: L1 follows T11.",)


def test_the_sacrum_makes_the_vertebra_above_it_l5_against_weak_evidence() -> None:
    levels = [21, 22, 23, 24]
    claims = [20, 21, 22, 23]
    assert numbered(levels, claims, sacrum=True, sureness=0.4).levels.tolist() == levels
    assert numbered(levels, claims, sacrum=False, sureness=0.4).levels.tolist() == claims


def test_the_centroid_of_a_sacrum_that_is_cut_may_be_nearer_to_l5() -> None:
    levels = [19, 20, 21, 22, 23, 24]
    centres, claims = column(levels), evidence([19, 20, 21, 22, 23, 24], 0.4)
    below = centres[-1] - [SACRUM_TOP_MM, 0.0, 0.0]
    whole, cut = (label_levels(claims, centres, np.full(6, 30.0), below, sacrum_cut=c) for c in (False, True))
    assert cut.levels.tolist() == levels
    assert cut.probability > whole.probability


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("missed", [[], [19], [14, 15]])
def test_ribs_mend_evidence_that_is_off_by_one(by: int, missed: list[int]) -> None:
    levels = list(range(7, 22))  # C7 to L2
    claims = [level + by for level in levels]
    ribs = [float(8 <= level <= 19 and level not in missed) for level in levels]
    assert numbered(levels, claims).levels.tolist() == claims
    assert numbered(levels, claims, ribs=ribs).levels.tolist() == levels


@pytest.mark.parametrize(
    ("levels", "sacrum", "ribs", "landmark"),
    [
        (range(1, 9), False, None, True),
        (range(2, 12), False, None, True),
        (range(15, 25), True, None, True),
        (range(9, 22), False, None, False),
        (range(9, 22), False, range(8, 20), True),
        (range(7, 18), False, range(8, 20), True),
        (range(8, 20), False, range(8, 20), False),  # all with ribs: neither the first nor the last one is told
    ],
)
def test_numbers_are_certain_only_with_a_landmark(levels, sacrum, ribs, landmark) -> None:
    bears = None if ribs is None else [float(level in ribs) for level in levels]
    numbering = numbered(list(levels), list(levels), sacrum=sacrum, sureness=0.95, ribs=bears)
    assert numbering.levels.tolist() == list(levels)
    assert numbering.probability >= CERTAIN
    assert numbering.certain == landmark


def test_ribs_make_right_evidence_more_certain() -> None:
    levels = list(range(14, 22))
    without, with_ribs = (numbered(levels, levels, ribs=r) for r in (None, [float(level <= 19) for level in levels]))
    assert with_ribs.probability > without.probability + 0.01


def test_where_no_rib_was_found_at_all_the_evidence_still_counts() -> None:
    levels = list(range(8, 20))
    assert numbered(levels, levels, ribs=[0.0] * 12).levels.tolist() == levels


def test_ribs_that_cannot_be_seen_change_nothing() -> None:
    levels = list(range(12, 22))
    one, other = numbered(levels, levels), numbered(levels, levels, ribs=[np.nan] * 10)
    assert other.probability == pytest.approx(one.probability)


def test_the_probabilities_are_those_of_all_numberings_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # Three vertebrae, no level offset and one scale: all sequences can be listed.
    from segmamba.spine import level_model

    monkeypatch.setattr(level_model, "INITIAL_OFFSET", {0: 1.0, 1: 0.0, 2: 0.0})
    monkeypatch.setattr(level_model, "OFFSET_TRANSITION", {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0})
    monkeypatch.setattr(level_model, "LOG_SCALES", np.array([0.0]))
    rng = np.random.default_rng(0)
    claims = rng.normal(0, 2, (3, SACRUM))
    centres = column([17, 18, 19]) + rng.normal(0, 2, (3, 3))
    volumes = np.array([30.0, 20.0, 30.0])
    seen = level_model.Observations(claims, centres, volumes, None, np.zeros(3, bool), np.full(3, np.nan), False)
    model = level_model.LevelModel(seen, {})
    _, emission, _ = model.hypotheses[0]
    states = len(STATES)
    partition, by_level = 0.0, np.zeros((3, states))
    # Numbers from 1 stand for states, 0 for a spurious instance.
    for levels in itertools.product(range(states + 1), repeat=3):
        kept = [i for i in range(3) if levels[i]]
        if not kept:
            continue
        weight = np.prod([model.spurious[i] for i in range(3) if not levels[i]])
        weight *= np.prod([emission[i, levels[i] - 1, 2] for i in kept]) * model.initial_level[levels[kept[0]] - 1]
        for i, j in itertools.pairwise(kept):
            weight *= model.transitions[0][i, j][levels[i] - 1, levels[j] - 1] * model.change[levels[j] - 1, 2]
        partition += weight
        for i in kept:
            by_level[i, levels[i] - 1] += weight
    numbering = label_levels(claims, centres, volumes)
    kept = np.flatnonzero(numbering.levels)
    assert numbering.confidence[kept] == pytest.approx(by_level[kept, numbering.levels[kept] - 1] / partition)


def test_no_vertebra_is_no_error() -> None:
    numbering = label_levels(np.zeros((0, SACRUM)), np.zeros((0, 3)), np.zeros(0))
    assert not numbering.certain and numbering.levels.size == numbering.confidence.size == 0
    assert numbering.probability == numbering.runner_up_probability == 0 and numbering.runner_up is None
    assert numbering.reason == "There is no vertebra in view." and numbering.variants == ()


@pytest.mark.parametrize("by", [-2, -1, 1, 2])
def test_evidence_that_is_moved_is_another_level_s_and_nothing_comes_round_the_end(by: int) -> None:
    evidence = np.log(np.random.default_rng(1).dirichlet(np.ones(SACRUM), 3))
    moved = _moved(evidence, by)
    for level in range(SACRUM):
        known = 0 <= level - by < SACRUM
        expected = evidence[:, level - by] if known else evidence.min(axis=1)
        np.testing.assert_array_equal(moved[:, level], expected)


@pytest.mark.parametrize(
    ("levels", "sacrum", "variants"),
    [
        ([], True, ()),
        ([22, 0, 23], False, ()),
        ([22, 0, 23], True, ("The sacrum follows L4.",)),
        ([18, 20], False, ("There is no T12: L1 follows T11.",)),
        ([17, 20], False, ("Between T10 and L1 no T11, T12 was found.",)),
        ([19, 21, 23], False, ("Between T12 and L2 no L1 was found.", "Between L2 and L4 no L3 was found.")),
        ([24, 25], False, ("There is a sixth lumbar vertebra, or a thirteenth thoracic one: look at the ribs.",)),
        ([19, T13, 20], False, ("There is a thirteenth thoracic vertebra, or a rib at L1: look at the ribs.",)),
    ],
)
def test_what_is_unusual_in_a_column_is_a_sentence_each(
    levels: list[int], sacrum: bool, variants: tuple[str, ...]
) -> None:
    assert _variants(np.array(levels, int), sacrum) == variants


@pytest.mark.parametrize(
    ("levels", "ribs", "told"),
    [
        ([7, 8], [0, 1], True),
        ([7, 0, 8], [0, 1, 1], True),
        ([7, 8], [1, 1], False),
        ([7, 8], [0, 0], False),
        ([19, 20], [1, 0], True),
        ([19, 20], [1, 1], False),
        ([T13, 20], [1, 0], True),
        ([18, 20], [1, 0], False),
        ([8, 9], [0, 1], False),
    ],
)
def test_the_first_and_the_last_rib_are_landmarks(levels: list[int], ribs: list[int], told: bool) -> None:
    bears, none = np.array(ribs, float), np.full((len(levels), SACRUM), -5.0)
    assert _landmark(np.array(levels), none, None, bears) is told
    assert _landmark(np.array(levels), none, np.zeros(3), bears)


@pytest.mark.parametrize(("level", "ring"), [(1, True), (2, True), (3, False)])
def test_atlas_and_axis_are_landmarks_where_the_network_is_sure_of_one(level: int, ring: bool) -> None:
    for share, sure in ((CERTAIN_RING + 0.001, True), (CERTAIN_RING - 0.001, False)):
        seen = np.full((2, SACRUM), -9.0)
        seen[0, level - 1] = np.log(share)
        assert _landmark(np.array([level, level + 1]), seen, None, np.full(2, np.nan)) is (ring and sure)


def test_the_reason_of_a_doubt_is_the_gravest_contradiction_or_the_next_likely_level() -> None:
    levels, other = np.array([0, 19, 20, 21]), np.array([18, 19, 0, 22])
    where = ", and neither C1, C2, the first or last rib nor the sacrum is clearly in view"
    assert _reason(levels, other, True, ["no rib was found", "x"]) == "No rib was found: check the levels."
    assert _reason(levels, other, True, []) == "L2 could be L3: check the levels."
    assert _reason(levels, other, False, []) == f"L2 could be L3{where}: check the levels."
    assert _reason(levels, None, True, []) == "The evidence is weak: check the levels."
    assert _reason(levels, None, False, []) == f"The evidence is weak{where}: check the levels."


def test_levels_that_are_set_are_named_in_a_row() -> None:
    assert [_named(dict(enumerate(levels))) for levels in ([24], [24, 23], [24, 23, 22])] == [
        "L5",
        "L5 and L4",
        "L5, L4 and L3",
    ]


def test_the_confidence_of_what_is_left_out_is_that_it_is_no_vertebra() -> None:
    centres = np.insert(column([18, 19, 20, 21, 22]), 3, [0.0, 0.0, 0.0], axis=0)
    centres[3] = (centres[2] + centres[4]) / 2
    sizes = np.array([30.0, 30, 30, 2, 30, 30])
    numbering = label_levels(evidence([18, 19, 20, 20, 21, 22], 0.95), centres, sizes)
    assert numbering.levels.tolist() == [18, 19, 20, 0, 21, 22]
    assert (numbering.confidence > 0.5).all() and numbering.confidence[3] < 1
    assert 0 <= numbering.runner_up_probability < numbering.probability <= 1
