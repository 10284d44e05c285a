"""Two instances that are the body and the arch of one vertebra become one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from segmamba.spine.halves import are_halves, merged, pairs_of_halves
from segmamba.spine.hmm import label_observations
from segmamba.spine.instances import Instances
from segmamba.spine.level_model import Observations, weight_of_column
from segmamba.spine.levels import SACRUM

CLAIMS = [1, 2, 2, 3, 4, 5]
VOLUMES = [17.9, 8.6, 10.2, 10.1, 11.5, 10.3]


def shares(claims: list[int], sureness: float = 0.8) -> np.ndarray:
    found = np.full((len(claims), SACRUM), (1 - sureness) / (SACRUM - 1))
    found[np.arange(len(claims)), np.array(claims) - 1] = sureness
    return np.log(found)


def pairs(claims: list[int] = CLAIMS, volumes: list[float] = VOLUMES, sureness: float = 0.8) -> list[int]:
    return pairs_of_halves(shares(claims, sureness), np.array(volumes))


def neck(claims: list[int], gaps: list[float]) -> Observations:
    count = len(claims)
    centres = np.c_[-np.cumsum([0.0, *gaps]), np.zeros((count, 2))]
    return Observations(
        shares(claims), centres, np.full(count, 10.0), None, np.zeros(count, bool), np.full(count, np.nan), False
    )


def test_neighbours_that_look_like_one_level_and_are_small_may_be_halves() -> None:
    assert pairs() == [1]
    assert pairs([1, 2, 3, 4, 5, 5], [18.0, 12, 10, 10, 5, 5]) == [4]


@pytest.mark.parametrize(
    "changes",
    [
        {"claims": [1, 2, 3, 4, 5, 6]},
        {"volumes": [10.0] * 6},
        {"volumes": [17.9, 15.0, 14.0, 10.1, 11.5, 10.3]},
        {"sureness": 0.4},
    ],
    ids=["levels differ", "as large as two", "larger than one", "levels are not clear"],
)
def test_two_vertebrae_may_not_be_halves(changes: dict) -> None:
    assert pairs(**changes) == []


def test_an_instance_alone_is_no_half() -> None:
    assert pairs([4], [10.0]) == []
    assert pairs_of_halves(np.zeros((0, SACRUM)), np.zeros(0)) == []


def test_a_half_that_was_left_out_is_one() -> None:
    assert are_halves(np.array([1, 2, 0, 3]), 1, apart=1.0, together=1.0)
    assert are_halves(np.array([1, 0, 2, 3]), 1, apart=1.0, together=1.0)
    assert not are_halves(np.array([1, 2, 3, 4]), 1, apart=1.0, together=1.0)


def test_the_arch_of_c2_as_far_from_its_body_as_c3_is_no_vertebra_if_those_below_are_clear() -> None:
    # T1 has a rib.
    apart = neck([1, 2, 2, 3, 4, 5, 6, 7, 8], [17.0, 20.0, 14.0, 19.0, 17.0, 15.0, 17.0, 17.0])
    apart = replace(apart, ribs=np.array([0.0] * 8 + [1.0]))
    levels = label_observations(apart).levels
    together = neck([1, 2, 3, 4, 5, 6, 7, 8], [27.0, 24.0, 19.0, 17.0, 15.0, 17.0, 17.0])
    together = replace(together, ribs=np.array([0.0] * 7 + [1.0]))
    assert 0 not in levels  # distances and volumes do not tell
    assert are_halves(levels, 1, weight_of_column(apart), weight_of_column(together))


def test_a_network_that_is_wrong_about_one_of_two_vertebrae_does_not_make_halves_of_them() -> None:
    apart = neck([11, 12, 13, 13, 14, 15], [21.0] * 5)
    together = neck([11, 12, 13, 14, 15], [21.0, 31.0, 31.0, 21.0])
    assert not are_halves(label_observations(apart).levels, 2, weight_of_column(apart), weight_of_column(together))


def test_a_column_that_fits_the_model_has_the_larger_weight() -> None:
    usual = neck([11, 12, 13, 14], [21.0] * 3)
    assert weight_of_column(usual) > weight_of_column(replace(usual, evidence=shares([11, 14, 12, 13])))


def test_merged_instances_have_one_number_one_centre_and_the_volume_of_both() -> None:
    labels = np.array([[[0, 1, 2, 3, 3, 4]]], np.int16)
    centres = np.array([[40.0, 0, 0], [30, -10, 0], [20, 0, 0], [10, 0, 0]])
    found = merged(Instances(labels, centres, np.array([9.0, 5.0, 10.0, 8.0])), 1)
    assert found.labels.tolist() == [[[0, 1, 2, 2, 2, 3]]]
    assert found.volumes.tolist() == [9.0, 15.0, 8.0]
    assert np.allclose(found.centres, [[40, 0, 0], [70 / 3, -10 / 3, 0], [10, 0, 0]])
