"""The hidden Markov model of the levels of a column. Our own construction.

The hidden state of a vertebra is its level and the *level offset*: by how many levels the network's prediction is off
there. A network that is off by one at a vertebra is off at the next one too, so its predictions are not independent:
one change of the offset explains a whole run of wrong predictions at the cost of one. A change is cheap in the middle
of the thorax, where vertebrae look alike, and expensive where a vertebra differs from its neighbours. This tempers the
evidence. Inference is exact: forward-backward for the probabilities, Viterbi for the best labelling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from segmamba.spine.factors import (
    CHANGES,
    LEVEL_OFFSETS,
    MOST_SPURIOUS,
    SIXTH_LUMBAR,
    STATE,
    STATES,
    THIRTEENTH_THORACIC,
    emission_weights,
    offset_penalties,
    rib_weights,
    spurious_weights,
    termination_weights,
    transition_weights,
)
from segmamba.spine.levels import L6, SACRUM_MM, SACRUM_TOP_MM, SCALE_SPREAD, T13

# Prior probabilities, set by judgement of anatomy and networks, not fitted: of the level offset at the first vertebra,
# and of its change from one vertebra to the next; by absolute value, each up or down.
INITIAL_OFFSET = {0: 0.78, 1: 0.10, 2: 0.01}
OFFSET_TRANSITION = {0: 0.956, 1: 0.02, 2: 0.002, 3: 1e-4, 4: 1e-4}
# Logarithms of the scales that a column may have.
LOG_SCALES = np.arange(-4, 5) * 0.07
# Prior probability that rib evidence is meaningless for the whole column: all ribs missed, for example.
RIBS_UNRELIABLE = 0.05


@dataclass(frozen=True, eq=False)
class Observations:
    """What is known of the vertebrae of a column before they have levels; see `label_levels`."""

    evidence: np.ndarray
    centres: np.ndarray
    volumes: np.ndarray
    sacrum: np.ndarray | None
    cut: np.ndarray
    ribs: np.ndarray
    sacrum_cut: bool


class LevelModel:
    """The factors of the model for one column, as probabilities up to a constant.

    A state is a pair (level, level offset), of the levels in `STATES`. ``hypotheses`` are about the whole column: index
    of the scale, emission weights (n, states, offsets) with ribs reliable or not, and prior weight.
    ``transitions[scale][i, j]``, (states, states), leads from instance i to the next one that is kept, j; those between
    are spurious.
    """

    def __init__(self, seen: Observations, anchors: Mapping[int, int]) -> None:
        self.count = len(seen.centres)
        evidence_weights = emission_weights(seen.evidence)
        self.spurious = spurious_weights(seen.volumes)
        with_ribs = evidence_weights * rib_weights(seen.ribs)[:, :, None]
        without_ribs = evidence_weights * np.where(np.isnan(seen.ribs), 1.0, 0.5)[:, None, None]
        without_ribs[:, STATE[T13]] = 0.0
        for index, level in anchors.items():
            for emission in (with_ribs, without_ribs):
                emission[index] = 0.0
                emission[index, STATE[level]] = evidence_weights[index, STATE[level]]
            self.spurious[index] = 0.0
        scale_weights = np.exp(-((LOG_SCALES / SCALE_SPREAD) ** 2) / 2)
        self.hypotheses = [
            (scale, emission, weight * share)
            for scale, weight in enumerate(scale_weights)
            for emission, share in ((with_ribs, 1 - RIBS_UNRELIABLE), (without_ribs, RIBS_UNRELIABLE))
        ]
        self.scales = np.array([scale for scale, _, _ in self.hypotheses])
        self.emissions = np.stack([emission for _, emission, _ in self.hypotheses])
        self.weights = np.array([weight for _, _, weight in self.hypotheses])
        self.change = offset_penalties(CHANGES)
        self.initial_offset = np.array([INITIAL_OFFSET[abs(offset)] for offset in LEVEL_OFFSETS])
        self.offset_transition = np.array(
            [[OFFSET_TRANSITION[abs(a - b)] for b in LEVEL_OFFSETS] for a in LEVEL_OFFSETS]
        )
        sacrum_mm = (SACRUM_TOP_MM if seen.sacrum_cut else SACRUM_MM, SACRUM_MM)
        self.transitions = transition_weights(seen.centres, seen.cut, np.exp(LOG_SCALES))
        self.terminations = [termination_weights(seen.centres, seen.sacrum, sacrum_mm, np.exp(s)) for s in LOG_SCALES]
        self.ends = np.stack(self.terminations)[self.scales]
        self.initial_level = np.ones(len(STATES))
        self.initial_level[STATE[L6]] = SIXTH_LUMBAR
        self.initial_level[STATE[T13]] = THIRTEENTH_THORACIC

    @cached_property
    def messages(self) -> np.ndarray:
        """The forward messages (hypotheses, n, states, offsets) of all labellings; see `forward`."""
        return self.forward(self.emissions[None], self.spurious[None])[0]

    def forward(self, emissions: np.ndarray, spurious: np.ndarray) -> np.ndarray:
        """Return forward messages (c, hypotheses, n, states, offsets): the weight of all labellings down to a state.

        Of cases that differ in their emissions, of that shape, and in the weights (c, n) of spurious instances. All of
        them and all hypotheses at once: they are many, and their products small.
        """
        messages = np.zeros_like(emissions)
        for j in range(self.count):
            first = _products(spurious[:, :j]) * self.initial_level[:, None] * self.initial_offset
            into = np.broadcast_to(first[:, None], emissions[:, :, j].shape)
            for i in range(max(0, j - 1 - MOST_SPURIOUS), j):
                skipped = _products(spurious[:, i + 1 : j])
                if skipped.any():
                    into = into + (skipped * self.change)[:, None] * self._step(i, j, messages[:, :, i])
            messages[:, :, j] = into * emissions[:, :, j]
        return messages

    def _step(self, i: int, j: int, messages: np.ndarray) -> np.ndarray:
        """Return messages (c, hypotheses, states, offsets) of instance i, brought to instance j."""
        cases, hypotheses, states, offsets = messages.shape
        # One product for the offsets of all, and one for the states of each hypothesis: many small ones take longer.
        moved = (messages.reshape(-1, offsets) @ self.offset_transition).reshape(messages.shape)
        columns = moved.transpose(1, 2, 0, 3).reshape(hypotheses, states, cases * offsets)
        step = self._transition(i, j).transpose(0, 2, 1) @ columns
        return step.reshape(hypotheses, states, cases, offsets).transpose(2, 0, 1, 3)

    def backward(self) -> np.ndarray:
        """Return the backward messages (hypotheses, n, states, offsets): the weight of all labellings below a state."""
        messages = np.zeros_like(self.emissions)
        for i in reversed(range(self.count)):
            out = _product(self.spurious[i + 1 :]) * self.ends[:, i, :, None]
            for j in range(i + 1, min(self.count, i + 2 + MOST_SPURIOUS)):
                skipped = _product(self.spurious[i + 1 : j])
                if skipped:
                    step = self._transition(i, j) @ (messages[:, j] * self.emissions[:, j] * self.change)
                    out = out + skipped * (step @ self.offset_transition.T)
            messages[:, i] = out
        return messages

    def _transition(self, i: int, j: int) -> np.ndarray:
        """Return the transitions (hypotheses, states, states) from instance i to j."""
        found: np.ndarray = self.transitions[self.scales, i, j]
        return found

    def partitions(self, messages: np.ndarray, spurious: np.ndarray) -> np.ndarray:
        """Return each hypothesis' partition function, the weight of all labellings with a vertebra, weighted.

        Shape (c, hypotheses), of what `forward` takes and gives.
        """
        found: np.ndarray = self.weights * np.einsum(
            "chns,hns,cn->ch", messages.sum(axis=4), self.ends, _after(spurious)
        )
        return found

    def marginals(self) -> tuple[float, np.ndarray]:
        """Return the partition function of all hypotheses, and the posterior (n, states) of each instance's level."""
        partition = self.weight()
        posterior = np.tensordot(self.weights, (self.messages * self.backward()).sum(axis=3), 1)
        return partition, posterior / (partition or 1.0)

    def weight(self) -> float:
        """Return the weight of all labellings."""
        return float(self._own_partitions().sum())

    def most_probable_hypothesis(self) -> int:
        """Return the number of the hypothesis whose labellings weigh most."""
        return int(self._own_partitions().argmax())

    def _own_partitions(self) -> np.ndarray:
        return self.partitions(self.messages[None], self.spurious[None])[0]

    def weights_of(self, labellings: Sequence[np.ndarray], lenient: bool = False) -> np.ndarray:
        """Return the weight of each labelling; ``lenient``: of all in which no instance has a different level."""
        levels = np.reshape(labellings, (-1, self.count))
        allowed = levels[:, :, None] == np.array(STATES)
        if lenient:
            allowed |= levels[:, :, None] == 0
        spurious = np.where((levels > 0) & (not lenient), 0.0, self.spurious)
        messages = self.forward(self.emissions * allowed[:, None, :, :, None], spurious)
        weights: np.ndarray = self.partitions(messages, spurious).sum(axis=1)
        return weights

    def viterbi(self, scale: int, emission: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Return the levels (c, n) of the best labelling of each case.

        ``allowed`` is (c, n, 1 + states), column 0 for a spurious one.
        """
        emission = emission * allowed[:, :, 1:, None]
        spurious = self.spurious * allowed[:, :, 0]
        best = np.zeros_like(emission)
        previous = np.full((3, *emission.shape), -1)  # back-pointers: instance, level, offset
        for j in range(self.count):
            best[:, j] = _products(spurious[:, :j]) * self.initial_level[:, None] * self.initial_offset
            for i in range(max(0, j - 1 - MOST_SPURIOUS), j):
                # Maximum over the previous offset first, then over the previous level.
                by_offset = best[:, i, :, :, None] * self.offset_transition
                offset = by_offset.argmax(axis=2)
                by_level = self.transitions[scale][i, j][:, :, None] * by_offset.max(axis=2)[:, :, None, :]
                level = by_level.argmax(axis=1)
                value = _products(spurious[:, i + 1 : j]) * by_level.max(axis=1) * self.change
                better = value > best[:, j]
                if better.any():
                    np.copyto(best[:, j], value, where=better)
                    sources = (i, level, np.take_along_axis(offset, level, axis=1))
                    for pointer, source in zip(previous, sources, strict=True):
                        np.copyto(pointer[:, j], source, where=better)
            best[:, j] *= emission[:, j]
        last = best * self.terminations[scale][:, :, None] * _after(spurious)[:, :, None, None]
        levels = np.zeros((len(allowed), self.count), int)
        for case, (found, values) in enumerate(zip(levels, last, strict=True)):
            state: tuple[int, ...] = tuple(int(n) for n in np.unravel_index(values.argmax(), values.shape))
            while state[0] >= 0:
                found[state[0]] = STATES[state[1]]
                state = tuple(int(pointer[case][state]) for pointer in previous)
        return levels


def weight_of_column(seen: Observations) -> float:
    """Return the weight of all labellings of a column: how well the model explains what is known of it."""
    return LevelModel(seen, {}).weight()


def states_of(levels: np.ndarray) -> np.ndarray:
    """Return the states of levels; -1 for a spurious instance."""
    return np.array([STATE.get(int(level), -1) for level in levels], int)


def _product(values: np.ndarray) -> float:
    """Return the product of a few values, for which `numpy.prod` takes ten times as long."""
    return math.prod(values.tolist())


def _products(values: np.ndarray) -> np.ndarray:
    """Return the product of the values (n,) of each case (c, n), with the axes of states and offsets: (c, 1, 1)."""
    products: np.ndarray = values.prod(axis=1)[:, None, None]
    return products


def _after(spurious: np.ndarray) -> np.ndarray:
    """Return for each case and instance (c, n) the product of the values of those after it."""
    products = np.cumprod(spurious[:, ::-1], axis=1)[:, ::-1]
    return np.concatenate([products[:, 1:], np.ones((len(spurious), 1))], axis=1)
