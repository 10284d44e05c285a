"""Renumbering by hand: which levels vertebrae get when one of them gets another."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from segmamba.errors import InputError
from segmamba.spine.levels import ORDER, SACRUM, T13, from_top, level_name

# Which vertebrae move with one: all, those below it, or those above it.
WHOLE, BELOW, ABOVE = "whole", "below", "above"


def renumber(labels: np.ndarray, value: int, new_value: int, part: str = WHOLE) -> np.ndarray:
    """Change the level of a vertebra and shift others with it, so that they stay in order; the sacrum stays.

    Parameters
    ----------
    labels : ndarray of uint8
        Levels, sacrum 26.
    value, new_value : int
        Levels: the present one and the right one.
    part : str
        `WHOLE`, `BELOW` or `ABOVE`: what moves with it.

    Raises
    ------
    InputError
        As `new_levels`.
    """
    table = np.arange(256, dtype=labels.dtype)
    for level, new in new_levels(np.unique(labels).tolist(), value, new_value, part).items():
        table[level] = new
    return table[labels]


def new_levels(levels: Iterable[int], value: int, new_value: int, part: str = WHOLE) -> dict[int, int]:
    """Return the new level of each vertebra that moves, by its present one.

    The vertebrae next to one keep next to it, so that without T13 all levels of ``part`` shift by the same number. A
    T13 counts as one; where another vertebra gets a new level, it becomes T12 or L1.

    Parameters
    ----------
    levels : iterable of int
        Those of the column; others than those of vertebrae do not matter.
    value, new_value, part
        As for `renumber`.

    Raises
    ------
    InputError
        There is no such vertebra, one would leave C1 to L6, two would have the same level, or they would be out of
        order.
    """
    present = from_top(levels)
    if value not in present:
        raise InputError(f"There is no {_name(value)} in the segmentation: choose one of its vertebrae.")
    moved: dict[int, int] = {}
    if value == new_value:
        return moved
    if_so = f"If {_name(value)} were {_name(new_value)}, "
    moving = [level for level in present if moves(level, value, part)]
    for level in moving:
        new = moved_level(level, value, new_value, T13 in present)
        if new in set(present) - set(moving):
            raise InputError(
                f"{if_so}there would be {_name(new)} twice: choose another level, or renumber the whole column."
            )
        if new is None:
            raise InputError(
                f"{if_so}{_name(level)} would not be between C1 and L6: choose another level, or remove that vertebra "
                "first."
            )
        moved[level] = new
    after = [ORDER.index(moved.get(level, level)) for level in present]
    if after != sorted(after):
        raise InputError(f"{if_so}the levels would be out of order: choose another level.")
    return moved


def moves(level: int, value: int, part: str) -> bool:
    """Say whether a level moves with another one."""
    steps = ORDER.index(level) - ORDER.index(value)
    return part == WHOLE or (steps >= 0 if part == BELOW else steps <= 0)


def moved_level(level: int, value: int, new_value: int, with_t13: bool) -> int | None:
    """Return the new level of a vertebra where another one, ``value``, gets a new level; None beyond C1 or L6.

    ``with_t13`` says whether the column has a T13 now; afterwards it has one only if that is the new level.
    """
    before, after = ([each for each in ORDER if each != T13 or there] for there in (with_t13, new_value == T13))
    index = after.index(new_value) + before.index(level) - before.index(value)
    return after[index] if 0 <= index < len(after) else None


def _name(level: int) -> str:
    return level_name(level) if level in ORDER or level == SACRUM else f"level {level}"
