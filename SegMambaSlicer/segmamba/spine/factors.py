"""The factors of the hidden Markov model: weights of emissions, ribs, transitions and terminations for each level.

All values are prior probabilities, set by judgement of anatomy and networks, not fitted.
"""

from __future__ import annotations

import numpy as np

from segmamba.spine.levels import (
    C1,
    C2,
    C7,
    DISTANCE_SPREAD,
    DISTANCES_MM,
    L1,
    L4,
    L5,
    L6,
    SACRUM,
    T1,
    T11,
    T12,
    T13,
)

# Level offsets: by how many levels the network's prediction may be off.
LEVEL_OFFSETS = range(-2, 3)
# Log-penalties of an offset where the vertebra is, or is taken for, one unlike its neighbours (the rings of C1 and C2)
LANDMARKS = {C1: 2.5, C2: 2.5}
# or one at a change that is visible if the vertebra above is in view, too (first and last rib, shape of the joints).
CHANGES = {T1: 0.4, T12: 0.2, L1: 0.7}
# Prior probability that the network's prediction for a vertebra is uninformative.
UNINFORMATIVE = 0.05
# No, one, two or three missed vertebrae in a row (their neighbours are that much further apart).
MISSED = (1.0, 0.02, 0.004, 0.001)
MORE_MISSED = 1e-6
# Two vertebrae that were found as one, halfway between them: its distances to both neighbours are half as long again.
# Probability of either transition; and a factor for it where the other distance is not longer than this multiple of
# those around, as a disc that is a little wider explains more.
MERGED, MERGED_ONE_SIDE, MERGED_DISTANCE = 0.05, 0.2, 1.1
# A spurious instance: a vertebra found twice, or not a vertebra.
SPURIOUS = 0.02
MOST_SPURIOUS = 3
# Prior probability that a distance fits no level: distorted columns.
ODD_DISTANCE = 0.002
# Variants, each in a few percent of people: L6, no T12, and L4 as the last one.
SIXTH_LUMBAR, NO_T12, L4_LAST = 0.06, 0.02, 0.01
# A thirteenth thoracic vertebra: of 1,340 patients 5 (0.4%) had 13 ribs (synapse.koreamed.org/articles/1158507, table
# 1; six lumbar vertebrae were seen in 16 of 293, doi 10.1186/s13018-018-0835-9). Twice that, as a short rib may be
# counted as none. It is considered only where its rib was found: then a column of 25 has rather T13 than six lumbar
# vertebrae of which the first has a rib.
THIRTEENTH_THORACIC = 0.008
# The sacrum's centroid is less certain than a vertebra's; a truncated vertebra's spread is this many times larger.
SACRUM_SPREAD = 0.2
CUT_SPREAD = 2.0
# The states of a vertebra: C1 to L6, and T13.
STATES = (*range(C1, L6 + 1), T13)
STATE = {level: state for state, level in enumerate(STATES)}
# P(rib detected | level), if ribs are detected at all: last ribs may be small, cervical and lumbar ones exist.
RIB_DETECTED = {
    **dict.fromkeys(range(C1, L6 + 1), 0.01),
    **dict.fromkeys(range(T1, T12), 0.97),
    C7: 0.03,
    T12: 0.85,
    T13: 0.85,
    L1: 0.08,
}


def emission_weights(evidence: np.ndarray) -> np.ndarray:
    """Return the likelihood (n, states, offsets) of the network's predictions for each level and level offset.

    Networks have no class for T13: it looks like T12 or like L1.
    """
    shares = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    shares = (1 - UNINFORMATIVE) * shares / shares.sum(axis=1, keepdims=True) + UNINFORMATIVE / SACRUM
    emission = np.full((len(evidence), len(STATES), len(LEVEL_OFFSETS)), UNINFORMATIVE / SACRUM)
    for level in range(C1, L6 + 1):
        for column, offset in enumerate(LEVEL_OFFSETS):
            if C1 <= level + offset <= SACRUM:
                emission[:, level - 1, column] = shares[:, level + offset - 1]
    emission[:, STATE[T13]] = (emission[:, STATE[T12]] + emission[:, STATE[L1]]) / 2
    return emission * offset_penalties(LANDMARKS)


def rib_weights(ribs: np.ndarray) -> np.ndarray:
    """Return the likelihood (n, states) of detecting a rib or none for each level; 1 where that is unknown.

    For T13 it is 0 where no rib was found, or none can be seen: nothing else tells it from L1 of six.
    """
    detected = np.array([RIB_DETECTED[level] for level in STATES])
    likelihood = np.where(ribs[:, None] > 0.5, detected, 1 - detected)
    likelihood = np.where(np.isnan(ribs)[:, None], 1.0, likelihood)
    likelihood[~(ribs > 0.5), STATE[T13]] = 0.0
    return likelihood


def offset_penalties(landmarks: dict[int, float]) -> np.ndarray:
    """Return factors (states, offsets) below 1 for level offsets that would remove or invent a landmark."""
    factors = np.ones((len(STATES), len(LEVEL_OFFSETS)))
    for level in range(C1, L6 + 1):
        for column, offset in enumerate(LEVEL_OFFSETS):
            if offset:
                factors[level - 1, column] = np.exp(-max(landmarks.get(level, 0), landmarks.get(level + offset, 0)))
    factors[STATE[T13]] = factors[STATE[L1]]
    return factors


def spurious_weights(volumes: np.ndarray) -> np.ndarray:
    """Return the weight (n,) of each instance being spurious, its predictions being random."""
    around = [np.median(volumes[max(0, i - 2) : i + 3]) for i in range(len(volumes))]
    whole = np.clip(volumes / np.maximum(around, 1e-6), 0.0, 1.0)
    return SPURIOUS / SACRUM**whole


def _level_steps() -> tuple[np.ndarray, np.ndarray]:
    """Return the expected distance in mm, for scale 1, and the prior, both (25, 25), from a level to the next one."""
    below = np.r_[0.0, np.cumsum(DISTANCES_MM)]
    distances = np.maximum(below - below[:, None], 1.0)
    prior = np.zeros((L6, L6))
    for missed, probability in enumerate(MISSED):
        prior += probability * np.eye(L6, k=1 + missed)
    prior[:, L6 - 1] *= SIXTH_LUMBAR
    return distances, prior


def transition_weights(centres: np.ndarray, cut: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the weights (scales, n, n, states, states) of transitions from one instance and level to another.

    Parameters
    ----------
    centres : ndarray
        Shape (n, 3), in mm.
    cut : ndarray of bool
        Shape (n,): truncated vertebrae.
    scales : ndarray
        Of the column, shape (scales,).
    """
    count = len(centres)
    expected, prior = _level_steps()
    scaled = scales[:, None, None] * expected
    next_one, next_but_one = np.eye(L6, k=1, dtype=bool), np.eye(L6, k=2, dtype=bool)
    half_more = np.where(next_one, 1.5, 0.75) * scaled
    # Odd distances are those of neighbours: no level is left out where two are one step apart, and no instance lies
    # between them. One that is left out as spurious leaves the distance of its neighbours as it is.
    odd = np.where(next_one, ODD_DISTANCE, 0.0)
    usual = slice(0, L6)  # all states but T13
    merged = MERGED * np.where(_may_be_two(centres), 1.0, MERGED_ONE_SIDE)
    transitions = np.zeros((len(scales), count, count, len(STATES), len(STATES)))
    for i in range(count):
        for j in range(i + 1, min(count, i + 2 + MOST_SPURIOUS)):
            distance = float(np.linalg.norm(centres[i] - centres[j]))
            spread = DISTANCE_SPREAD * (CUT_SPREAD if cut[i] or cut[j] else 1.0)
            weights = transitions[:, i, j]
            own = weights[:, usual, usual]
            own[:] = prior * _gaussian(distance, scaled, spread)
            if j == i + 1:
                own += prior * odd
                own += merged[i, j] * (next_one | next_but_one) * (_gaussian(distance, half_more, spread) + odd)
            one_step = _distance_likelihood(distance, scaled[:, T11 - 1, T12 - 1], spread)
            weights[:, STATE[T11], STATE[L1]] += NO_T12 * one_step
            # T13 is as far from its neighbours as T12 is from L1.
            step = scaled[:, T12 - 1, L1 - 1]
            next_to, missed = _distance_likelihood(distance, step, spread), _gaussian(distance, 2 * step, spread)
            weights[:, STATE[T12], STATE[T13]] = THIRTEENTH_THORACIC * next_to
            weights[:, STATE[T13], STATE[L1]] = next_to
            weights[:, STATE[T11], STATE[T13]] = THIRTEENTH_THORACIC * MISSED[1] * missed
            weights[:, STATE[T13], STATE[L1 + 1]] = MISSED[1] * missed
    return transitions


def _may_be_two(centres: np.ndarray) -> np.ndarray:
    """Return for which pairs of instances (n, n) one may be two vertebrae, by its distance to its other neighbour.

    At the end of a column it has none, and nothing speaks against it.
    """
    gaps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    usual = np.array([np.median(gaps[max(0, n - 2) : n + 3]) for n in range(len(gaps))])
    long = np.r_[True, gaps > MERGED_DISTANCE * usual, True]
    # From instance i on, ``long[i]`` is the gap above it and ``long[i + 1]`` that below.
    return long[:-1][:, None] | long[1:][None, :]


def termination_weights(
    centres: np.ndarray, sacrum: np.ndarray | None, sacrum_mm: tuple[float, float], scale: float
) -> np.ndarray:
    """Return the weights (n, states) of each instance and level being the last one above the sacrum or the border.

    Parameters
    ----------
    centres : ndarray
        Shape (n, 3), in mm.
    sacrum : ndarray or None
        Shape (3,), in mm: centroid of what is in view of the sacrum.
    sacrum_mm : tuple of float
        Shortest and longest distance of that centroid from L5, for scale 1.
    scale : float
        Of the column.
    """
    terminations = np.ones((len(centres), len(STATES)))
    if sacrum is None:
        return terminations
    above_l5 = np.r_[np.cumsum(DISTANCES_MM[: L5 - 1][::-1])[::-1], 0.0, 0.0]
    prior = np.full(L6, MORE_MISSED)
    prior[L5 - len(MISSED) : L5] = MISSED[::-1]
    prior[L6 - 1] = 1.0
    for index, centre in enumerate(centres):
        distance = float(np.linalg.norm(sacrum - centre))
        shortest, longest = (scale * (end + above_l5) for end in sacrum_mm)
        nearest = np.clip(distance, shortest, longest)
        terminations[index, :L6] = prior * _distance_likelihood(distance, nearest, SACRUM_SPREAD)
        terminations[index, STATE[T13]] = terminations[index, STATE[T12]]
        nearest = np.clip(distance, scale * sacrum_mm[0], scale * sacrum_mm[1])
        terminations[index, L4 - 1] += L4_LAST * _distance_likelihood(distance, nearest, SACRUM_SPREAD)
    return terminations


def _distance_likelihood(distance: float, expected: np.ndarray, spread: float) -> np.ndarray:
    """Return the likelihood of a distance in mm, 1 for the expected one; ``spread`` is that of its logarithm."""
    return _gaussian(distance, expected, spread) + ODD_DISTANCE


def _gaussian(distance: float, expected: np.ndarray, spread: float) -> np.ndarray:
    """Return the likelihood of a distance in mm, 1 for the expected one, of a normal law of its logarithm."""
    likelihood: np.ndarray = np.exp(-((np.log(max(distance, 1.0) / expected) / spread) ** 2) / 2)
    return likelihood
