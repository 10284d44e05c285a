"""Which number each vertebra has: all of a column's vertebrae are numbered together.

The model, our own construction, is a chain down the column. Its hidden state at a vertebra is the level and the
network's *slip*: by how many levels the network's answer is off there. A network that is off by one at a vertebra is
off at the next one too, so its answers are no independent witnesses: one slip explains a whole stretch of wrong
answers, at the price of one. A slip is cheap in the middle of the thorax, where vertebrae look alike, and dear where
one is unlike its neighbours. This tempers the evidence; what follows is exact for the model (sums and maxima over all
numberings by dynamic programming).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from segmamba.spine.factors import (
    CHANGES,
    MOST_SPURIOUS,
    SIXTH_LUMBAR,
    SLIPS,
    answer_weights,
    end_weights,
    rib_weights,
    spurious_weights,
    step_weights,
    unlikeness,
)
from segmamba.spine.levels import (
    C1,
    C2,
    C7,
    L1,
    L4,
    L6,
    SACRUM_MM,
    SACRUM_TOP_MM,
    SCALE_SPREAD,
    T1,
    T11,
    T12,
    level_name,
)

# Prior probabilities, set by judgement of anatomy and networks, not fitted: that the network is off by one or by two
# levels where a column begins, and that it slips by one or by two between two vertebrae, each up or down.
FIRST_SLIP = {0: 0.78, 1: 0.10, 2: 0.01}
NEXT_SLIP = {0: 0.956, 1: 0.02, 2: 0.002, 3: 1e-4, 4: 1e-4}
# Logarithms of the scales that a column may have.
SCALES = np.arange(-4, 5) * 0.07
# Whether a rib was found means nothing in this part of all columns: then all of them are missing, say.
RIBS_UNRELIABLE = 0.05
# Numberings that are less probable than this in all are not certain, nor are those without a landmark: the sacrum, C1
# or C2 where the network gives it at least half, the first or the last rib.
CERTAIN, SURE_OF_RING = 0.95, 0.5


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
    ribs: np.ndarray | None = None,
    sacrum_cut: bool = False,
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
    ribs : ndarray or None
        Shape (n,): whether a vertebra bears a rib, 0 or 1; NaN where that cannot be seen.
    sacrum_cut : bool
        Whether the sacrum is at the border of the volume, so that its centroid may be that of its top alone.
    """
    count = len(centres)
    if count == 0:
        return Numbering(np.zeros(0, int), np.zeros(0), 0.0, False, "There is no vertebra in view.", None, 0.0, ())
    cut = np.zeros(count, bool) if cut is None else cut
    ribs = np.full(count, np.nan) if ribs is None else ribs
    nearest = (SACRUM_TOP_MM if sacrum_cut else SACRUM_MM, SACRUM_MM)
    chain = _Chain(evidence, centres, volumes, sacrum, nearest, cut, ribs)
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
    landmark = _landmark(levels, evidence, sacrum, ribs)
    certain = landmark and probability >= CERTAIN
    return Numbering(
        levels,
        np.clip(confidence, 0.0, 1.0),
        probability,
        certain,
        "" if certain else _reason(levels, runner_up, landmark),
        runner_up,
        min(1.0, max(weights, default=0.0)),
        _variants(levels, sacrum is not None),
    )


class _Chain:
    """The model's factors for one column, as probabilities up to a factor.

    ``worlds`` are what is unknown of the whole column: a scale's index, the answers (n, 25 levels, slips) if ribs are
    reliable and if they are not, and the weight of both. ``steps[scale][i, j]`` is (25, 25) from instance i to the
    next kept one, j.
    """

    def __init__(
        self,
        evidence: np.ndarray,
        centres: np.ndarray,
        volumes: np.ndarray,
        sacrum: np.ndarray | None,
        to_sacrum: tuple[float, float],
        cut: np.ndarray,
        ribs: np.ndarray,
    ) -> None:
        self.count = len(centres)
        answers = answer_weights(evidence)
        with_ribs = answers * rib_weights(ribs)[:, :, None]
        without = answers * np.where(np.isnan(ribs), 1.0, 0.5)[:, None, None]
        scale_weights = np.exp(-((SCALES / SCALE_SPREAD) ** 2) / 2)
        self.worlds = [
            (scale, answers, weight * share)
            for scale, weight in enumerate(scale_weights)
            for answers, share in ((with_ribs, 1 - RIBS_UNRELIABLE), (without, RIBS_UNRELIABLE))
        ]
        self.arrival = unlikeness(CHANGES)
        self.spurious = spurious_weights(volumes)
        self.first = np.array([FIRST_SLIP[abs(slip)] for slip in SLIPS])
        self.next = np.array([[NEXT_SLIP[abs(a - b)] for b in SLIPS] for a in SLIPS])
        self.steps = [step_weights(centres, cut, np.exp(scale)) for scale in SCALES]
        self.ends = [end_weights(centres, sacrum, to_sacrum, np.exp(scale)) for scale in SCALES]
        self.start = np.ones(L6)
        self.start[L6 - 1] = SIXTH_LUMBAR

    def forward(self, scale: int, answers: np.ndarray, spurious: np.ndarray) -> np.ndarray:
        """Return, for each instance and state, the weight of all ways from the top that end there: (n, 25, slips)."""
        ways = np.zeros_like(answers)
        for j in range(self.count):
            into = _product(spurious[:j]) * self.start[:, None] * self.first
            for i in range(max(0, j - 1 - MOST_SPURIOUS), j):
                skipped = _product(spurious[i + 1 : j])
                if skipped:
                    into = into + skipped * self.arrival * (self.steps[scale][i, j].T @ ways[i] @ self.next)
            ways[j] = into * answers[j]
        return ways

    def backward(self, scale: int, answers: np.ndarray) -> np.ndarray:
        """Return, for each instance and state, the weight of all ways from there to the bottom: (n, 25, slips)."""
        ways = np.zeros_like(answers)
        for i in reversed(range(self.count)):
            out = _product(self.spurious[i + 1 :]) * np.repeat(self.ends[scale][i][:, None], len(SLIPS), axis=1)
            for j in range(i + 1, min(self.count, i + 2 + MOST_SPURIOUS)):
                skipped = _product(self.spurious[i + 1 : j])
                if skipped:
                    step = self.steps[scale][i, j] @ (ways[j] * answers[j] * self.arrival)
                    out = out + skipped * (step @ self.next.T)
            ways[i] = out
        return ways

    def total(self, scale: int, ways: np.ndarray, spurious: np.ndarray) -> float:
        """Return the weight of all numberings from `forward`'s answer; that of nothing kept is left out."""
        ends = (ways.sum(axis=2) * self.ends[scale]).sum(axis=1)
        after = np.array([_product(spurious[i + 1 :]) for i in range(self.count)])
        return float(ends @ after)

    def marginals(self) -> tuple[float, np.ndarray]:
        """Return the weight of all numberings, and each instance's probability of each level: (n, 25)."""
        everything, by_level = 0.0, np.zeros((self.count, L6))
        for scale, answers, weight in self.worlds:
            ways = self.forward(scale, answers, self.spurious)
            everything += weight * self.total(scale, ways, self.spurious)
            by_level += weight * (ways * self.backward(scale, answers)).sum(axis=2)
        return everything, by_level / everything

    def weight_of(self, levels: np.ndarray, lenient: bool = False) -> float:
        """Return the weight of one numbering; ``lenient``: of all in which no instance has another level."""
        allowed = np.zeros((self.count, L6))
        for index, level in enumerate(levels):
            if level:
                allowed[index, level - 1] = 1
            elif lenient:
                allowed[index] = 1
        spurious = self.spurious if lenient else np.where(levels > 0, 0.0, self.spurious)
        return sum(
            weight * self.total(scale, self.forward(scale, answers * allowed[:, :, None], spurious), spurious)
            for scale, answers, weight in self.worlds
        )

    def best(self, scale: int, answers: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Return the levels of the best numbering; ``allowed`` is (n, 26), column 0 for a spurious instance."""
        answers = answers * allowed[:, 1:, None]
        spurious = self.spurious * allowed[:, 0]
        best = np.zeros_like(answers)
        origin = np.full((*answers.shape, 3), -1)
        grid = np.indices((L6, len(SLIPS)))
        for j in range(self.count):
            best[j] = _product(spurious[:j]) * self.start[:, None] * self.first
            for i in range(max(0, j - 1 - MOST_SPURIOUS), j):
                # Over slips first, then over levels: (level before, slip) and (level, slip).
                by_slip = best[i][:, :, None] * self.next
                slip = by_slip.argmax(axis=1)
                by_level = self.steps[scale][i, j][:, :, None] * by_slip.max(axis=1)[:, None, :]
                level = by_level.argmax(axis=0)
                value = _product(spurious[i + 1 : j]) * by_level.max(axis=0) * self.arrival
                better = value > best[j]
                best[j][better] = value[better]
                where = np.stack([np.full_like(level, i), level, slip[level, grid[1]]], axis=-1)
                origin[j][better] = where[better]
            best[j] *= answers[j]
        after = np.array([_product(spurious[i + 1 :]) for i in range(self.count)])
        last = best * self.ends[scale][:, :, None] * after[:, None, None]
        levels = np.zeros(self.count, int)
        place: tuple[int, ...] = tuple(int(n) for n in np.unravel_index(last.argmax(), last.shape))
        while place[0] >= 0:
            levels[place[0]] = place[1] + 1
            place = tuple(origin[place].tolist())
        return levels


def _product(values: np.ndarray) -> float:
    """Return the product of few values: `numpy.prod` takes ten times as long for these."""
    return math.prod(values.tolist())


def _candidates(chain: _Chain, marginals: np.ndarray, most: int = 8) -> list[np.ndarray]:
    """Return numberings that may be the best: the best one, and the best with each other probable level."""
    everything = np.ones((chain.count, L6 + 1))
    totals = [
        weight * chain.total(scale, chain.forward(scale, answers, chain.spurious), chain.spurious)
        for scale, answers, weight in chain.worlds
    ]
    scale, answers, _ = chain.worlds[int(np.argmax(totals))]
    best = chain.best(scale, answers, everything)
    found = [best]
    others = marginals.copy()
    kept = np.flatnonzero(best)
    others[kept, best[kept] - 1] = 0
    for flat in np.argsort(others, axis=None)[::-1][:most]:
        index, column = np.unravel_index(flat, others.shape)
        allowed = everything.copy()
        allowed[index] = 0
        allowed[index, column + 1] = 1
        levels = chain.best(scale, answers, allowed)
        if not any(np.array_equal(levels, other) for other in found):
            found.append(levels)
    return found


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


def _landmark(levels: np.ndarray, evidence: np.ndarray, sacrum: np.ndarray | None, ribs: np.ndarray) -> bool:
    """Return whether something in view tells one of the levels for sure."""
    rings = [index for index, level in enumerate(levels) if level in (C1, C2)]
    if sacrum is not None or any(np.exp(evidence[index, levels[index] - 1]) >= SURE_OF_RING for index in rings):
        return True
    kept = np.flatnonzero(levels)
    changes = {(levels[a], levels[b], ribs[a], ribs[b]) for a, b in zip(kept, kept[1:], strict=False)}
    return bool(changes & {(C7, T1, 0, 1), (T12, L1, 1, 0)})


def _reason(levels: np.ndarray, runner_up: np.ndarray | None, landmark: bool) -> str:
    why = "" if landmark else ", and neither C1, C2, the first or last rib nor the sacrum is clearly in view"
    if runner_up is None:
        return f"The levels are hard to tell{why}: check them."
    index = int(np.flatnonzero((runner_up != levels) & (runner_up > 0) & (levels > 0))[0])
    first, second = level_name(int(levels[index])), level_name(int(runner_up[index]))
    return f"{first} could be {second}{why}: check the levels."
