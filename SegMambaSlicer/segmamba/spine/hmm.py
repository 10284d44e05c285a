"""Label the levels of all vertebrae of a column together, as `segmamba.spine.level_model` weighs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from segmamba.errors import InputError
from segmamba.spine.doubts import doubts, doubts_in_spite_of_a_person
from segmamba.spine.factors import (
    LEVEL_OFFSETS,
    STATES,
)
from segmamba.spine.level_model import LevelModel, Observations, states_of
from segmamba.spine.levels import (
    C1,
    C2,
    C7,
    L1,
    L4,
    L6,
    ORDER,
    T1,
    T11,
    T12,
    T13,
    level_name,
    steps_between,
)

# A labelling is certain if it is at least this probable and a landmark is in view: the sacrum, the first or last rib,
# or C1 or C2 with at least this probability from the network itself; and if nothing contradicts it (`doubts`).
CERTAIN, CERTAIN_RING = 0.95, 0.5
# Levels that are set may make this many instances spurious that were not: one found twice, or the top of the sacrum.
LOST_BY_ANCHORS = 1


@dataclass(frozen=True)
class Numbering:
    """Levels of all vertebrae of a column.

    Attributes
    ----------
    levels : ndarray of int
        Shape (n,): VerSe's numbers, 1 to 25 and 28; 0 for a spurious instance.
    confidence : ndarray
        Shape (n,): probability of each vertebra's level.
    probability : float
        Probability that no vertebra has a wrong level.
    certain : bool
        Whether the levels can be trusted, see `CERTAIN`.
    reason : str
        Why it is not certain, one sentence; empty if it is.
    runner_up : ndarray of int or None
        The next best labelling of the same vertebrae, if there is one.
    runner_up_probability : float
        Probability of the runner-up, in the same sense as ``probability``.
    variants : tuple of str
        Deviations from seven, twelve and five vertebrae, one sentence each.
    """

    levels: np.ndarray
    confidence: np.ndarray
    probability: float
    certain: bool
    reason: str
    runner_up: np.ndarray | None
    runner_up_probability: float
    variants: tuple[str, ...]


def label_levels(
    evidence: np.ndarray,
    centres: np.ndarray,
    volumes: np.ndarray,
    sacrum: np.ndarray | None = None,
    cut: np.ndarray | None = None,
    ribs: np.ndarray | None = None,
    sacrum_cut: bool = False,
) -> Numbering:
    """Label the levels of the vertebrae of a column, from the top down.

    Parameters
    ----------
    evidence : ndarray
        Shape (n, 26): mean logarithm of the network's probabilities of C1 to L6 and sacrum over a vertebra.
    centres : ndarray
        Shape (n, 3): in mm, from the top down.
    volumes : ndarray
        Shape (n,), in mL.
    sacrum : ndarray or None
        Shape (3,), in mm: centroid of the sacrum, if it is in view below the last vertebra.
    cut : ndarray of bool or None
        Shape (n,): vertebrae truncated by the border of the volume, whose centroids are less certain.
    ribs : ndarray or None
        Shape (n,): whether a rib was detected next to a vertebra, 0 or 1; NaN where unknown.
    sacrum_cut : bool
        Whether the border truncates the sacrum, so that its centroid may be that of its top alone.
    """
    count = len(centres)
    cut = np.zeros(count, bool) if cut is None else cut
    ribs = np.full(count, np.nan) if ribs is None else ribs
    return label_observations(Observations(evidence, centres, volumes, sacrum, cut, ribs, sacrum_cut))


def label_with_anchors(seen: Observations, anchors: Mapping[int, int], plain: Numbering) -> Numbering:
    """Label the levels of a column of which a person has set some; the others follow, given these.

    They are not just shifted: where distances, ribs or another anchor say so, a vertebra may be missing or one too many
    elsewhere. The level offset is counted anew where the network is further off than it can be otherwise.

    Parameters
    ----------
    seen : Observations
    anchors : mapping of int to int
        Level by index of the vertebra.
    plain : Numbering
        Of the same column, without anchors.

    Raises
    ------
    InputError
        The anchors contradict each other or the column; a sentence without its end.
    """
    off = [steps_between(int(plain.levels[index]), level) for index, level in anchors.items() if plain.levels[index]]
    further = int(np.median(off)) if off else 0
    if abs(further) > max(LEVEL_OFFSETS):
        seen = replace(seen, evidence=_moved(seen.evidence, further))
    numbering = label_observations(seen, anchors)
    lost = [index for index in np.flatnonzero(plain.levels) if not numbering.levels[index]]
    if len(lost) > LOST_BY_ANCHORS:
        raise InputError(f"with {_named(anchors)} there, {len(lost)} vertebrae would be left without a level")
    return numbering


def label_observations(seen: Observations, anchors: Mapping[int, int] | None = None) -> Numbering:
    """Label the levels of a column; ``anchors`` are levels that are known, by index of the vertebra.

    Raises
    ------
    InputError
        The anchors contradict each other; a sentence without its end.
    """
    anchors = anchors or {}
    count, evidence, sacrum, ribs = len(seen.centres), seen.evidence, seen.sacrum, seen.ribs
    if count == 0:
        return Numbering(np.zeros(0, int), np.zeros(0), 0.0, False, "There is no vertebra in view.", None, 0.0, ())
    model = LevelModel(seen, anchors)
    partition, marginals = model.marginals()
    if not partition > 0:
        raise InputError(f"{_named(anchors)} cannot all be where they are said to be")
    candidates = _candidates(model, marginals)
    levels = candidates[int(model.weights_of(candidates).argmax())]
    kept = levels > 0
    rivals = [other for other in candidates if (other[kept] > 0).all() and (other != levels)[kept].any()]
    own, *weights = (model.weights_of([levels, *rivals], lenient=True) / partition).tolist()
    runner_up = rivals[int(np.argmax(weights))] if rivals else None
    dropped = 1 - marginals.sum(axis=1)
    confidence = np.where(kept, marginals[np.arange(count), states_of(levels)], dropped)
    probability = min(1.0, own)
    landmark = bool(anchors) or _landmark(levels, evidence, sacrum, ribs)
    if anchors:
        contradictions = doubts_in_spite_of_a_person(levels, seen.centres, seen.volumes, sacrum is not None, seen.cut)
    else:
        contradictions = doubts(levels, evidence, seen.centres, seen.volumes, sacrum is not None, seen.cut, ribs)
    certain = bool(landmark and probability >= CERTAIN and not contradictions)
    return Numbering(
        levels,
        np.clip(confidence, 0.0, 1.0),
        probability,
        certain,
        "" if certain else _reason(levels, runner_up, landmark, contradictions),
        runner_up,
        min(1.0, max(weights, default=0.0)),
        _variants(levels, sacrum is not None),
    )


def _moved(evidence: np.ndarray, by: int) -> np.ndarray:
    """Return evidence (n, 26) of which what a level had another one has, that many levels further down."""
    moved = np.repeat(evidence.min(axis=1, keepdims=True), evidence.shape[1], axis=1)
    into = np.arange(evidence.shape[1]) + by
    inside = (into >= 0) & (into < evidence.shape[1])
    moved[:, into[inside]] = evidence[:, inside]
    return moved


def _named(anchors: Mapping[int, int]) -> str:
    names = [level_name(level) for level in anchors.values()]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _candidates(model: LevelModel, marginals: np.ndarray, most: int = 8) -> list[np.ndarray]:
    """Return candidates for the best labelling: Viterbi's, and the best with each other probable level."""
    everything = np.ones((1, model.count, len(STATES) + 1))
    scale, emission, _ = model.hypotheses[model.most_probable_hypothesis()]
    best = model.viterbi(scale, emission, everything)[0]
    others = marginals.copy()
    kept = np.flatnonzero(best)
    others[kept, states_of(best[kept])] = 0
    flat = np.argsort(others, axis=None)[::-1][:most]
    indices, states = np.unravel_index(flat, others.shape)
    allowed = np.repeat(everything, len(flat), axis=0)
    allowed[np.arange(len(flat)), indices] = 0
    allowed[np.arange(len(flat)), indices, states + 1] = 1
    found = [best]
    for levels in model.viterbi(scale, emission, allowed):
        if not any(np.array_equal(levels, other) for other in found):
            found.append(levels)
    return found


def _variants(levels: np.ndarray, sacrum: bool) -> tuple[str, ...]:
    kept = [int(level) for level in levels if level]
    variants = []
    for above, below in zip(kept, kept[1:], strict=False):
        if (above, below) == (T11, L1):
            variants.append("There is no T12: L1 follows T11.")
        elif steps_between(above, below) > 1:
            between = ORDER[ORDER.index(above) + 1 : ORDER.index(below)]
            missing = ", ".join(level_name(level) for level in between if level != T13)
            variants.append(f"Between {level_name(above)} and {level_name(below)} no {missing} was found.")
    if L6 in kept:
        variants.append("There is a sixth lumbar vertebra, or a thirteenth thoracic one: look at the ribs.")
    if T13 in kept:
        variants.append("There is a thirteenth thoracic vertebra, or a rib at L1: look at the ribs.")
    if sacrum and kept and kept[-1] == L4:
        variants.append("The sacrum follows L4.")
    return tuple(variants)


def _landmark(levels: np.ndarray, evidence: np.ndarray, sacrum: np.ndarray | None, ribs: np.ndarray) -> bool:
    """Say whether a landmark in view fixes the levels."""
    rings = [index for index, level in enumerate(levels) if level in (C1, C2)]
    if sacrum is not None or any(np.exp(evidence[index, levels[index] - 1]) >= CERTAIN_RING for index in rings):
        return True
    kept = np.flatnonzero(levels)
    changes = {(levels[a], levels[b], ribs[a], ribs[b]) for a, b in zip(kept, kept[1:], strict=False)}
    return bool(changes & {(C7, T1, 0, 1), (T12, L1, 1, 0), (T13, L1, 1, 0)})


def _reason(levels: np.ndarray, runner_up: np.ndarray | None, landmark: bool, contradictions: list[str]) -> str:
    if contradictions:
        return f"{contradictions[0][0].upper()}{contradictions[0][1:]}: check the levels."
    why = "" if landmark else ", and neither C1, C2, the first or last rib nor the sacrum is clearly in view"
    if runner_up is None:
        return f"The evidence is weak{why}: check the levels."
    index = int(np.flatnonzero((runner_up != levels) & (runner_up > 0) & (levels > 0))[0])
    first, second = level_name(int(levels[index])), level_name(int(runner_up[index]))
    return f"{first} could be {second}{why}: check the levels."
