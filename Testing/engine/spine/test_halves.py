"""Two instances that are the body and the arch of one vertebra become one."""

from __future__ import annotations

import numpy as np
import pytest

from segmamba.spine.halves import merged, owners_of_halves
from segmamba.spine.instances import Instances
from segmamba.spine.levels import SACRUM

LEVELS = [1, 2, 0, 3, 4, 5]
CLAIMS = [1, 2, 2, 3, 4, 5]
VOLUMES = [17.9, 8.6, 10.2, 10.1, 11.5, 10.3]


def owners(
    levels: list[int] = LEVELS, claims: list[int] = CLAIMS, volumes: list[float] = VOLUMES, sureness: float = 0.8
) -> list[int]:
    shares = np.full((len(claims), SACRUM), (1 - sureness) / (SACRUM - 1))
    shares[np.arange(len(claims)), np.array(claims) - 1] = sureness
    return owners_of_halves(np.array(levels), np.log(shares), np.array(volumes)).tolist()


def test_a_half_that_was_left_out_belongs_to_the_instance_of_the_same_level() -> None:
    assert owners() == [0, 1, 1, 3, 4, 5]
    assert owners(levels=[1, 0, 2, 3, 4, 5]) == [0, 2, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": [1, 2, 3, 4, 5, 6]},
        {"claims": [1, 2, 3, 3, 4, 5], "levels": [1, 2, 0, 4, 5, 6], "volumes": [10.0] * 6},
        {"volumes": [17.9, 15.0, 14.0, 10.1, 11.5, 10.3]},
        {"sureness": 0.4},
    ],
    ids=["none was left out", "as large as two", "larger than one", "levels are not clear"],
)
def test_two_vertebrae_stay_two(changes: dict) -> None:
    assert owners(**changes) == list(range(6))


def test_an_instance_alone_has_nothing_to_belong_to() -> None:
    assert owners([0], [4], [10.0]) == [0]
    assert owners_of_halves(np.zeros(0, int), np.zeros((0, SACRUM)), np.zeros(0)).tolist() == []


def test_merged_instances_have_one_number_one_centre_and_the_volume_of_both() -> None:
    labels = np.array([[[0, 1, 2, 3, 3, 4]]], np.int16)
    centres = np.array([[40.0, 0, 0], [30, -10, 0], [20, 0, 0], [10, 0, 0]])
    found = merged(Instances(labels, centres, np.array([9.0, 5.0, 10.0, 8.0])), np.array([0, 2, 2, 3]))
    assert found.labels.tolist() == [[[0, 1, 2, 2, 2, 3]]]
    assert found.volumes.tolist() == [9.0, 15.0, 8.0]
    assert np.allclose(found.centres, [[40, 0, 0], [70 / 3, -10 / 3, 0], [10, 0, 0]])
