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
# Probability of either transition.
MERGED = 0.05
# A spurious instance: a vertebra found twice, or not a vertebra.
SPURIOUS = 0.02
MOST_SPURIOUS = 3
# Prior probability that a distance fits no level: distorted columns.
ODD_DISTANCE = 0.002
# Variants, each in a few percent of people: L6 or T13, no T12, and L4 as the last one.
SIXTH_LUMBAR, NO_T12, L4_LAST = 0.06, 0.02, 0.01
# The sacrum's centroid is less certain than a vertebra's; a truncated vertebra's spread is this many times larger.
SACRUM_SPREAD = 0.2
CUT_SPREAD = 2.0
# P(rib detected | level), if ribs are detected at all: last ribs may be small, cervical and lumbar ones exist.
RIB_DETECTED = {
    **dict.fromkeys(range(C1, L6 + 1), 0.01),
    **dict.fromkeys(range(T1, T12), 0.97),
    C7: 0.03,
    T12: 0.85,
    L1: 0.08,
}


def emission_weights(evidence: np.ndarray) -> np.ndarray:
    """Return the likelihood (n, 25, offsets) of the network's predictions for each level and level offset."""
    shares = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    shares = (1 - UNINFORMATIVE) * shares / shares.sum(axis=1, keepdims=True) + UNINFORMATIVE / SACRUM
    emission = np.full((len(evidence), L6, len(LEVEL_OFFSETS)), UNINFORMATIVE / SACRUM)
    for level in range(C1, L6 + 1):
        for column, offset in enumerate(LEVEL_OFFSETS):
            if C1 <= level + offset <= SACRUM:
                emission[:, level - 1, column] = shares[:, level + offset - 1]
    return emission * offset_penalties(LANDMARKS)


def rib_weights(ribs: np.ndarray) -> np.ndarray:
    """Return the likelihood (n, 25) of detecting a rib or none for each level; 1 where that is unknown."""
    detected = np.array([RIB_DETECTED[level] for level in range(C1, L6 + 1)])
    likelihood = np.where(ribs[:, None] > 0.5, detected, 1 - detected)
    return np.where(np.isnan(ribs)[:, None], 1.0, likelihood)


def offset_penalties(landmarks: dict[int, float]) -> np.ndarray:
    """Return factors (25, offsets) below 1 for level offsets that would remove or invent a landmark."""
    factors = np.ones((L6, len(LEVEL_OFFSETS)))
    for level in range(C1, L6 + 1):
        for column, offset in enumerate(LEVEL_OFFSETS):
            if offset:
                factors[level - 1, column] = np.exp(-max(landmarks.get(level, 0), landmarks.get(level + offset, 0)))
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


def transition_weights(centres: np.ndarray, cut: np.ndarray, scale: float) -> np.ndarray:
    """Return the weights (n, n, 25, 25) of transitions from one instance and level to another.

    Parameters
    ----------
    centres : ndarray
        Shape (n, 3), in mm.
    cut : ndarray of bool
        Shape (n,): truncated vertebrae.
    scale : float
        Of the column.
    """
    count = len(centres)
    expected, prior = _level_steps()
    next_one, next_but_one = np.eye(L6, k=1, dtype=bool), np.eye(L6, k=2, dtype=bool)
    half_more = np.where(next_one, 1.5, 0.75) * expected
    # Odd distances are those of neighbours: no level is left out where two are one step apart.
    odd = np.where(next_one, ODD_DISTANCE, 0.0)
    transitions = np.zeros((count, count, L6, L6))
    for i in range(count):
        for j in range(i + 1, min(count, i + 2 + MOST_SPURIOUS)):
            distance = float(np.linalg.norm(centres[i] - centres[j]))
            spread = DISTANCE_SPREAD * (CUT_SPREAD if cut[i] or cut[j] else 1.0)
            transitions[i, j] = prior * (_gaussian(distance, scale * expected, spread) + odd)
            transitions[i, j] += (
                MERGED * (next_one | next_but_one) * (_gaussian(distance, scale * half_more, spread) + odd)
            )
            one_step = _distance_likelihood(distance, scale * expected[T11 - 1, T12 - 1], spread)
            transitions[i, j, T11 - 1, L1 - 1] += NO_T12 * one_step
    return transitions


def termination_weights(
    centres: np.ndarray, sacrum: np.ndarray | None, sacrum_mm: tuple[float, float], scale: float
) -> np.ndarray:
    """Return the weights (n, 25) of each instance and level being the last one above the sacrum, or above the border.

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
    terminations = np.ones((len(centres), L6))
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
        terminations[index] = prior * _distance_likelihood(distance, nearest, SACRUM_SPREAD)
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
