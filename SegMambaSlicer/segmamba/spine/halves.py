"""Halves of one vertebra that were found as two instances: its body and its arch. Our own rule.

Two neighbours that look like the same level may be halves, or two vertebrae of which the network is wrong about one.
They are halves if the chain leaves one of them out, or explains the column much better where they are one.
"""

from __future__ import annotations

import numpy as np

from segmamba.spine.instances import Instances

# Both halves are this probable to be of one and the same level, by the network's own evidence.
SAME_LEVEL = 0.5
# Together they are at most this many times as large as the vertebrae around them: C2 is half as large again, two
# vertebrae are twice as large.
LARGEST = 1.75
AROUND = 2
# Prior probability that a vertebra is found as two halves, and how sure it must be that these two are.
HALVES, SURE = 0.02, 0.95


def pairs_of_halves(evidence: np.ndarray, volumes: np.ndarray) -> list[int]:
    """Return the index of the upper one of each two neighbours that may be halves of one vertebra, from the top down.

    Parameters
    ----------
    evidence, volumes
        As for `segmamba.spine.hmm.label_levels`.
    """
    count = len(volumes)
    seen = evidence.argmax(axis=1)
    sure = np.exp(evidence.max(axis=1)) >= SAME_LEVEL
    found = []
    for index in range(count - 1):
        near = range(max(0, index - AROUND), min(count, index + 2 + AROUND))
        around = [volumes[n] for n in near if n not in (index, index + 1)]
        same = sure[index] and sure[index + 1] and seen[index] == seen[index + 1]
        if same and around and volumes[index] + volumes[index + 1] <= LARGEST * np.median(around):
            found.append(index)
    return found


def are_halves(levels: np.ndarray, upper: int, apart: float, together: float) -> bool:
    """Say whether two instances are halves of one vertebra, and not two vertebrae.

    Parameters
    ----------
    levels : ndarray of int
        Shape (n,): of the column in which they are two; 0 for an instance that was left out.
    upper : int
        Index of the upper one, as `pairs_of_halves` gives it.
    apart, together : float
        Weight of all labellings (`segmamba.spine.level_model.weight_of_column`) of that column, and of the one in
        which they are one.
    """
    halves = HALVES * together
    return bool((levels[upper : upper + 2] == 0).any() or halves > SURE * (halves + apart))


def merged(instances: Instances, upper: int) -> Instances:
    """Return instances of which the one at an index and the next one are one, renumbered from 1."""
    count = len(instances.volumes)
    numbers = np.arange(count) - (np.arange(count) > upper)
    volumes = np.bincount(numbers, instances.volumes)
    sums = [np.bincount(numbers, instances.volumes * axis) for axis in instances.centres.T]
    labels = np.r_[0, numbers + 1].astype(np.int16)[instances.labels]
    return Instances(labels, np.stack(sums, axis=1) / volumes[:, None], volumes)
