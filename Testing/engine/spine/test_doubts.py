"""A labelling that something contradicts is not certain, however probable it is."""

from __future__ import annotations

import numpy as np
import pytest

from segmamba.spine.doubts import distance_doubts, doubts
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
