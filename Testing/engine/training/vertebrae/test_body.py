"""What is invented around a bare piece of thorax lies where it does in people."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import small_spine

from segmamba.training.synthesis.tissue_labels import CLAVICLE, HEART, LEFT_RIBS, LUNG, RIGHT_RIBS, SCAPULA, TRACHEA
from segmamba.training.vertebrae.body import procedural_body


def thorax(top: int) -> np.ndarray:
    return procedural_body(small_spine.vertebrae(top), np.random.default_rng(0))


def middle(codes: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the centre (z, y, x) of what is there; axes run to superior, posterior, left."""
    assert where.any()
    return np.argwhere(where).mean(axis=0)


@pytest.mark.parametrize("top", [8, 14])
def test_each_thoracic_vertebra_has_a_rib_on_either_side_and_no_other_has(top: int) -> None:
    codes = thorax(top)
    for label in range(8, 20):
        left, right = (codes == ribs[label - 8] for ribs in (LEFT_RIBS, RIGHT_RIBS))
        assert left.any() == right.any() == (top <= label < top + 3)
        if left.any():
            column = middle(codes, codes == label)
            assert middle(codes, right)[2] < column[2] < middle(codes, left)[2]


def test_shoulder_blades_lie_behind_the_lungs_and_collar_bones_and_windpipe_before_the_column() -> None:
    codes = thorax(8)
    column = middle(codes, (codes >= 8) & (codes < 11))
    assert middle(codes, codes == SCAPULA)[1] > middle(codes, codes == LUNG)[1]
    assert middle(codes, codes == CLAVICLE)[1] < column[1]
    assert middle(codes, codes == TRACHEA)[1] < column[1]


def test_the_heart_lies_before_the_column_between_the_lungs_and_to_the_left() -> None:
    codes = thorax(14)
    column, heart = middle(codes, codes == 15), middle(codes, codes == HEART)
    assert heart[1] < column[1] and heart[2] > column[2]
    at = round(heart[0])
    assert (codes[at, :, : int(column[2])] == LUNG).any() and (codes[at, :, int(column[2]) :] == LUNG).any()
