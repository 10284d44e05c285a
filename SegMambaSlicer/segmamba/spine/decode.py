"""From the coarse pass to a labelled column."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy import ndimage

from segmamba.spine.halves import are_halves, merged, pairs_of_halves
from segmamba.spine.hmm import Numbering, label_observations
from segmamba.spine.instances import Instances, find_instances
from segmamba.spine.level_model import Observations, weight_of_column
from segmamba.spine.levels import SACRUM, SACRUM_TOP_MM, distance_by_volume
from segmamba.spine.nearest import nearest_labels
from segmamba.utils.arrays import bounding_box, in_main_memory, indices_of, mean_index, tensor_at_voxels
from segmamba.utils.morphology import CONNECTIVITY_26
from segmamba.utils.parallel import at_once
from segmamba.utils.runs import runs_of

if TYPE_CHECKING:
    import torch

# What a network gives, in main memory or on a GPU.
Values: TypeAlias = "np.ndarray | torch.Tensor"

VERTEBRA_CHANNEL, SACRUM_CHANNEL = 1, 2
PROBABLE = 0.5
SMALLEST_SACRUM_ML = 5.0
# A spurious instance belongs to the nearest vertebra within this part of the distance of neighbours.
SAME = 0.75
# The fine pass sees this much around the coarse column: an error of a few voxels, and some context.
AROUND_MM = 12.0
# An instance with this part of its volume below the height under which this part of the sacrum's volume lies belongs to
# the sacrum: L5 of the open label maps has at most 0.1 there, and 0.4 where all but 16 mm of the sacrum is cut off.
WITHIN_SACRUM, SACRUM_TOP = 0.5, 0.9
# So does the last instance if it has less than this part of the volume of the three above it and lies nearer to the
# sacrum's centroid than L5 lies to that of the sacrum's top: S1, which looks like a vertebra on MR.
SMALL_LAST, ABOVE_LAST = 0.7, 3
# A rib is detected if there is more than this volume of it within this distance. In the open label maps, with ribs
# extended to the joint, vertebrae with a rib have 0.9 to 5.6 mL there, L1 at most 0.11 (within 12 mm 0.5: the last rib
# passes it). A network finds fewer of the heads; without any, T11 has 0.3 to 0.4 mL within 10 mm, within 6 none.
RIB_NEAR_MM, RIB_ML = 10.0, 0.25
# Smaller components are tips of transverse processes, unless the border truncates them: the smallest rib of the open
# label maps has 1.2 mL.
SMALLEST_RIB_ML = 1.0


@dataclass(frozen=True)
class Column:
    """A vertebral column with labelled levels.

    Attributes
    ----------
    observations : Observations
        What the levels follow from.
    instances : Instances
        The vertebrae, one by one.
    numbering : Numbering
        A level for each instance.
    labels : ndarray of uint8
        Shape (z, y, x): VerSe's numbers, levels 1 to 25 and T13 28, sacrum 26.
    levels : ndarray of int
        Shape (k,): levels of the kept vertebrae, top first; each is there once.
    centres : ndarray
        Shape (k, 3): their centroids, (z, y, x) in mm from the centre of voxel (0, 0, 0).
    confidence : ndarray
        Shape (k,): probability of each one's level.
    runner_up : ndarray of int or None
        Shape (k,): their levels in the next best labelling, 0 for none.
    sacrum : ndarray or None
        Shape (3,), in mm: centroid of the sacrum, if there is one.
    sacral : ndarray
        Shape (m, 3): centroids of parts of the sacrum that the network took for vertebrae.
    box : tuple of ndarray or None
        Lowest and highest corner (z, y, x) in mm of the region for the fine pass; None without a column.
    """

    observations: Observations
    instances: Instances
    numbering: Numbering
    labels: np.ndarray
    levels: np.ndarray
    centres: np.ndarray
    confidence: np.ndarray
    runner_up: np.ndarray | None
    sacrum: np.ndarray | None
    sacral: np.ndarray
    box: tuple[np.ndarray, np.ndarray] | None


def decode(
    probabilities: Values,
    offsets: Values,
    evidence: Values,
    spacing_mm: float,
    rib: Values | None = None,
) -> Column:
    """Find and label the vertebrae in the predictions of the coarse pass.

    Of tensors on a GPU only masks, and values within them, are copied.

    Parameters
    ----------
    probabilities : ndarray or Tensor
        Shape (3, z, y, x): background, vertebra, sacrum.
    offsets : ndarray or Tensor
        Shape (3, z, y, x): from the voxel to the centroid of its vertebra along z, y, x, in mm.
    evidence : ndarray or Tensor
        Shape (26, z, y, x), any floating type: the network's logits of C1 to L6 and sacrum.
    spacing_mm : float
        Of the isotropic grid.
    rib : ndarray or Tensor or None
        Shape (z, y, x): probability of a rib; None where ribs are not visible, as on MR.
    """

    def whole_ribs() -> np.ndarray | None:
        return None if rib is None else _whole_ribs(rib, spacing_mm)

    with ThreadPoolExecutor(2) as beside:
        found_ribs = beside.submit(whole_ribs)
        found_sacrum = beside.submit(find_sacrum, probabilities[SACRUM_CHANNEL], spacing_mm)
        instances = find_instances(probabilities[VERTEBRA_CHANNEL], offsets, spacing_mm)
    ribs, (sacrum_mask, sacrum) = found_ribs.result(), found_sacrum.result()
    if sacrum is not None and _is_above_most(sacrum, instances):
        sacrum_mask[:], sacrum = False, None
    vertebrae = _above(instances, sacrum_mask)
    if sacrum is not None and _is_top_of_sacrum(instances, vertebrae, sacrum):
        vertebrae[np.flatnonzero(vertebrae)[-1]] = False
        sacrum_mask |= _of(instances, ~vertebrae)
        sacrum = mean_index(sacrum_mask) * spacing_mm
    sacrum_mask |= _of(instances, ~vertebrae)
    sacral, instances = instances.centres[~vertebrae], _kept(instances, vertebrae)
    seen_sacrum = sacrum, bool(_at_border(sacrum_mask).any())
    seen = _observed(instances, probabilities, evidence, spacing_mm, ribs, *seen_sacrum)
    numbering = label_observations(seen)
    # From the bottom up, so that the numbers of those above stay.
    for upper in reversed(pairs_of_halves(seen.evidence, seen.volumes)):
        joined = merged(instances, upper)
        other = _observed(joined, probabilities, evidence, spacing_mm, ribs, *seen_sacrum)
        if are_halves(numbering.levels, upper, weight_of_column(seen), weight_of_column(other)):
            instances, seen, numbering = joined, other, label_observations(other)
    unknown = np.full(len(instances.centres), np.nan)
    labels = np.where(sacrum_mask, np.uint8(SACRUM), np.uint8(0))
    # It has no levels yet.
    bare = Column(seen, instances, numbering, labels, unknown, unknown, unknown, None, sacrum, sacral, None)
    column = relabelled(bare, numbering)
    return replace(column, box=_fine_region(column.labels, spacing_mm))


def _observed(
    instances: Instances,
    probabilities: Values,
    evidence: Values,
    spacing_mm: float,
    ribs: np.ndarray | None,
    sacrum: np.ndarray | None,
    sacrum_cut: bool,
) -> Observations:
    """Return what is known of the vertebrae of a column; parameters as for `decode` and `label_levels`.

    ``ribs`` is the mask (z, y, x) of whole ones.
    """
    cut = _cut(instances)

    def levels() -> np.ndarray:
        return mean_evidence(evidence, probabilities[VERTEBRA_CHANNEL], instances)

    def with_rib() -> np.ndarray:
        if ribs is None:
            return np.full(len(instances.centres), np.nan)
        return np.where(cut, np.nan, _volume_near(ribs, instances, spacing_mm) > RIB_ML)

    means, near = at_once(lambda part: part(), (levels, with_rib)).values()
    return Observations(means, instances.centres, instances.volumes, sacrum, cut, near, sacrum_cut)


def relabelled(column: Column, numbering: Numbering) -> Column:
    """Return a column with other levels of the same instances."""
    values = _values(column.instances, numbering.levels)
    labels = np.where(column.labels == SACRUM, np.uint8(SACRUM), np.uint8(0))
    voxels = indices_of(column.instances.labels)
    own = np.r_[0, values].astype(np.uint8)[column.instances.labels[voxels]]
    labels[voxels] = np.where(own > 0, own, labels[voxels])
    kept = numbering.levels > 0
    return replace(
        column,
        numbering=numbering,
        labels=labels,
        levels=numbering.levels[kept],
        centres=column.instances.centres[kept],
        confidence=numbering.confidence[kept],
        runner_up=None if numbering.runner_up is None else numbering.runner_up[kept],
    )


def find_sacrum(sacrum: Values, spacing_mm: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Return mask (z, y, x) and centroid, (z, y, x) in mm, of the largest component of probable sacrum."""
    mask = in_main_memory(sacrum > PROBABLE)
    box = bounding_box(mask)
    if box is None:
        return mask, None
    components, _ = ndimage.label(mask[box], structure=CONNECTIVITY_26)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    mask[:] = False
    if sizes.max() * spacing_mm**3 < SMALLEST_SACRUM_ML * 1000:
        return mask, None
    mask[box] = components == sizes.argmax()
    return mask, mean_index(mask) * spacing_mm


def mean_evidence(evidence: Values, vertebra: Values, instances: Instances) -> np.ndarray:
    """Return the evidence (n, 26) of each instance from the logits (26, z, y, x) of its voxels.

    It is the mean log-probability of each level, weighted by the voxels' probability of vertebra.
    """
    import torch
    from torch.nn import functional

    if not len(instances.centres):
        return np.zeros((0, len(evidence)))
    voxels = indices_of(instances.labels)
    logits = tensor_at_voxels(evidence, voxels).float()
    weights = tensor_at_voxels(vertebra[None], voxels).float()
    numbers = torch.from_numpy(instances.labels[voxels].astype(np.int64)).to(weights.device)
    # One product of matrices: sums of scattered values would depend on the order in which a GPU adds them.
    shares = functional.one_hot(numbers - 1, len(instances.centres)) * weights[0, :, None]
    means = (logits.log_softmax(dim=0) @ shares / shares.sum(dim=0)).T
    return in_main_memory(means.double())


def _volume_near(mask: np.ndarray, instances: Instances, spacing_mm: float) -> np.ndarray:
    """Return the volume (n,) in mL of a mask (z, y, x) near each instance; a voxel counts for the nearest one only."""
    found = np.zeros(len(instances.centres))
    margin = int(np.ceil(RIB_NEAR_MM / spacing_mm))
    inner = bounding_box(instances.labels > 0)
    if inner is None:
        return found
    box = tuple(slice(max(0, part.start - margin), part.stop + margin) for part in inner)
    labels = instances.labels[box]
    ribs = np.argwhere(mask[box] & (labels == 0))
    near = nearest_labels(labels, ribs, RIB_NEAR_MM / spacing_mm)
    return np.bincount(near, minlength=len(found) + 1)[1:] * spacing_mm**3 / 1000


def _whole_ribs(rib: Values, spacing_mm: float) -> np.ndarray:
    """Return a mask (z, y, x) of probable ribs without components that are too small for one and not truncated."""
    ribs = np.ascontiguousarray(in_main_memory(rib > PROBABLE))
    runs = runs_of(ribs, corners=True)
    small = runs.sizes * spacing_mm**3 < SMALLEST_RIB_ML * 1000
    ribs.reshape(-1)[runs.voxels(small & ~runs.at_border(ribs.shape))] = False
    return ribs


def _is_above_most(sacrum: np.ndarray, instances: Instances) -> bool:
    """Say whether most of the vertebrae, by volume, lie below a centroid: then it is not that of a sacrum."""
    below = instances.centres[:, 0] < sacrum[0]
    return bool(instances.volumes[below].sum() > instances.volumes[~below].sum())


def _above(instances: Instances, sacrum: np.ndarray) -> np.ndarray:
    """Return which instances (n,) lie above a mask of the sacrum; the others are parts of it."""
    filled = np.cumsum(np.count_nonzero(sacrum, axis=(1, 2)))
    if not filled[-1] or not len(instances.centres):
        return np.ones(len(instances.centres), bool)
    top = int(np.searchsorted(filled, SACRUM_TOP * filled[-1]))
    sizes, below = (
        np.bincount(part.ravel(), minlength=len(instances.centres) + 1)[1:]
        for part in (instances.labels, instances.labels[: top + 1])
    )
    above: np.ndarray = below < WITHIN_SACRUM * sizes
    return above


def _is_top_of_sacrum(instances: Instances, vertebrae: np.ndarray, sacrum: np.ndarray) -> bool:
    """Say whether the last of the vertebrae (n,) is the top of a sacrum with this centroid (3,), in mm."""
    kept = np.flatnonzero(vertebrae)
    if len(kept) <= ABOVE_LAST:
        return False
    usual = np.median(instances.volumes[kept[-1 - ABOVE_LAST : -1]])
    distance = np.linalg.norm(instances.centres[kept[-1]] - sacrum)
    return bool(instances.volumes[kept[-1]] < SMALL_LAST * usual and distance < SACRUM_TOP_MM)


def _of(instances: Instances, chosen: np.ndarray) -> np.ndarray:
    """Return the mask (z, y, x) of those instances (n,) that are chosen."""
    if not chosen.any():
        return np.zeros(instances.labels.shape, bool)
    mask: np.ndarray = np.r_[False, chosen][instances.labels]
    return mask


def _kept(instances: Instances, kept: np.ndarray) -> Instances:
    """Return some of the instances, renumbered from 1."""
    if kept.all():
        return instances
    numbers = np.r_[0, np.where(kept, np.cumsum(kept), 0)].astype(np.int16)
    return Instances(numbers[instances.labels], instances.centres[kept], instances.volumes[kept])


def _cut(instances: Instances) -> np.ndarray:
    """Return which instances touch the border of the grid."""
    cut = np.zeros(len(instances.centres) + 1, bool)
    cut[_at_border(instances.labels)] = True
    return cut[1:]


def _at_border(labels: np.ndarray) -> np.ndarray:
    """Return the distinct values at the border of a grid."""
    faces = [labels.take(end, axis=axis).ravel() for axis in range(3) for end in (0, -1)]
    return np.unique(np.concatenate(faces))


def _values(instances: Instances, levels: np.ndarray) -> np.ndarray:
    """Return a label for each instance: its level, for a spurious one that of the vertebra it belongs to, or 0."""
    values = levels.copy()
    kept = np.flatnonzero(levels)
    for index in np.flatnonzero(levels == 0):
        distances = np.linalg.norm(instances.centres[kept] - instances.centres[index], axis=1)
        if kept.size:
            nearest = kept[distances.argmin()]
            if distances.min() <= SAME * distance_by_volume(instances.volumes[nearest]):
                values[index] = levels[nearest]
    return values


def _fine_region(labels: np.ndarray, spacing_mm: float) -> tuple[np.ndarray, np.ndarray] | None:
    box = bounding_box(labels > 0)
    if box is None:
        return None
    low = np.array([part.start - 0.5 for part in box]) * spacing_mm - AROUND_MM
    high = np.array([part.stop - 0.5 for part in box]) * spacing_mm + AROUND_MM
    return low, high
