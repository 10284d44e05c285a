"""The factors of the chain model: how probable answers, ribs, steps and ends of a column are under each level.

All figures are prior probabilities, set by judgement of anatomy and networks, not fitted.
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

# By how many levels the network's answer may be off.
SLIPS = range(-2, 3)
# How unlike its neighbours a vertebra is: logarithms by which being off is less probable where the vertebra is, or is
# taken for, one of these (the rings of C1 and C2) ...
LANDMARKS = {C1: 2.5, C2: 2.5}
# ... or follows upon the one above it, which is needed to see a change (first rib, last rib and shape of the joints).
CHANGES = {T1: 0.4, T12: 0.2, L1: 0.7}
# A network's answer for a vertebra is worth nothing this often.
NONSENSE = 0.05
# One, two or three vertebrae in a row that were not found (then they are also that much further apart).
GAP = (1.0, 0.02, 0.004, 0.001)
NOT_FOUND_AT_ALL = 1e-6
# Two vertebrae that were found as one, between them: the steps to it and from it are one and a half each. Probability
# of either step.
MERGED = 0.05
# An instance that is no vertebra of its own: a doubled one, or something else.
SPURIOUS = 0.02
MOST_SPURIOUS = 3
# Distances fit no model this often: distorted columns.
ODD_DISTANCE = 0.002
# Variants, each in a few people of a hundred: L6 or T13, no T12, and L4 as the last one.
SIXTH_LUMBAR, NO_T12, L4_LAST = 0.06, 0.02, 0.01
# The sacrum's centroid is less certain than a vertebra's, more so where it is cut.
SACRUM_SPREAD = 0.2
CUT_SPREAD = 2.0
# How often a rib is found beside a level, if ribs are found at all: small last ribs, cervical and lumbar ones.
RIB_FOUND = {
    **dict.fromkeys(range(C1, L6 + 1), 0.01),
    **dict.fromkeys(range(T1, T12), 0.97),
    C7: 0.03,
    T12: 0.85,
    L1: 0.08,
}


def answer_weights(evidence: np.ndarray) -> np.ndarray:
    """Return how probable the network's answers are under each level and slip: (n, 25, slips)."""
    shares = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    shares = (1 - NONSENSE) * shares / shares.sum(axis=1, keepdims=True) + NONSENSE / SACRUM
    answers = np.full((len(evidence), L6, len(SLIPS)), NONSENSE / SACRUM)
    for level in range(C1, L6 + 1):
        for column, slip in enumerate(SLIPS):
            if C1 <= level + slip <= SACRUM:
                answers[:, level - 1, column] = shares[:, level + slip - 1]
    return answers * unlikeness(LANDMARKS)


def rib_weights(ribs: np.ndarray) -> np.ndarray:
    """Return how probable it is under each level that a rib was found, or not: (n, 25), 1 where it is unknown."""
    found = np.array([RIB_FOUND[level] for level in range(C1, L6 + 1)])
    probable = np.where(ribs[:, None] > 0.5, found, 1 - found)
    return np.where(np.isnan(ribs)[:, None], 1.0, probable)


def unlikeness(landmarks: dict[int, float]) -> np.ndarray:
    """Return factors (25, slips): how much less probable a slip is that takes a landmark away or invents one."""
    factors = np.ones((L6, len(SLIPS)))
    for level in range(C1, L6 + 1):
        for column, slip in enumerate(SLIPS):
            if slip:
                factors[level - 1, column] = np.exp(-max(landmarks.get(level, 0), landmarks.get(level + slip, 0)))
    return factors


def spurious_weights(volumes: np.ndarray) -> np.ndarray:
    """Return how probable it is that an instance is no vertebra of its own and its answers are by chance."""
    around = [np.median(volumes[max(0, i - 2) : i + 3]) for i in range(len(volumes))]
    whole = np.clip(volumes / np.maximum(around, 1e-6), 0.0, 1.0)
    return SPURIOUS / SACRUM**whole


def _ways_down() -> tuple[np.ndarray, np.ndarray]:
    """Return distance (for scale 1) and rarity, each (25, 25), of going from one level to another at the next instance.

    Without T12 the distance is that of one step.
    """
    below = np.r_[0.0, np.cumsum(DISTANCES_MM)]
    distances = np.maximum(below - below[:, None], 1.0)
    rarity = np.zeros((L6, L6))
    for missing, rare in enumerate(GAP):
        rarity += rare * np.eye(L6, k=1 + missing)
    rarity[:, L6 - 1] *= SIXTH_LUMBAR
    return distances, rarity


def step_weights(centres: np.ndarray, cut: np.ndarray, scale: float) -> np.ndarray:
    """Return the weights (n, n, 25, 25) of going from a level at one instance to another level at the next."""
    count = len(centres)
    expected, rarity = _ways_down()
    next_one, next_but_one = np.eye(L6, k=1, dtype=bool), np.eye(L6, k=2, dtype=bool)
    half_more = np.where(next_one, 1.5, 0.75) * expected
    steps = np.zeros((count, count, L6, L6))
    for i in range(count):
        for j in range(i + 1, min(count, i + 2 + MOST_SPURIOUS)):
            distance = float(np.linalg.norm(centres[i] - centres[j]))
            spread = DISTANCE_SPREAD * (CUT_SPREAD if cut[i] or cut[j] else 1.0)
            steps[i, j] = rarity * _fits(distance, scale * expected, spread)
            steps[i, j] += MERGED * (next_one | next_but_one) * _fits(distance, scale * half_more, spread)
            one_step = _fits(distance, scale * expected[T11 - 1, T12 - 1], spread)
            steps[i, j, T11 - 1, L1 - 1] += NO_T12 * one_step
    return steps


def end_weights(
    centres: np.ndarray, sacrum: np.ndarray | None, to_sacrum: tuple[float, float], scale: float
) -> np.ndarray:
    """Return the weights (n, 25) of each instance and level as the last one above the sacrum, or above the border.

    ``to_sacrum`` are the shortest and the longest distance of L5 from the centroid of what is seen of the sacrum.
    """
    ends = np.ones((len(centres), L6))
    if sacrum is None:
        return ends
    above_l5 = np.r_[np.cumsum(DISTANCES_MM[: L5 - 1][::-1])[::-1], 0.0, 0.0]
    rarity = np.full(L6, NOT_FOUND_AT_ALL)
    rarity[L5 - len(GAP) : L5] = GAP[::-1]
    rarity[L6 - 1] = 1.0
    for index, centre in enumerate(centres):
        distance = float(np.linalg.norm(sacrum - centre))
        shortest, longest = (scale * (end + above_l5) for end in to_sacrum)
        ends[index] = rarity * _fits(distance, np.clip(distance, shortest, longest), SACRUM_SPREAD)
        shortest, longest = (scale * end for end in to_sacrum)
        ends[index, L4 - 1] += L4_LAST * _fits(distance, np.clip(distance, shortest, longest), SACRUM_SPREAD)
    return ends


def _fits(distance: float, expected: np.ndarray, spread: float) -> np.ndarray:
    """Return how well a distance fits what is expected: 1 for the same."""
    return np.exp(-((np.log(max(distance, 1.0) / expected) / spread) ** 2) / 2) + ODD_DISTANCE
