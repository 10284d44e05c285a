"""Loss of height of vertebral bodies against what the rest of the column lets expect, graded as by Genant.

A column is taken for one draw of a Gaussian process: logarithms of heights are those of the norm, plus the person's
size, a course along the column, the person's shape of bodies, a size of each body and what is left. What is expected at
one place of one body follows from all other heights. Heights that are far off expect nothing: they are left out one
after the other, whole bodies (crushed ones) as well as single places. The construction is our own; the grades are those
of Genant et al., J Bone Miner Res 1993.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from segmamba.measurements.heights import PLACES, Heights
from segmamba.spine.grades import grade_of
from segmamba.spine.levels import T12, T13

# Heights of the norm at each of `PLACES`, mm, T4 to L5. From the shape model: `python benchmarks/fractures.py norm`.
NORM_MM: dict[int, tuple[float, ...]] = {
    11: (20.5, 17.9, 20.2, 19.1, 19.1),
    12: (19.6, 17.7, 19.9, 18.9, 18.9),
    13: (19.4, 17.7, 20.2, 18.9, 18.9),
    14: (19.7, 18.1, 20.8, 19.3, 19.3),
    15: (20.5, 18.7, 21.8, 19.8, 19.8),
    16: (21.6, 19.5, 23.0, 20.6, 20.6),
    17: (23.0, 20.4, 24.3, 21.5, 21.5),
    18: (24.6, 21.4, 25.6, 22.5, 22.5),
    19: (26.2, 22.5, 26.8, 23.5, 23.5),
    20: (27.7, 23.4, 27.5, 24.5, 24.5),
    21: (28.8, 24.3, 27.7, 25.4, 25.4),
    22: (29.4, 24.9, 27.1, 26.2, 26.2),
    23: (29.1, 25.2, 25.7, 26.6, 26.6),
    24: (28.0, 25.1, 23.3, 26.7, 26.7),
}
FIRST = 11
# Standard deviations of the logarithms: size of the person; course along the column, and its length in levels; shape
# of bodies that the person's levels have in common; size of one body; a single place.
SIZE_SD, COURSE_SD, COURSE_LEVELS, SHAPE_SD, BODY_SD, PLACE_SD = 0.12, 0.035, 3.0, 0.03, 0.015, 0.012
# A body or a place whose height is further off than so many standard deviations expects nothing of the others. A body
# that is short at all places would explain itself: it is left out earlier.
FURTHEST_BODY_SD, FURTHEST_PLACE_SD = 2.0, 3.0
# A loss is not graded if its standard deviation is larger: more would be right no less often, but in a useless range.
LARGEST_SD = 0.10
# The grade lies in a range of so many standard deviations with a probability of 90 % or more: grades are steps, so that
# it holds more than a normal value would (`python benchmarks/fractures.py summary`).
RANGE_SD = 1.28
# A crushed body has lost this part of its height at every rim, and this part of its largest loss.
CRUSHED, CRUSHED_PART = 0.15, 0.6
SHAPES = dict(zip(PLACES, ("wedge", "biconcave", "posterior wedge", "lateral wedge", "lateral wedge"), strict=True))
OTHER_LEVEL = "Fractures are graded from T4 to L5: there is no norm for this level."
UNCERTAIN = "The mask or the rest of the column is too uncertain to judge a loss of height."
GAP = "An end plate has a gap."
TORN = "The mask of the body is torn or ragged."
# A body of which a larger part is torn or ragged is not judged.
LARGEST_TORN = 0.15


@dataclass(frozen=True)
class Loss:
    """Loss of height of a body.

    Attributes
    ----------
    expected_mm : tuple of float
        Expected heights at `PLACES`.
    part : float
        The largest loss, as a part of the expected height; negative if every height is above it.
    sd : float
        Its standard deviation: of the expectation, and of the measured height.
    place : str
        Where it is: one of `PLACES`.
    grade : int or None
        0 to 3; None if it is not judged.
    lowest, highest : int
        Grades of the loss less and plus `RANGE_SD` standard deviations.
    shape : str
        One of `SHAPES`, or "crush"; empty for grade 0 and None.
    """

    expected_mm: tuple[float, ...]
    part: float
    sd: float
    place: str
    grade: int | None
    lowest: int
    highest: int
    shape: str


def losses(heights: Mapping[int, Heights]) -> dict[int, Loss]:
    """Return the loss of height of each body that has all of its heights, at a level that `is_graded`.

    Parameters
    ----------
    heights : mapping of int to Heights
        By level. Other levels are not used.
    """
    levels = [level for level in heights if _norm(level) is not None and np.isfinite(heights[level].mm).all()]
    if not levels:
        return {}
    measured = np.array([heights[level].mm for level in levels])
    error = np.array([heights[level].sd for level in levels]) / measured
    norm = np.array([_norm(level) for level in levels])
    expected, sd = _expected(np.log(measured / norm), error, np.array([_number(level) for level in levels]))
    found = {}
    for row, level in enumerate(levels):
        found[level] = _loss(measured[row], norm[row] * np.exp(expected[row]), np.hypot(sd[row], error[row]))
    return found


def is_graded(level: int) -> bool:
    """Say whether vertebrae of a level are graded: T4 to L5, and T13."""
    return _norm(level) is not None


def _loss(measured: np.ndarray, expected: np.ndarray, sd: np.ndarray) -> Loss:
    parts = 1 - measured / expected
    sds = (1 - parts) * sd
    worst = int(parts.argmax())
    part, spread = float(parts[worst]), float(sds[worst])
    grade = grade_of(part) if spread <= LARGEST_SD else None
    front, _, back, *sides = parts
    crushed = min(front, back, *sides) >= max(CRUSHED, CRUSHED_PART * part)
    shape = ("crush" if crushed else list(SHAPES.values())[worst]) if grade else ""
    lowest, highest = grade_of(part - RANGE_SD * spread), grade_of(part + RANGE_SD * spread)
    rounded = tuple(round(float(value), 2) for value in expected)
    return Loss(rounded, part, spread, list(PLACES)[worst], grade, lowest, highest, shape)


def _number(level: int) -> float:
    """Return where a level lies in a usual column; T13 lies between T12 and L1."""
    return T12 + 0.5 if level == T13 else float(level)


def _norm(level: int) -> tuple[float, ...] | None:
    if level == T13:
        return tuple(np.mean([NORM_MM[T12], NORM_MM[T12 + 1]], axis=0).tolist())
    return NORM_MM.get(level)


def _expected(logs: np.ndarray, error: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the expected logarithm at each place from all others, and its standard deviation.

    ``logs`` and ``error`` are (levels, places).
    """
    count, places = logs.shape
    body, place = np.divmod(np.arange(count * places), places)
    apart = np.abs(numbers[body][:, None] - numbers[body])
    same_body, same_place = body[:, None] == body, place[:, None] == place
    course = np.exp(-apart / COURSE_LEVELS)
    prior = SIZE_SD**2 + COURSE_SD**2 * course + BODY_SD**2 * same_body
    prior = prior + SHAPE_SD**2 * course * same_place + np.diag(np.full(count * places, PLACE_SD**2))
    covariance = prior + np.diag(error.ravel() ** 2)
    x, used = logs.ravel(), _regular(logs.ravel(), covariance, body)
    mean, variance = np.zeros(len(x)), np.zeros(len(x))
    for index in range(len(x)):
        others = np.flatnonzero(used & (np.arange(len(x)) != index))
        gain = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, index])
        mean[index] = gain @ x[others]
        variance[index] = prior[index, index] - gain @ covariance[others, index]
    return mean.reshape(logs.shape), np.sqrt(np.maximum(variance, 0)).reshape(logs.shape)


def _regular(x: np.ndarray, covariance: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Return which values fit to the others: what is furthest off is left out first, until nothing is."""
    used = np.ones(len(x), bool)
    while used.any():
        kept = np.flatnonzero(used)
        inverse = np.linalg.inv(covariance[np.ix_(kept, kept)])
        weighted = inverse @ x[kept]
        worst, furthest = np.array([], int), 1.0
        groups = [np.flatnonzero(body[kept] == one) for one in np.unique(body[kept])]
        for group in [*groups, *np.arange(len(kept))[:, None]]:
            # Value less expectation from all outside of the group, and its covariance; of the mean of the group.
            spread = np.linalg.inv(inverse[np.ix_(group, group)])
            limit = FURTHEST_BODY_SD if len(group) > 1 else FURTHEST_PLACE_SD
            off = float(abs((spread @ weighted[group]).mean()) / np.sqrt(spread.mean())) / limit
            if off > furthest:
                worst, furthest = kept[group], off
        if not len(worst):
            break
        used[worst] = False
    return used
