"""Halves of one vertebra that were found as two instances: its body and its arch. Our own rule."""

from __future__ import annotations

import numpy as np

from segmamba.spine.instances import Instances

# Both halves are this probable to be of one and the same level, by the network's own evidence.
SAME_LEVEL = 0.5
# Together they are at most this many times as large as the vertebrae around them: C2 is half as large again, two
# vertebrae are twice as large.
LARGEST = 1.75
AROUND = 2


def owners_of_halves(levels: np.ndarray, evidence: np.ndarray, volumes: np.ndarray) -> np.ndarray:
    """Return the index (n,) of the instance that each instance is part of: its own, but for a half that was left out.

    Parameters
    ----------
    levels : ndarray of int
        Shape (n,): 0 for an instance that was left out.
    evidence, volumes
        As for `segmamba.spine.hmm.label_levels`.
    """
    owners = np.arange(len(levels))
    seen = evidence.argmax(axis=1)
    sure = np.exp(evidence.max(axis=1)) >= SAME_LEVEL
    for index in np.flatnonzero((levels == 0) & sure).tolist():
        for other in (index - 1, index + 1):
            if not 0 <= other < len(levels) or not levels[other] or not sure[other] or seen[other] != seen[index]:
                continue
            near = range(max(0, min(index, other) - AROUND), min(len(levels), max(index, other) + AROUND + 1))
            around = [volumes[n] for n in near if n not in (index, other)]
            if around and volumes[index] + volumes[other] <= LARGEST * np.median(around):
                owners[index] = other
    return owners


def merged(instances: Instances, owners: np.ndarray) -> Instances:
    """Return instances of which some are parts of others, renumbered from 1."""
    kept = np.flatnonzero(owners == np.arange(len(owners)))
    numbers = np.searchsorted(kept, owners)
    volumes = np.bincount(numbers, instances.volumes)
    sums = [np.bincount(numbers, instances.volumes * axis) for axis in instances.centres.T]
    labels = np.r_[0, numbers + 1].astype(np.int16)[instances.labels]
    return Instances(labels, np.stack(sums, axis=1) / volumes[:, None], volumes)
