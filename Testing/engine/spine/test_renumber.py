"""Renumbering by hand: the others follow one vertebra, in order, and what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest

from segmamba.errors import InputError
from segmamba.spine.levels import L1, L5, L6, SACRUM, T11, T12, T13
from segmamba.spine.renumber import ABOVE, BELOW, WHOLE, new_levels, renumber


def labels_of(levels: list[int]) -> np.ndarray:
    """Return a label map with a slice for each level."""
    return np.repeat(np.array(levels, np.uint8), 4).reshape(len(levels), 2, 2)


def after(levels: list[int], value: int, new_value: int, part: str = WHOLE) -> list[int]:
    return [int(layer[0, 0]) for layer in renumber(labels_of(levels), value, new_value, part)]


def test_a_new_number_moves_the_whole_column_but_not_the_sacrum() -> None:
    column = [0, 19, 20, 21, SACRUM]
    assert after(column, 20, 21) == [0, 20, 21, 22, SACRUM]
    assert after(after(column, 20, 21), 21, 20) == column
    assert renumber(labels_of(column), 20, 21).dtype == np.uint8
    assert new_levels(column, 20, 20) == {}


@pytest.mark.parametrize(
    ("part", "value", "new_value", "expected"),
    [
        (BELOW, 21, 22, [19, 20, 22]),
        (BELOW, 19, 18, [18, 19, 20]),
        (ABOVE, 19, 18, [18, 20, 21]),
        (ABOVE, 21, 22, [20, 21, 22]),
    ],
)
def test_the_others_keep_their_numbers(part: str, value: int, new_value: int, expected: list[int]) -> None:
    assert after([19, 20, 21], value, new_value, part) == expected


@pytest.mark.parametrize(
    ("levels", "value", "new_value", "part", "sentence"),
    [
        ([19, 20, 21], 20, 19, BELOW, "If L1 were T12, there would be T12 twice: choose another level, or renumber"),
        ([19, 20, 21], 20, 21, ABOVE, "If L1 were L2, there would be L2 twice: choose another level, or renumber"),
        ([19, 20, 21], 19, 24, WHOLE, "If T12 were L5, L2 would not be between C1 and L6: choose another level"),
        ([19, 21], 21, 18, BELOW, "If L2 were T11, the levels would be out of order: choose another level."),
        ([1, 2], 2, 1, WHOLE, "If C2 were C1, C1 would not be between C1 and L6: choose another level"),
        ([24, 25], 24, 25, WHOLE, "If L5 were L6, L6 would not be between C1 and L6: choose another level"),
        ([19, 20], 3, 4, WHOLE, "There is no C3 in the segmentation: choose one of its vertebrae."),
        ([19, 20], 77, 4, WHOLE, "There is no level 77 in the segmentation: choose one of its vertebrae."),
    ],
)
def test_what_cannot_be_is_one_sentence(
    levels: list[int], value: int, new_value: int, part: str, sentence: str
) -> None:
    with pytest.raises(InputError) as caught:
        renumber(labels_of(levels), value, new_value, part)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("part", [WHOLE, BELOW])
def test_a_first_lumbar_vertebra_that_is_t13_leaves_those_above_and_moves_those_below(part: str) -> None:
    six = [T11, T12, L1, 21, 22, 23, 24, L6]
    thirteen = [T11, T12, T13, L1, 21, 22, 23, L5]
    assert after(six, L1, T13, part) == thirteen
    assert after(thirteen, T13, L1, part) == six
    assert after(thirteen, L5, L6) == six
    assert after(thirteen, T13, T12) == [17, T11, T12, L1, 21, 22, 23, L5]
    assert after(thirteen, L5, L5) == thirteen
