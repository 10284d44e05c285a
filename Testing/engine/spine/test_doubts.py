"""A labelling that something contradicts is not certain, however probable it is."""

from __future__ import annotations

import numpy as np
import pytest

from segmamba.spine.doubts import distance_doubts, doubts, doubts_in_spite_of_a_person
from segmamba.spine.hmm import label_levels
from segmamba.spine.levels import DISTANCES_MM, SACRUM, SACRUM_MM, T13

NAN = float("nan")
LOIN = [17, 18, 19, 20, 21, 22, 23, 24]


def centres_of(levels: list[int]) -> np.ndarray:
    depth = np.r_[0.0, np.cumsum(DISTANCES_MM)]
    return np.array([[-depth[level - 1], 0.0, 0.0] for level in levels])


def evidence_of(claims: list[int], sureness: float = 0.8) -> np.ndarray:
    shares = np.full((len(claims), SACRUM), (1 - sureness) / (SACRUM - 1))
    shares[np.arange(len(claims)), np.array(claims) - 1] = sureness
    return np.log(shares)


def found(
    levels: list[int],
    claims: list[int] | None = None,
    ribs: list[float] | None = None,
    sacrum: bool = True,
    **changes: np.ndarray,
) -> list[str]:
    """Return the doubts about levels of a network that claims these."""
    inputs = {
        "evidence": evidence_of(claims or levels),
        "centres": centres_of([min(level, 25) for level in levels]),
        "volumes": np.full(len(levels), 40.0),
        "cut": np.zeros(len(levels), bool),
        "ribs": np.array(ribs if ribs is not None else [NAN] * len(levels)),
    } | changes
    return doubts(np.array(levels), sacrum=sacrum, **inputs)


def test_a_usual_column_is_beyond_doubt() -> None:
    assert found(list(range(1, 25))) == found(LOIN, sacrum=False) == []
    assert found(LOIN, ribs=[1, 1, 1, 0, 0, 0, 0, 0]) == []


def test_a_thirteenth_thoracic_vertebra_is_doubted_unless_the_last_rib_is_at_it() -> None:
    levels = [17, 18, 19, T13, 20, 21, 22, 23, 24]
    places = {"centres": centres_of([16, 17, 18, 19, 20, 21, 22, 23, 24])}
    claims = [17, 18, 19, 19, 20, 21, 22, 23, 24]
    assert found(levels, claims, ribs=[1, 1, 1, 1, 0, 0, 0, 0, 0], **places) == []
    unclear = "whether there are thirteen or twelve thoracic vertebrae is not clear from the ribs"
    assert found(levels, claims, ribs=[1, 1, 1, 0, 0, 0, 0, 0, 0], **places) == [unclear]
    assert found(levels, claims, **places) == [unclear]
    assert found(levels[:4], claims[:4], ribs=[1, 1, 1, 1], centres=places["centres"][:4]) == [
        "nothing was found between T13 and the sacrum",
        unclear,
    ]


def test_a_count_that_the_network_sees_otherwise_is_doubted() -> None:
    levels = [20, 21, 22, 23, 24]
    assert found(levels, [19, 21, 22, 23, 24]) == ["there may be four lumbar vertebrae"]
    assert found([19, *levels], [20, 20, 21, 22, 23, 24]) == ["there may be six lumbar vertebrae"]
    assert found([19, *levels], [20, 20, 21, 22, 23, 24], ribs=[1, 0, 0, 0, 0, 0]) == []
    assert found(levels, [19, 21, 22, 23, 24], sacrum=False) == []


def test_a_level_left_out_between_neighbours_one_step_apart_is_doubted() -> None:
    levels = [18, 19, 20, 22, 23, 24]
    apart = centres_of(levels)
    assert found(levels) == []  # twice as far apart: it was not found
    apart[3:, 0] += 32
    assert found(levels, centres=apart) == ["L1 and L3 are as close as neighbours"]


def test_an_instance_as_large_as_a_vertebra_that_was_left_out_is_doubted_but_no_fragment_and_no_cut_one() -> None:
    levels = [1, 0, 2, 3, 4, 5]
    places = centres_of([1, 1, 2, 3, 4, 5])
    places[1] += [-9.0, 13.0, 0.0]  # beside the others
    sizes = np.array([10.0, 7.0, 11.0, 10.0, 10.0, 10.0])
    expected = ["something as large as a vertebra lies between C1 and C2"]
    assert found(levels, [1, 1, 2, 3, 4, 5], centres=places, volumes=sizes, sacrum=False) == expected
    fragment = np.array([10.0, 4.0, 11.0, 10.0, 10.0, 10.0])
    assert found(levels, [1, 1, 2, 3, 4, 5], centres=places, volumes=fragment, sacrum=False) == []
    cut = np.array(levels) == 0
    assert found(levels, [1, 1, 2, 3, 4, 5], centres=places, volumes=sizes, cut=cut, sacrum=False) == []


def test_an_instance_left_out_where_there_is_room_for_a_vertebra_is_doubted() -> None:
    levels = [18, 19, 20, 0, 21, 22, 23]
    places = centres_of([18, 19, 20, 21, 22, 23, 24])
    assert found(levels, [18, 19, 20, 21, 22, 23, 24], centres=places)[0] == (
        "there is room for a vertebra between L1 and L2"
    )
    doubled = places.copy()
    doubled[3] = doubled[2] - [8, 0, 0]
    doubled[4:] += [32, 0, 0]
    assert found(levels, [18, 19, 20, 20, 21, 22, 23], centres=doubled, sacrum=False) == []


@pytest.mark.parametrize(
    ("levels", "count"), [([17, 18, 19, 20, 21, 22, 23], "four"), ([17, 18, 19, 20, 21, 22, 23, 24, 25], "six")]
)
def test_only_the_last_rib_makes_another_number_of_lumbar_vertebrae_certain(levels: list[int], count: str) -> None:
    sentence = f"whether there are {count} or five lumbar vertebrae is not clear from the ribs"
    assert found(levels) == [sentence]
    assert found(levels, ribs=[1.0 if level < 20 else 0.0 for level in levels]) == []
    assert sentence in found(levels, ribs=[1.0 if level < 19 else 0.0 for level in levels])


def test_a_column_without_t12_is_certain_only_by_its_ribs() -> None:
    levels = [16, 17, 18, 20, 21, 22, 23, 24]
    places = centres_of([16, 17, 18, 19, 20, 21, 22, 23])
    assert found(levels, centres=places)[0].startswith("whether there are eleven or twelve thoracic")
    assert found(levels, ribs=[1.0, 1, 1, 0, 0, 0, 0, 0], centres=places) == []


def test_t12_without_a_rib_may_be_l1() -> None:
    assert found(LOIN, ribs=[1, 1, 0, 0, 0, 0, 0, 0]) == ["no rib was found at T12"]
    assert found(LOIN, ribs=[1, 1, NAN, 0, 0, 0, 0, 0]) == []
    assert found(LOIN, ribs=[1, 0, 0, 0, 0, 0, 0, 0]) == ["no rib was found at T11"]
    assert found(LOIN, ribs=[1, 0, 1, 0, 0, 0, 0, 0]) == []  # one that was missed
    assert found(LOIN, ribs=[1, 1, 1, 1, 0, 0, 0, 0]) == ["a rib was found at L1"]


def test_a_sacrum_far_below_the_last_vertebra_is_doubted() -> None:
    assert found([17, 18, 19, 20, 21, 22]) == ["nothing was found between L3 and the sacrum"]


def test_levels_against_those_of_the_network_are_doubted() -> None:
    assert found(LOIN, [level - 1 for level in LOIN]) == ["the vertebrae look like those of other levels"]
    # The last rib and the sacrum agree against it.
    assert found(LOIN, [level - 1 for level in LOIN], ribs=[1, 1, 1, 0, 0, 0, 0, 0]) == []
    # So do the axis and the sacrum; one of them does not suffice.
    from_axis = list(range(2, 25))
    others = [level - 1 for level in from_axis]
    look_like_others = "the vertebrae look like those of other levels"
    assert look_like_others not in found(from_axis, others)
    assert look_like_others in found(from_axis, others, sacrum=False)
    assert look_like_others in found(from_axis[1:], others[1:])
    mixed = [17, 18, 19, 20, 20, 21, 22, 23]
    assert found(LOIN, mixed, sacrum=False) == []


def test_half_and_twice_the_size_of_the_neighbours_are_questioned() -> None:
    for factor, doubted in ((0.4, True), (2.2, True), (0.8, False), (1.5, False)):
        volumes = np.full(len(LOIN), 40.0)
        volumes[4] *= factor
        expected = ["the size of L2 is unlike its neighbours'"] if doubted else []
        assert found(LOIN, volumes=volumes) == expected


def test_a_doubt_makes_a_probable_labelling_uncertain_and_is_the_reason() -> None:
    centres = centres_of(LOIN)
    below = centres[-1] - [SACRUM_MM, 0.0, 0.0]
    sure, doubted = (
        label_levels(evidence_of(LOIN), centres, np.full(8, 40.0), below, ribs=np.array([1.0, 1, rib, 0, 0, 0, 0, 0]))
        for rib in (1.0, 0.0)
    )
    assert sure.certain
    assert doubted.levels.tolist() == LOIN and not doubted.certain
    assert doubted.reason == "No rib was found at T12: check the levels."


def test_distances_are_those_of_one_step_where_levels_are_left_out() -> None:
    levels = [17, 19, 21]
    assert distance_doubts(np.array(levels), centres_of(levels)) == []
    close = centres_of([17, 18, 20])
    assert distance_doubts(np.array(levels), close) == ["T10 and T12 are as close as neighbours"]


def line(gaps: list[float]) -> np.ndarray:
    """Return centres on a straight line with these distances."""
    return np.array([[-depth, 0.0, 0.0] for depth in np.r_[0.0, np.cumsum(gaps)]])


@pytest.mark.parametrize("around", [[60, 20, 40, 20, 40, 60], [60, 40, 20, 40, 20, 60]])
@pytest.mark.parametrize(("gap", "room"), [(43.0, False), (44.0, True)])
def test_room_is_judged_by_the_two_distances_on_either_side(around: list[float], gap: float, room: bool) -> None:
    # 1.45 times 30 mm.
    levels = np.array([10, 11, 12, 13, 0, 14, 15, 16, 17])
    places = np.insert(line([*around[:3], gap, *around[3:]]), 4, 0.0, axis=0)
    expected = ["there is room for a vertebra between T6 and T7"] if room else []
    assert distance_doubts(levels, places) == expected
    assert distance_doubts(np.delete(levels, 4), np.delete(places, 4, axis=0)) == []


@pytest.mark.parametrize(("gap", "close"), [(40.0, True), (41.0, False)])
def test_a_step_too_many_is_judged_by_the_distances_of_one_step(gap: float, close: bool) -> None:
    # 1.35 times 30 mm; the lowest distance is one of two steps.
    levels, places = np.array([10, 11, 12, 14, 15, 17]), line([30.0, 30.0, gap, 30.0, 60.0])
    assert distance_doubts(levels, places) == (["T5 and T7 are as close as neighbours"] if close else [])
    # T11 and L1 are neighbours where there is no T12, but no others are.
    assert distance_doubts(np.array([16, 17, 18, 20, 21]), line([30.0] * 4)) == []
    assert distance_doubts(np.array([16, 17, 18, 21, 22]), line([30.0] * 4)) == [
        "T11 and L2 are as close as neighbours"
    ]


@pytest.mark.parametrize(("aside", "size", "doubted"), [(17.2, 24.4, True), (16.3, 24.4, False), (17.2, 23.6, False)])
@pytest.mark.parametrize("around", [[60, 20, 40, 30, 20, 40, 60], [60, 40, 20, 30, 40, 20, 60]])
def test_what_lies_apart_and_is_no_fragment_is_judged_by_what_is_next_to_it(
    around: list[float], aside: float, size: float, doubted: bool
) -> None:
    # Three quarters of 30 mm away from both, and 0.6 of 40 mL.
    levels = np.array([8, 9, 10, 11, 12, 0, 13, 14, 15, 16])
    kept = line([50.0, *around, 50.0])[:9]
    places = np.insert(kept, 5, (kept[4] + kept[5]) / 2 + [0.0, aside, 0.0], axis=0)
    volumes = np.insert(np.array([40.0, 40, 40, 40, 40, 60, 40, 40, 40]), 5, size)
    said = "something as large as a vertebra lies between T5 and T6"
    inputs = {"claims": [8, 9, 10, 11, 12, 12, 13, 14, 15, 16], "sacrum": False, "centres": places, "volumes": volumes}
    assert (said in found(levels.tolist(), **inputs)) is doubted


def test_nothing_is_left_out_above_the_first_and_below_the_last() -> None:
    levels = [0, 20, 21, 22, 0]
    places = centres_of([19, 20, 21, 22, 23])
    assert found(levels, [19, 20, 21, 22, 23], centres=places, sacrum=False) == []


@pytest.mark.parametrize(("first", "last"), [(30.0, 50.0), (50.0, 30.0)])
def test_a_size_is_held_against_that_of_the_two_next_to_it(first: float, last: float) -> None:
    for size, doubted in ((18.4, False), (17.6, True), (83.0, False), (85.0, True)):
        volumes = np.array([40.0, 40.0, first, size, last, 40.0, 40.0])
        expected = ["the size of L2 is unlike its neighbours'"] if doubted else []
        assert found([18, 19, 20, 21, 22, 23, 24], volumes=volumes) == expected


def test_sizes_of_the_ends_of_cut_ones_and_of_their_neighbours_and_of_the_first_two_are_not_questioned() -> None:
    column = [1, 2, 3, 4, 5, 6]
    for index, name in enumerate(["", "", "C3", "C4", "C5", ""]):
        volumes = np.full(6, 40.0)
        volumes[index] = 1.0
        names = [f"the size of {name} is unlike its neighbours'"] if name else []
        assert found(column, volumes=volumes, sacrum=False) == names
        for cut in range(6):
            beside = np.arange(6) == cut
            expected = names if abs(cut - index) > 1 else []
            assert found(column, volumes=volumes, cut=beside, sacrum=False) == expected


@pytest.mark.parametrize(("factor", "doubted"), [(2.9, False), (3.1, True)])
@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_another_shift_has_to_be_three_times_as_probable(factor: float, doubted: bool, shift: int) -> None:
    levels = [10, 11, 12, 13, 14]
    shares = np.full((5, SACRUM), 0.01)
    shares[np.arange(5), np.array(levels) - 1] = 0.1
    shares[np.arange(5), np.array(levels) - 1 + shift] = 0.1 * factor
    expected = ["the vertebrae look like those of other levels"] if doubted else []
    assert found(levels, evidence=np.log(shares), sacrum=False) == expected


@pytest.mark.parametrize(("share", "doubted"), [(2e-4, False), (0.5e-4, True)])
def test_levels_that_the_network_gives_no_probability_are_doubted(share: float, doubted: bool) -> None:
    levels = [10, 11, 12, 13, 14]
    shares = np.full((5, SACRUM), share)
    shares[:, 0] = 0.9
    expected = ["the vertebrae look like those of other levels"] if doubted else []
    assert found(levels, evidence=np.log(shares), sacrum=False) == expected


def test_a_shift_that_leaves_half_of_the_column_outside_of_the_spine_is_no_doubt() -> None:
    shares = np.full((3, SACRUM), 0.02)
    shares[[0, 1, 2], [0, 1, 2]] = 0.1
    shares[1, 0] = shares[2, 1] = 0.5
    assert found([1, 2], evidence=np.log(shares[:2]), sacrum=False) == []
    doubt = ["the vertebrae look like those of other levels"]
    assert found([1, 2, 3], evidence=np.log(shares), sacrum=False) == doubt


def test_a_network_that_is_sure_of_the_levels_is_no_doubt() -> None:
    assert found(LOIN, evidence=evidence_of(LOIN, 1 - 1e-5)) == []


@pytest.mark.parametrize(
    ("levels", "claims", "count"),
    [
        ([19, 20, 21, 22, 23, 24], [18, 20, 21, 22, 23, 24], "four"),
        ([19, 20, 21, 22, 23, 24], [17, 20, 21, 22, 23, 24], None),
        ([20, 21, 22, 23, 24], [20, 21, 22, 23, 23], "six"),
        ([20, 21, 22, 23, 24], [20, 21, 22, 23, 22], None),
        ([21, 22, 23, 24], [20, 22, 23, 24], "four"),
        ([21, 22, 23, 24], [21, 22, 23, 23], None),
    ],
)
def test_lumbar_vertebrae_are_counted_between_ends_that_the_network_is_sure_of(
    levels: list[int], claims: list[int], count: str | None
) -> None:
    assert found(levels, claims) == ([f"there may be {count} lumbar vertebrae"] if count else [])
    assert found(levels, evidence=evidence_of(claims, 0.74)) == []


def test_the_last_one_that_the_network_is_sure_of_may_be_l4() -> None:
    evidence = evidence_of([18, 20, 21, 22, 23, 24])
    evidence[-1] = np.log(1 / SACRUM)
    assert found([19, 20, 21, 22, 23, 24], evidence=evidence) == ["there may be four lumbar vertebrae"]


def test_a_person_outweighs_all_but_places_sacrum_and_sizes() -> None:
    levels, places = np.array([17, 18, 19, 21, 22]), centres_of([17, 18, 19, 20, 21])
    volumes = np.array([40.0, 10.0, 40.0, 40.0, 40.0])
    given = (levels, places, volumes)
    assert doubts_in_spite_of_a_person(*given, True, np.zeros(5, bool)) == [
        "T12 and L2 are as close as neighbours",
        "nothing was found between L3 and the sacrum",
        "the size of T11 is unlike its neighbours'",
    ]
    assert doubts_in_spite_of_a_person(*given, False, np.ones(5, bool)) == ["T12 and L2 are as close as neighbours"]
