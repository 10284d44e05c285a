"""From the coarse pass to a numbered column, and from the fine pass to its masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from segmamba.spine.chain import Numbering, number
from segmamba.spine.instances import Instances, assign, find_instances
from segmamba.spine.levels import SACRUM, distance_by_volume

VERTEBRA_CHANNEL, SACRUM_CHANNEL = 1, 2
PROBABLE = 0.5
SMALLEST_SACRUM_ML = 5.0
# An instance that is none of its own belongs to the vertebra this near, in parts of the distance of neighbours.
SAME = 0.75
# The fine pass sees this much around the coarse column: an error of a few voxels, and some context.
AROUND_MM = 12.0


@dataclass(frozen=True)
class Column:
    """A numbered column.

    Attributes
    ----------
    instances : Instances
        What was found.
    numbering : Numbering
        A level for each instance.
    labels : ndarray of uint8
        Shape (z, y, x): levels 1 to 25, sacrum 26.
    levels : ndarray of int
        Shape (k,): levels of the kept vertebrae, top first; each is there once.
    centres : ndarray
        Shape (k, 3): their centroids, (z, y, x) in mm from the centre of voxel (0, 0, 0).
    confidence : ndarray
        Shape (k,): probability of each one's level.
    sacrum : ndarray or None
        Centroid of the sacrum, where there is one.
    box : tuple of ndarray or None
        Lowest and highest corner (z, y, x) in mm of what the fine pass has to see; None without a column.
    """

    instances: Instances
    numbering: Numbering
    labels: np.ndarray
    levels: np.ndarray
    centres: np.ndarray
    confidence: np.ndarray
    sacrum: np.ndarray | None
    box: tuple[np.ndarray, np.ndarray] | None


def decode(probabilities: np.ndarray, offsets: np.ndarray, evidence: np.ndarray, spacing_mm: float) -> Column:
    """Find and number the vertebrae in the answers of the coarse pass.

    Parameters
    ----------
    probabilities : ndarray
        Shape (3, z, y, x): background, vertebra, sacrum.
    offsets : ndarray
        Shape (3, z, y, x): from the voxel to the centroid of its vertebra along z, y, x, in mm.
    evidence : ndarray
        Shape (26, z, y, x), any kind of float: logarithm of the probabilities of C1 to L6 and sacrum.
    spacing_mm : float
        Of the isotropic grid.
    """
    instances = find_instances(probabilities[VERTEBRA_CHANNEL], offsets, spacing_mm)
    sacrum_mask, sacrum = find_sacrum(probabilities[SACRUM_CHANNEL], spacing_mm)
    if sacrum is not None and _is_above_most(sacrum, instances):
        sacrum_mask[:], sacrum = False, None
    instances = _above(instances, sacrum)
    numbering = number(
        mean_evidence(evidence, probabilities[VERTEBRA_CHANNEL], instances),
        instances.centres,
        instances.volumes,
        sacrum,
        _cut(instances),
    )
    values = _values(instances, numbering.levels)
    labels = np.r_[0, values].astype(np.uint8)[instances.labels]
    labels[sacrum_mask & (labels == 0)] = SACRUM
    kept = numbering.levels > 0
    return Column(
        instances,
        numbering,
        labels,
        numbering.levels[kept],
        instances.centres[kept],
        numbering.confidence[kept],
        sacrum,
        _box(labels, spacing_mm),
    )


def decode_fine(
    probabilities: np.ndarray, offsets: np.ndarray, spacing_mm: float, origin_mm: np.ndarray, column: Column
) -> np.ndarray:
    """Return the levels (z, y, x), uint8, of the fine pass's voxels: 0, 1 to 25, sacrum 26.

    Parameters
    ----------
    probabilities, offsets, spacing_mm
        As for `decode`, on the fine grid, whose axes are those of the coarse one.
    origin_mm : ndarray
        Where the centre of the fine voxel (0, 0, 0) lies: (z, y, x) in mm from that of the coarse voxel (0, 0, 0).
    column : Column
        What `decode` found.
    """
    best = probabilities.argmax(axis=0)
    numbers = assign(best == VERTEBRA_CHANNEL, offsets, spacing_mm, origin_mm, column.centres)
    labels = np.r_[0, column.levels].astype(np.uint8)[numbers]
    if column.sacrum is not None:
        labels[find_sacrum(probabilities[SACRUM_CHANNEL], spacing_mm)[0] & (labels == 0)] = SACRUM
    return labels


def find_sacrum(sacrum: np.ndarray, spacing_mm: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Return mask (z, y, x) and centroid, (z, y, x) in mm, of the largest piece of what is probably sacrum."""
    mask = sacrum > PROBABLE
    box = ndimage.find_objects(mask.astype(np.uint8))
    if not box:
        return mask, None
    pieces, _ = ndimage.label(mask[box[0]], structure=np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    mask[:] = False
    if sizes.max() * spacing_mm**3 < SMALLEST_SACRUM_ML * 1000:
        return mask, None
    mask[box[0]] = pieces == sizes.argmax()
    return mask, np.argwhere(mask).mean(axis=0) * spacing_mm


def mean_evidence(evidence: np.ndarray, vertebra: np.ndarray, instances: Instances) -> np.ndarray:
    """Return the evidence (n, 26) of each instance: the mean over its voxels, weighted by their probability."""
    voxels = np.nonzero(instances.labels)
    numbers = instances.labels[voxels]
    weights = vertebra[voxels].astype(float)
    count = len(instances.centres)
    total = np.bincount(numbers, weights, count + 1)[1:]
    means = [np.bincount(numbers, weights * level[voxels], count + 1)[1:] / total for level in evidence]
    return np.stack(means, axis=1)


def _is_above_most(sacrum: np.ndarray, instances: Instances) -> bool:
    """Say whether most of the vertebrae, by volume, lie below a centroid: then it is of no sacrum."""
    below = instances.centres[:, 0] < sacrum[0]
    return bool(instances.volumes[below].sum() > instances.volumes[~below].sum())


def _above(instances: Instances, sacrum: np.ndarray | None) -> Instances:
    """Leave out what lies below the middle of the sacrum, where no vertebra can be."""
    if sacrum is None or not len(instances.centres):
        return instances
    kept = instances.centres[:, 0] > sacrum[0]
    numbers = np.r_[0, np.where(kept, np.cumsum(kept), 0)].astype(np.int16)
    return Instances(numbers[instances.labels], instances.centres[kept], instances.volumes[kept])


def _cut(instances: Instances) -> np.ndarray:
    """Return which instances touch the border of the grid."""
    cut = np.zeros(len(instances.centres) + 1, bool)
    for axis in range(3):
        for end in (0, -1):
            cut[np.unique(instances.labels.take(end, axis=axis))] = True
    return cut[1:]


def _values(instances: Instances, levels: np.ndarray) -> np.ndarray:
    """Return a label for each instance: its level, or that of the vertebra which it is a part of, or 0."""
    values = levels.copy()
    kept = np.flatnonzero(levels)
    for index in np.flatnonzero(levels == 0):
        distances = np.linalg.norm(instances.centres[kept] - instances.centres[index], axis=1)
        if kept.size:
            nearest = kept[distances.argmin()]
            if distances.min() <= SAME * distance_by_volume(instances.volumes[nearest]):
                values[index] = levels[nearest]
    return values


def _box(labels: np.ndarray, spacing_mm: float) -> tuple[np.ndarray, np.ndarray] | None:
    place = ndimage.find_objects((labels > 0).astype(np.uint8))
    if not place:
        return None
    low = np.array([part.start - 0.5 for part in place[0]]) * spacing_mm - AROUND_MM
    high = np.array([part.stop - 0.5 for part in place[0]]) * spacing_mm + AROUND_MM
    return low, high
