"""What is invented around a bare piece of thorax lies where it does in people."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import small_spine

from segmamba.training.synthesis.tissue_labels import CLAVICLE, HEART, LEFT_RIBS, LUNG, RIGHT_RIBS, SCAPULA, TRACHEA
from segmamba.training.vertebrae.body import procedural_body


def thorax(top: int) -> np.ndarray:
    return procedural_body(small_spine.vertebrae(top), np.random.default_rng(0))


def middle(tissues: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the centre (z, y, x) of what is there; axes run to superior, posterior, left."""
    assert where.any()
    return np.argwhere(where).mean(axis=0)


@pytest.mark.parametrize("top", [8, 14])
def test_each_thoracic_vertebra_has_a_rib_on_either_side_and_no_other_has(top: int) -> None:
    tissues = thorax(top)
    for label in range(8, 20):
        left, right = (tissues == ribs[label - 8] for ribs in (LEFT_RIBS, RIGHT_RIBS))
        assert left.any() == right.any() == (top <= label < top + 3)
        if left.any():
            column = middle(tissues, tissues == label)
            assert middle(tissues, right)[2] < column[2] < middle(tissues, left)[2]


def test_shoulder_blades_lie_behind_the_lungs_and_collar_bones_and_windpipe_before_the_column() -> None:
    tissues = thorax(8)
    column = middle(tissues, (tissues >= 8) & (tissues < 11))
    assert middle(tissues, tissues == SCAPULA)[1] > middle(tissues, tissues == LUNG)[1]
    assert middle(tissues, tissues == CLAVICLE)[1] < column[1]
    assert middle(tissues, tissues == TRACHEA)[1] < column[1]


def test_the_heart_lies_before_the_column_between_the_lungs_and_to_the_left() -> None:
    tissues = thorax(14)
    column, heart = middle(tissues, tissues == 15), middle(tissues, tissues == HEART)
    assert heart[1] < column[1] and heart[2] > column[2]
    at = round(heart[0])
    assert (tissues[at, :, : int(column[2])] == LUNG).any() and (tissues[at, :, int(column[2]) :] == LUNG).any()
