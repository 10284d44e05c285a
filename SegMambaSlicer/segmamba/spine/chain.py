"""Which number each vertebra has: all of a column's vertebrae are numbered together.

The model, our own construction, is a chain down the column. Its hidden state at a vertebra is the level and the
network's *slip*: by how many levels the network's answer is off there. A network that is off by one at a vertebra is
off at the next one too, so its answers are no independent witnesses: one slip explains a whole stretch of wrong
answers, at the price of one. A slip is cheap in the middle of the thorax, where vertebrae look alike, and dear where
one is unlike its neighbours. This tempers the evidence; what follows is exact for the model (sums and maxima over all
numberings by dynamic programming).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segmamba.spine.levels import (
    C1,
    C2,
    DISTANCE_SPREAD,
    DISTANCES_MM,
    L1,
    L4,
    L5,
    L6,
    SACRUM,
    SACRUM_MM,
    SCALE_SPREAD,
    T1,
    T11,
    T12,
    level_name,
)

SLIPS = range(-2, 3)
# Prior probabilities, set by judgement of anatomy and networks, not fitted: that the network is off by one or by two
# levels where a column begins, and that it slips by one or by two between two vertebrae, each up or down.
FIRST_SLIP = {0: 0.78, 1: 0.10, 2: 0.01}
NEXT_SLIP = {0: 0.956, 1: 0.02, 2: 0.002, 3: 1e-4, 4: 1e-4}
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
SCALES = np.arange(-4, 5) * 0.07
# Numberings that are less probable than this in all are not certain.
CERTAIN = 0.95


@dataclass(frozen=True)
class Numbering:
    """Levels of all vertebrae of a column.

    Attributes
    ----------
    levels : ndarray of int
        Shape (n,): VerSe numbers 1 to 25, 0 for what is no vertebra of its own.
    confidence : ndarray
        Shape (n,): probability of each vertebra's level.
    probability : float
        Probability that no vertebra has a wrong level.
    certain : bool
        Whether that is enough to trust the numbers.
    reason : str
        Why it is not certain, one sentence; else empty.
    runner_up : ndarray of int or None
        The best levels that number the same vertebrae, one of them otherwise, where there are such.
    runner_up_probability : float
        Probability of the runner-up, in the same sense as ``probability``.
    variants : tuple of str
        What differs from seven, twelve and five vertebrae, in words.
    """

    levels: np.ndarray
    confidence: np.ndarray
    probability: float
    certain: bool
    reason: str
    runner_up: np.ndarray | None
    runner_up_probability: float
    variants: tuple[str, ...]


def number(
    evidence: np.ndarray,
    centres: np.ndarray,
    volumes: np.ndarray,
    sacrum: np.ndarray | None = None,
    cut: np.ndarray | None = None,
) -> Numbering:
    """Number the vertebrae of a column, from the top down.

    Parameters
    ----------
    evidence : ndarray
        Shape (n, 26): mean logarithm of the network's probabilities of C1 to L6 and sacrum over a vertebra.
    centres : ndarray
        Shape (n, 3): in mm, from the top down.
    volumes : ndarray
        Shape (n,), in mL.
    sacrum : ndarray or None
        Centroid of the sacrum, where it is seen below the last vertebra.
    cut : ndarray of bool or None
        Shape (n,): vertebrae at the border of the volume, whose centroids are less certain.
    """
    count = len(centres)
    if count == 0:
        return Numbering(np.zeros(0, int), np.zeros(0), 0.0, False, "There is no vertebra in view.", None, 0.0, ())
    chain = _Chain(evidence, centres, volumes, sacrum, np.zeros(count, bool) if cut is None else cut)
    all_of_them, marginals = chain.marginals()
    candidates = _candidates(chain, marginals)
    levels = max(candidates, key=chain.weight_of)
    kept = levels > 0
    rivals = [other for other in candidates if (other[kept] > 0).all() and (other != levels)[kept].any()]
    weights = [chain.weight_of(other, lenient=True) / all_of_them for other in rivals]
    runner_up = rivals[int(np.argmax(weights))] if rivals else None
    dropped = 1 - marginals.sum(axis=1)
    confidence = np.where(kept, marginals[np.arange(count), levels - 1], dropped)
    probability = min(1.0, chain.weight_of(levels, lenient=True) / all_of_them)
    certain = probability >= CERTAIN
    return Numbering(
        levels,
        np.clip(confidence, 0.0, 1.0),
        probability,
        certain,
        "" if certain else _reason(levels, runner_up, sacrum is not None),
        runner_up,
        min(1.0, max(weights, default=0.0)),
        _variants(levels, sacrum is not None),
    )


class _Chain:
    """The model's factors for one column, as probabilities up to a factor.

    ``answers`` is (n, 25 levels, slips); ``steps[scale][i, j]`` is (25, 25) from instance i to the next kept one, j.
    """

    def __init__(
        self, evidence: np.ndarray, centres: np.ndarray, volumes: np.ndarray, sacrum: np.ndarray | None, cut: np.ndarray
    ) -> None:
        self.count = len(centres)
        self.answers = _answers(evidence)
        self.arrival = _unlikeness(CHANGES)
        self.spurious = _spurious(volumes)
        self.first = np.array([FIRST_SLIP[abs(slip)] for slip in SLIPS])
        self.next = np.array([[NEXT_SLIP[abs(a - b)] for b in SLIPS] for a in SLIPS])
        self.steps = [_steps(centres, cut, np.exp(scale)) for scale in SCALES]
        self.ends = [_ends(centres, sacrum, np.exp(scale)) for scale in SCALES]
        self.scale_weights = np.exp(-((SCALES / SCALE_SPREAD) ** 2) / 2)
        self.start = np.ones(L6)
        self.start[L6 - 1] = SIXTH_LUMBAR

    def forward(self, scale: int, answers: np.ndarray, spurious: np.ndarray) -> np.ndarray:
        """Return, for each instance and state, the weight of all ways from the top that end there: (n, 25, slips)."""
        ways = np.zeros_like(answers)
        for j in range(self.count):
            into = np.prod(spurious[:j]) * self.start[:, None] * self.first
            for i in range(max(0, j - 1 - MOST_SPURIOUS), j):
                skipped = np.prod(spurious[i + 1 : j])
                if skipped:
                    into = into + skipped * self.arrival * (self.steps[scale][i, j].T @ ways[i] @ self.next)
            ways[j] = into * answers[j]
        return ways

    def backward(self, scale: int) -> np.ndarray:
        """Return, for each instance and state, the weight of all ways from there to the bottom: (n, 25, slips)."""
        ways = np.zeros_like(self.answers)
        for i in reversed(range(self.count)):
            out = np.prod(self.spurious[i + 1 :]) * np.repeat(self.ends[scale][i][:, None], len(SLIPS), axis=1)
            for j in range(i + 1, min(self.count, i + 2 + MOST_SPURIOUS)):
                skipped = np.prod(self.spurious[i + 1 : j])
                if skipped:
                    step = self.steps[scale][i, j] @ (ways[j] * self.answers[j] * self.arrival)
                    out = out + skipped * (step @ self.next.T)
            ways[i] = out
        return ways

    def total(self, scale: int, ways: np.ndarray, spurious: np.ndarray) -> float:
        """Return the weight of all numberings from `forward`'s answer; that of nothing kept is left out."""
        ends = (ways.sum(axis=2) * self.ends[scale]).sum(axis=1)
        after = np.array([np.prod(spurious[i + 1 :]) for i in range(self.count)])
        return float(ends @ after)

    def marginals(self) -> tuple[float, np.ndarray]:
        """Return the weight of all numberings, and each instance's probability of each level: (n, 25)."""
        everything, by_level = 0.0, np.zeros((self.count, L6))
        for scale, weight in enumerate(self.scale_weights):
            ways = self.forward(scale, self.answers, self.spurious)
            everything += weight * self.total(scale, ways, self.spurious)
            by_level += weight * (ways * self.backward(scale)).sum(axis=2)
        return everything, by_level / everything

    def weight_of(self, levels: np.ndarray, lenient: bool = False) -> float:
        """Return the weight of one numbering; ``lenient``: of all in which no instance has another level."""
        allowed = np.zeros((self.count, L6))
        for index, level in enumerate(levels):
            if level:
                allowed[index, level - 1] = 1
            elif lenient:
                allowed[index] = 1
        answers = self.answers * allowed[:, :, None]
        spurious = self.spurious if lenient else np.where(levels > 0, 0.0, self.spurious)
        return sum(
            weight * self.total(scale, self.forward(scale, answers, spurious), spurious)
            for scale, weight in enumerate(self.scale_weights)
        )

    def best(self, scale: int, allowed: np.ndarray) -> np.ndarray:
        """Return the levels of the best numbering; ``allowed`` is (n, 26), column 0 for a spurious instance."""
        answers = self.answers * allowed[:, 1:, None]
        spurious = self.spurious * allowed[:, 0]
        best = np.zeros_like(answers)
        origin = np.full((*answers.shape, 3), -1)
        grid = np.indices((L6, len(SLIPS)))
        for j in range(self.count):
            best[j] = np.prod(spurious[:j]) * self.start[:, None] * self.first
            for i in range(max(0, j - 1 - MOST_SPURIOUS), j):
                # Over slips first, then over levels: (level before, slip) and (level, slip).
                by_slip = best[i][:, :, None] * self.next
                slip = by_slip.argmax(axis=1)
                by_level = self.steps[scale][i, j][:, :, None] * by_slip.max(axis=1)[:, None, :]
                level = by_level.argmax(axis=0)
                value = np.prod(spurious[i + 1 : j]) * by_level.max(axis=0) * self.arrival
                better = value > best[j]
                best[j][better] = value[better]
                where = np.stack([np.full_like(level, i), level, slip[level, grid[1]]], axis=-1)
                origin[j][better] = where[better]
            best[j] *= answers[j]
        after = np.array([np.prod(spurious[i + 1 :]) for i in range(self.count)])
        last = best * self.ends[scale][:, :, None] * after[:, None, None]
        levels = np.zeros(self.count, int)
        place: tuple[int, ...] = tuple(int(n) for n in np.unravel_index(last.argmax(), last.shape))
        while place[0] >= 0:
            levels[place[0]] = place[1] + 1
            place = tuple(origin[place].tolist())
        return levels


def _candidates(chain: _Chain, marginals: np.ndarray, most: int = 8) -> list[np.ndarray]:
    """Return numberings that may be the best: the best one, and the best with each other probable level."""
    everything = np.ones((chain.count, L6 + 1))
    totals = [
        weight * chain.total(scale, chain.forward(scale, chain.answers, chain.spurious), chain.spurious)
        for scale, weight in enumerate(chain.scale_weights)
    ]
    scale = int(np.argmax(totals))
    best = chain.best(scale, everything)
    found = [best]
    others = marginals.copy()
    kept = np.flatnonzero(best)
    others[kept, best[kept] - 1] = 0
    for flat in np.argsort(others, axis=None)[::-1][:most]:
        index, column = np.unravel_index(flat, others.shape)
        allowed = everything.copy()
        allowed[index] = 0
        allowed[index, column + 1] = 1
        levels = chain.best(scale, allowed)
        if not any(np.array_equal(levels, other) for other in found):
            found.append(levels)
    return found


def _answers(evidence: np.ndarray) -> np.ndarray:
    """Return how probable the network's answers are under each level and slip: (n, 25, slips)."""
    shares = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    shares = (1 - NONSENSE) * shares / shares.sum(axis=1, keepdims=True) + NONSENSE / SACRUM
    answers = np.full((len(evidence), L6, len(SLIPS)), NONSENSE / SACRUM)
    for level in range(C1, L6 + 1):
        for column, slip in enumerate(SLIPS):
            if C1 <= level + slip <= SACRUM:
                answers[:, level - 1, column] = shares[:, level + slip - 1]
    return answers * _unlikeness(LANDMARKS)


def _unlikeness(landmarks: dict[int, float]) -> np.ndarray:
    """Return factors (25, slips): how much less probable a slip is that takes a landmark away or invents one."""
    factors = np.ones((L6, len(SLIPS)))
    for level in range(C1, L6 + 1):
        for column, slip in enumerate(SLIPS):
            if slip:
                factors[level - 1, column] = np.exp(-max(landmarks.get(level, 0), landmarks.get(level + slip, 0)))
    return factors


def _spurious(volumes: np.ndarray) -> np.ndarray:
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


def _steps(centres: np.ndarray, cut: np.ndarray, scale: float) -> np.ndarray:
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


def _ends(centres: np.ndarray, sacrum: np.ndarray | None, scale: float) -> np.ndarray:
    """Return the weights (n, 25) of each instance and level as the last one above the sacrum, or above the border."""
    ends = np.ones((len(centres), L6))
    if sacrum is None:
        return ends
    above_l5 = np.r_[np.cumsum(DISTANCES_MM[: L5 - 1][::-1])[::-1], 0.0, 0.0]
    rarity = np.full(L6, NOT_FOUND_AT_ALL)
    rarity[L5 - len(GAP) : L5] = GAP[::-1]
    rarity[L6 - 1] = 1.0
    for index, centre in enumerate(centres):
        distance = float(np.linalg.norm(sacrum - centre))
        ends[index] = rarity * _fits(distance, scale * (SACRUM_MM + above_l5), SACRUM_SPREAD)
        ends[index, L4 - 1] += L4_LAST * _fits(distance, scale * np.array(SACRUM_MM), SACRUM_SPREAD)
    return ends


def _fits(distance: float, expected: np.ndarray, spread: float) -> np.ndarray:
    """Return how well a distance fits what is expected: 1 for the same."""
    return np.exp(-((np.log(max(distance, 1.0) / expected) / spread) ** 2) / 2) + ODD_DISTANCE


def _variants(levels: np.ndarray, sacrum: bool) -> tuple[str, ...]:
    kept = [int(level) for level in levels if level]
    variants = []
    for above, below in zip(kept, kept[1:], strict=False):
        if (above, below) == (T11, L1):
            variants.append("There is no T12: L1 follows T11.")
        elif below > above + 1:
            missing = ", ".join(level_name(level) for level in range(above + 1, below))
            variants.append(f"Between {level_name(above)} and {level_name(below)} no {missing} was found.")
    if L6 in kept:
        variants.append("There is a sixth lumbar vertebra, or a thirteenth thoracic one: look at the ribs.")
    if sacrum and kept and kept[-1] == L4:
        variants.append("The sacrum follows L4.")
    return tuple(variants)


def _reason(levels: np.ndarray, runner_up: np.ndarray | None, sacrum: bool) -> str:
    kept = levels[levels > 0]
    seen = sacrum or bool(np.isin(kept, (C1, C2)).any())
    why = "" if seen else ", and neither C1, C2 nor the sacrum is in view"
    if runner_up is None:
        return f"The levels are hard to tell{why}: check them."
    index = int(np.flatnonzero((runner_up != levels) & (runner_up > 0) & (levels > 0))[0])
    first, second = level_name(int(levels[index])), level_name(int(runner_up[index]))
    return f"{first} could be {second}{why}: check the levels."
