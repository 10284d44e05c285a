"""Which vertebra of one exam is which of another: by their shapes and their levels. Our own method.

Each vertebra of the first exam is laid rigidly on its candidates in the second one. How far their surfaces then are
apart says how likely they are the same bone; what is likely for all of them together, in their order down the column,
is chosen (dynamic programming). Neighbours are alike, so that one pair alone says little and a column says much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from segmamba.measurements.vertebral_body import POSTERIOR, Mask, axes_along, resampled
from segmamba.spine.levels import ORDER, SACRUM
from segmamba.utils.arrays import bounding_box
from segmamba.utils.parallel import at_once

# Samples of a mask, mm; around it so much, mm, is sampled too, since the other one may reach there.
STEP_MM, MARGIN_MM = 1.5, 12.0
# So many points near the surface are laid on the other surface.
POINTS, NEAR_MM = 700, 1.5
# Steps of the registration, and the distance from which on a point counts less and less (Huber), mm.
STEPS, HUBER_MM, CONVERGED_MM = 25, 1.0, 0.01
# Closer, surfaces are one; further apart, they say no more, mm.
LEAST_MM, FURTHEST_MM = 0.05, 8.0
# Levels so many steps apart are compared: no numbering is further off.
REACH = 3
# How far apart surfaces of the same bone are depends on voxels and noise, so that a pair is compared with the other
# pairs of its two bones: logarithm of the ratio of the distances for which the odds are e to 1.
# `python benchmarks/follow_up.py shapes`.
RATIO = 0.12
# No pair decides alone: it may be broken in one of the exams.
MOST = 4.0
# Logarithms of odds: the numbers of the two exams are apart, or go apart at a place; a vertebra between others that
# only one of the exams has.
RENUMBERED, LEFT_OUT = -3.0, -8.0
# A match is certain if no other one is within these odds.
CERTAIN = 3.0
# A column whose surfaces are further apart at their median is another person's, mm.
SAME_PERSON_MM = 1.2


@dataclass(frozen=True, eq=False)
class Shape:
    """A vertebra as distances from its surface.

    Attributes
    ----------
    centre : ndarray (3,)
        LPS mm.
    axes : ndarray (3, 3)
        Unit vectors up the column, posterior and left, one a row.
    low : ndarray (3,)
        First sample, mm from the centre along the axes.
    distance : ndarray
        Signed distance from the surface, mm, negative inside, on a grid of `STEP_MM` along the axes.
    points : ndarray (n, 3)
        Samples near the surface, mm from the centre along the axes.
    values : ndarray (n,)
        The distance there.
    """

    centre: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    distance: np.ndarray
    points: np.ndarray
    values: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return distances from the surface at points (n, 3), mm along the axes."""
        index = ((points - self.low) / STEP_MM).T
        values: np.ndarray = ndimage.map_coordinates(self.distance, index, np.float32, order=1, mode="nearest")
        return values


@dataclass(frozen=True, eq=False)
class Fit:
    """A vertebra laid on another one.

    Attributes
    ----------
    distance_mm : float
        Mean distance of the surfaces.
    to_second : ndarray (4, 4)
        From LPS mm of the first exam to those of the second.
    """

    distance_mm: float
    to_second: np.ndarray


@dataclass(frozen=True, eq=False)
class Match:
    """What belongs together in two exams.

    Attributes
    ----------
    pairs : tuple of tuple of int
        Levels in the first and in the second exam, from the head down.
    fits : mapping
        By pair; those with a vertebra at an image's border are missing.
    certain : bool
        Whether no other match is nearly as likely.
    same_person : bool or None
        Whether the shapes are those of one person; None if there are none to compare.
    """

    pairs: tuple[tuple[int, int], ...]
    fits: Mapping[tuple[int, int], Fit]
    certain: bool
    same_person: bool | None

    @property
    def renumbered(self) -> tuple[tuple[int, int], ...]:
        """Pairs of which the two exams have other levels."""
        return tuple(pair for pair in self.pairs if pair[0] != pair[1])


def shape_of(mask: Mask, up: np.ndarray) -> Shape:
    """Return the shape of a vertebra; ``up`` is the approximate direction of the column, LPS."""
    box = bounding_box(mask.array)
    assert box is not None
    points = np.argwhere(mask.array[box])[:, ::-1] + [part.start for part in reversed(box)]
    points = points @ mask.to_lps[:3, :3].T + mask.to_lps[:3, 3]
    centre, axes = points.mean(axis=0), axes_along(up, POSTERIOR)
    local = (points - centre) @ axes.T
    low, high = local.min(axis=0) - MARGIN_MM, local.max(axis=0) + MARGIN_MM
    soft = resampled(mask, centre, axes, low, high, STEP_MM)
    inside = soft >= 0.5
    if not inside.any():
        inside = soft > 0
    distance = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
    # Between voxels, too: the steps of the voxels are no shape.
    distance = ndimage.gaussian_filter(distance.astype(np.float32) * STEP_MM, 0.7)
    near = np.argwhere(np.abs(distance) <= NEAR_MM)
    near = near[:: max(1, len(near) // POINTS)]
    return Shape(centre, axes, low, distance, low + STEP_MM * near, distance[tuple(near.T)])


def fit(first: Shape, second: Shape) -> Fit:
    """Lay a vertebra on another one: least absolute differences of the distances, by Gauss and Newton."""
    gradient = np.stack(np.gradient(second.distance, STEP_MM))
    turn, shift = np.eye(3), np.zeros(3)
    for _ in range(STEPS):
        moved = first.points @ turn.T + shift
        index = ((moved - second.low) / STEP_MM).T
        off = second.at(moved) - first.values
        slope = np.stack(
            [ndimage.map_coordinates(part, index, np.float32, order=1, mode="nearest") for part in gradient], axis=1
        )
        design = np.concatenate([np.cross(moved, slope), slope], axis=1)
        weights = HUBER_MM / np.maximum(np.abs(off), HUBER_MM)
        normal = design.T @ (design * weights[:, None]) + 1e-3 * np.eye(6)
        change = -np.linalg.solve(normal, design.T @ (weights * off))
        step = Rotation.from_rotvec(change[:3]).as_matrix()
        turn, shift = step @ turn, step @ shift + change[3:]
        if np.abs(change[3:]).max() + 30 * np.abs(change[:3]).max() < CONVERGED_MM:
            break
    off = np.abs(second.at(first.points @ turn.T + shift) - first.values)
    matrix = np.eye(4)
    matrix[:3, :3] = second.axes.T @ turn @ first.axes
    matrix[:3, 3] = second.centre + second.axes.T @ shift - matrix[:3, :3] @ first.centre
    return Fit(float(np.clip(off.mean(), LEAST_MM, FURTHEST_MM)), matrix)


def match(first: Mapping[int, Shape | None], second: Mapping[int, Shape | None]) -> Match:
    """Say which vertebrae of two exams are the same.

    Parameters
    ----------
    first, second : mapping of int to Shape or None
        By level, and the sacrum's; None for one whose shape is not known: it is cut off.
    """
    upper, lower = _order(first), _order(second)
    near = [
        (one, other)
        for one in upper
        for other in lower
        # The sacrum is like no other.
        if one == other or (SACRUM not in (one, other) and abs(_place(one) - _place(other)) <= REACH)
    ]

    def fitted(pair: tuple[int, int]) -> Fit | None:
        shapes = first[pair[0]], second[pair[1]]
        return None if shapes[0] is None or shapes[1] is None else fit(shapes[0], shapes[1])

    found = {pair: each for pair, each in at_once(fitted, near).items() if each is not None}
    distances = {pair: each.distance_mm for pair, each in found.items()}
    scores = np.full((len(upper), len(lower)), -np.inf)
    for one, other in near:
        scores[upper.index(one), lower.index(other)] = _odds(distances, (one, other))
    apart = np.subtract.outer([_place(one) for one in upper], [_place(other) for other in lower]).astype(int)
    value, steps = _aligned(scores, apart)
    pairs = tuple((upper[i], lower[j]) for i, j in steps)
    # Another match has none of these pairs: all numbers are off by another step. Or nothing belongs together.
    others = scores.copy()
    others[tuple(np.array(steps, int).reshape(-1, 2).T)] = -np.inf
    runner_up = max(_aligned(others, apart)[0], -CERTAIN)
    known = [distances[pair] for pair in pairs if pair in distances]
    return Match(
        pairs,
        {pair: found[pair] for pair in pairs if pair in found},
        value - runner_up >= CERTAIN,
        bool(np.median(known) <= SAME_PERSON_MM) if known else None,
    )


def _order(levels: Mapping[int, object]) -> list[int]:
    return sorted((level for level in levels if level in ORDER or level == SACRUM), key=_place)


def _place(level: int) -> int:
    return len(ORDER) if level == SACRUM else ORDER.index(level)


def _odds(distances: Mapping[tuple[int, int], float], pair: tuple[int, int]) -> float:
    """Return the logarithm of the odds that a pair is one bone: it is closer than the other pairs of both."""
    if pair not in distances:
        return 0.0
    rivals = [
        min(
            (distance for other, distance in distances.items() if other != pair and other[side] == pair[side]),
            default=0,
        )
        for side in (0, 1)
    ]
    ratios = [np.log(rival / distances[pair]) for rival in rivals if rival > 0]
    return float(np.clip(np.mean(ratios) / RATIO, -MOST, MOST)) if ratios else 0.0


def _aligned(scores: np.ndarray, apart: np.ndarray) -> tuple[float, list[tuple[int, int]]]:
    """Return the best sum of scores of pairs in order, and the pairs.

    What lies between the pairs costs, and so does a step of the numbers, which are ``apart`` by so many levels.
    """
    rows, columns = scores.shape
    best = np.full((rows, columns), -np.inf)
    before: dict[tuple[int, int], tuple[int, int] | None] = {}
    for i, j in np.ndindex(rows, columns):
        # A match begins, and ends, where one of the columns does: images show different parts of a spine.
        begun = LEFT_OUT * min(i, j) + (RENUMBERED if apart[i, j] else 0.0)
        options: list[tuple[float, tuple[int, int] | None]] = [(begun, None)]
        for a in range(max(0, i - 1 - REACH), i):
            for b in range(max(0, j - 1 - REACH), j):
                step = RENUMBERED if apart[a, b] != apart[i, j] else 0.0
                options.append((best[a, b] + step + LEFT_OUT * (i - a + j - b - 2), (a, b)))
        value, before[i, j] = max(options, key=lambda option: option[0])
        best[i, j] = scores[i, j] + value
    value, at = -np.inf, None
    for i, j in np.ndindex(rows, columns):
        total = float(best[i, j]) + LEFT_OUT * min(rows - 1 - i, columns - 1 - j)
        if total > value:
            value, at = total, (i, j)
    steps: list[tuple[int, int]] = []
    while at is not None:
        steps.append(at)
        at = before[at]
    return value, steps[::-1]
