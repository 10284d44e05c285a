"""Separate vertebrae: every voxel votes for the centroid that its offset points to; clusters of votes are instances.

Our own construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from scipy.spatial import distance_matrix

from segmamba.spine.column import extract_column
from segmamba.spine.levels import distance_by_volume
from segmamba.spine.nearest import nearest_points
from segmamba.utils.arrays import at_voxels, bounding_box, in_main_memory, indices_of
from segmamba.utils.morphology import dilated

if TYPE_CHECKING:
    import torch

# What a network gives, in main memory or on a GPU.
Values: TypeAlias = "np.ndarray | torch.Tensor"

VERTEBRA = 0.5
# Votes are counted in cells of this size and smoothed by this much, well below half of the 12 mm between two vertebrae
# of the neck.
CELL_MM = 2.0
VOTE_SIGMA_MM = 2.5
# The mask is dilated across the discs before `extract_column`, which would drop small vertebrae one by one.
JOINED_MM = 4.0
# Clusters with fewer votes are dropped: slivers at the border, specks.
SMALLEST_ML = 1.0
# Two peaks are one if the density of votes between them stays above this part of the lower peak's.
VALLEY = 0.85
# Two clusters are one if they are closer along the column than this part of the distance of vertebrae of their total
# volume (votes of body and arch may form two clusters at one height).
CLOSEST = 0.4
# A cluster between others with less than this part of their median volume is a fragment.
FRAGMENT = 0.2
# The column's direction at a point is that of the votes within this distance.
DIRECTION_MM = 60.0
# A vote counts for the nearest centre within this part of the distance of neighbours.
REACH = 1.0
# An instance is two vertebrae if its volume, height and distance to its neighbours exceed the others' by these factors
# (C2 is large and tall, but at the usual distance).
TWO_VOLUMES, TWO_HEIGHTS, TWO_DISTANCES = 1.5, 1.3, 1.3
LONE_REACH_MM = 40.0
# Votes for the vertebra at an end of the column belong to the next one if they land further beyond its centre than this
# multiple of the spread of the neighbour's votes, and no further to the sides than this part of the distance.
SPREADS, LATERAL = 2.5, 0.5
# Rounds of two-means clustering that divide the votes between the two.
ROUNDS = 5
# Largest distance of a voxel from its vertebra's centroid along an axis.
LONGEST_MM = 80.0


@dataclass(frozen=True)
class Instances:
    """Vertebrae without levels.

    Attributes
    ----------
    labels : ndarray of int16
        Shape (z, y, x): 0 for none, 1 to n from the top of the column down.
    centres : ndarray
        Shape (n, 3): mean of the votes, (z, y, x) in mm from the centre of voxel (0, 0, 0).
    volumes : ndarray
        Shape (n,), in mL.
    """

    labels: np.ndarray
    centres: np.ndarray
    volumes: np.ndarray


def find_instances(vertebra: Values, offsets: Values, spacing_mm: float) -> Instances:
    """Separate the vertebrae of a column into instances.

    Parameters
    ----------
    vertebra : ndarray or Tensor of float32
        Shape (z, y, x): probability of a vertebra.
    offsets : ndarray or Tensor of float32
        Shape (3, z, y, x): from the voxel to the centroid of its vertebra along z, y, x in mm.
    spacing_mm : float
        Of the isotropic grid.
    """
    mask = in_main_memory(vertebra > VERTEBRA)
    box = bounding_box(mask)
    empty = Instances(np.zeros(mask.shape, np.int16), np.zeros((0, 3)), np.zeros(0))
    if box is None:
        return empty
    inner = mask[box]
    corner = np.array([part.start for part in box]) * spacing_mm
    indices, votes = votes_of(inner, offsets[(slice(None), *box)], spacing_mm)
    joined = dilated(inner, max(1, round(JOINED_MM / spacing_mm)))
    on_column = extract_column(joined, np.diag([spacing_mm] * 3 + [1.0]))[tuple(indices)]
    weights = at_voxels(vertebra[box][None], tuple(indices))[0] * (spacing_mm**3 / 1000)
    peaks, volumes = _peaks(votes[on_column], weights[on_column])
    if not len(peaks):
        return empty
    owner = _merged(peaks, volumes, votes[on_column], weights[on_column])
    numbers = _number_voxels(votes, peaks, volumes, owner)
    numbers, votes = _split(indices.T * spacing_mm, votes, numbers)
    return _instances(mask.shape, box, indices, votes, numbers, corner, spacing_mm)


def assign(mask: np.ndarray, votes: np.ndarray, origin_mm: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Give each voxel of a mask to the known centre that its vote is nearest to.

    Parameters
    ----------
    mask : ndarray of bool
        Shape (z, y, x).
    votes : ndarray
        Shape (voxels, 3): those of its voxels, as `votes_of` gives them.
    origin_mm : ndarray
        Where the centre of the mask's voxel (0, 0, 0) lies in the frame of ``centres``: (z, y, x) in mm. The axes
        are the same.
    centres : ndarray
        Shape (n, 3), in mm, in order along the column.

    Returns
    -------
    ndarray of int16
        Shape (z, y, x): number of the centre from 1; 0 outside the mask and where a vote is near none of them.
    """
    labels = np.zeros(mask.shape, np.int16)
    if not len(centres) or not mask.any():
        return labels
    gaps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    reach = np.full(len(centres), LONE_REACH_MM)
    if len(gaps):
        reach = np.maximum(np.r_[gaps, gaps[-1]], np.r_[gaps[0], gaps]) * REACH
    nearest, distances = nearest_points(votes + np.asarray(origin_mm), centres)
    labels[mask] = np.where(distances <= reach[nearest], nearest + 1, 0)
    return labels


def find_next(
    cast: tuple[np.ndarray, np.ndarray], spacing_mm: float, origin_mm: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Find a vertebra that follows the last of the known centres and has been taken for one with it.

    Its voxels lie beyond the last centre, and vote for a point further beyond it than a single vertebra's votes do.

    Parameters
    ----------
    cast : tuple of ndarray
        Voxels and their votes, as `votes_of` gives them.
    spacing_mm : float
        Of the voxels' isotropic grid.
    origin_mm
        As for `assign`.
    centres : ndarray
        Shape (n, 3), n >= 2, in order; the last one is at the end of the column.

    Returns
    -------
    tuple of ndarray or None
        Mean votes (3,), in mm, for the last and for the next vertebra; None if there is only one.
    """
    direction = centres[-1] - centres[-2]
    gap = float(np.linalg.norm(direction))
    direction = direction / gap
    indices, votes = cast
    from_end = votes + (origin_mm - centres[-1])
    along = from_end @ direction
    near = np.einsum("ij,ij->i", from_end, from_end) - along**2 < (LATERAL * gap) ** 2
    indices, votes, along = indices[:, near], votes[near] + origin_mm, along[near]
    nearest = nearest_points(votes, centres)[0]
    last, before = (nearest == len(centres) - number for number in (1, 2))
    if not last.any() or not before.any():
        return None
    spread = 1.48 * np.median(np.abs(along[before] - np.median(along[before])))
    votes, along = votes[last], along[last]
    beyond = (indices.T[last] * spacing_mm + origin_mm - centres[-1]) @ direction
    middle = _mode(along)
    following = (along - middle > max(CLOSEST * gap, SPREADS * spread)) & (beyond > middle)
    if np.count_nonzero(following) * spacing_mm**3 < SMALLEST_ML * 1000:
        return None
    for _ in range(ROUNDS):
        following = along > (along[~following].mean() + along[following].mean()) / 2
    return votes[~following].mean(axis=0), votes[following].mean(axis=0)


def _mode(values: np.ndarray) -> float:
    """Return the mode of values in mm."""
    low = values.min()
    density = np.bincount(((values - low) / CELL_MM).round().astype(int)).astype(np.float32)
    density = ndimage.gaussian_filter1d(density, VOTE_SIGMA_MM / CELL_MM, mode="constant")
    return float(low + CELL_MM * density.argmax())


def votes_of(mask: np.ndarray, offsets: Values, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (3, voxels) of a mask and the votes (voxels, 3) of its voxels, in mm."""
    indices = np.array(indices_of(mask))
    offset = at_voxels(offsets, tuple(indices)).T
    return indices, indices.T * spacing_mm + np.clip(offset, -LONGEST_MM, LONGEST_MM)


def _peaks(votes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the peaks (n, 3) of the density of votes, in mm, one for each hill, and their volumes of votes in mL."""
    low = votes.min(axis=0) - 2 * CELL_MM
    cells = ((votes - low) / CELL_MM).round().astype(int)
    shape = tuple(cells.max(axis=0) + 3)
    flat = np.ravel_multi_index(tuple(cells.T), shape)
    density = np.bincount(flat, weights, int(np.prod(shape))).reshape(shape).astype(np.float32)
    density = ndimage.gaussian_filter(density, VOTE_SIGMA_MM / CELL_MM, mode="constant")
    high = (density == ndimage.maximum_filter(density, 3)) & (density > density.max() / 200)
    cells = np.argwhere(high)
    cells = cells[np.argsort(-density[tuple(cells.T)], kind="stable")]
    kept: list[np.ndarray] = []
    for cell in cells:
        if not any(_valley(density, cell, other) >= VALLEY for other in kept):
            kept.append(cell)
    peaks = np.array(kept) * CELL_MM + low
    volumes = np.bincount(nearest_points(votes, peaks)[0], weights, len(peaks))
    return peaks[volumes >= SMALLEST_ML], volumes[volumes >= SMALLEST_ML]


def _valley(density: np.ndarray, lower: np.ndarray, higher: np.ndarray) -> float:
    """Return the minimum density on the line between two peaks, as a part of the lower one's."""
    steps = int(np.abs(higher - lower).max()) + 1
    if steps > DIRECTION_MM / CELL_MM:
        return 0.0
    line = np.linspace(lower, higher, steps + 1).T
    return float(ndimage.map_coordinates(density, line, order=1).min() / density[tuple(lower)])


def _merged(peaks: np.ndarray, volumes: np.ndarray, votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return for each peak the number of its vertebra, from 1 at the top; 0 for none."""
    group = np.arange(len(peaks))
    centres, masses = peaks.copy(), volumes.copy()
    directions = _directions(peaks, votes, weights)
    while len(np.unique(group)) > 1:
        alive = np.unique(group)
        apart = centres[alive][:, None] - centres[alive]
        common = distance_by_volume(masses[alive][:, None] + masses[alive])
        along = np.abs(np.einsum("abk,ak->ab", apart, directions[alive]))
        closeness = np.maximum(along / CLOSEST, np.linalg.norm(apart, axis=2) / 1.5) / common
        np.fill_diagonal(closeness, np.inf)
        a, b = np.unravel_index(closeness.argmin(), closeness.shape)
        if closeness[a, b] >= 1:
            break
        first, second = alive[a], alive[b]
        centres[first] = np.average(centres[[first, second]], axis=0, weights=masses[[first, second]])
        masses[first] += masses[second]
        group[group == second] = first
    alive = np.unique(group)
    path = _path(centres[alive])
    path = path[_large_enough(masses[alive[path]])]
    number = np.zeros(len(peaks), int)
    number[alive[path]] = np.arange(1, len(path) + 1)
    for off in set(alive.tolist()) - set(alive[path].tolist()):
        distances = np.linalg.norm(centres[alive[path]] - centres[off], axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] <= 1.2 * distance_by_volume(masses[alive[path[nearest]]]):
            number[off] = nearest + 1
    return number[group]


def _large_enough(volumes: np.ndarray) -> np.ndarray:
    """Return which vertebrae (n,) along a column are more than fragments; those at its ends may be truncated."""
    large = np.ones(len(volumes), bool)
    for index in range(1, len(volumes) - 1):
        large[index] = volumes[index] > FRAGMENT * np.median(volumes[max(0, index - 2) : index + 3])
    return large


def _directions(points: np.ndarray, votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the directions (n, 3) of the column at points: the principal axes of the votes near them, (z, y, x)."""
    middle = votes.mean(axis=0)
    votes, points = votes - middle, points - middle
    apart = (votes**2).sum(axis=1)[:, None] - 2 * (votes @ points.T) + (points**2).sum(axis=1)
    near = apart < DIRECTION_MM**2
    # Sums of the votes' moments up to the second, for all points at once.
    products = (votes[:, :, None] * votes[:, None, :]).reshape(len(votes), 9)
    moments = (near * weights[:, None]).T @ np.concatenate([np.ones((len(votes), 1)), votes, products], axis=1)
    directions = np.tile([1.0, 0.0, 0.0], (len(points), 1))
    for index in np.flatnonzero(np.count_nonzero(near, axis=0) > 3):
        total, mean = moments[index, 0], moments[index, 1:4] / moments[index, 0]
        values, vectors = np.linalg.eigh(moments[index, 4:].reshape(3, 3) / total - np.outer(mean, mean))
        if values[-1] > 1.5 * values[-2]:
            directions[index] = vectors[:, -1]
    return directions


def _path(centres: np.ndarray) -> np.ndarray:
    """Return the order of centres along the column, top first: the longest path of their minimum spanning tree."""
    if len(centres) < 3:
        return np.argsort(-centres[:, 0])
    tree = minimum_spanning_tree(distance_matrix(centres, centres))
    lengths, before = shortest_path(tree, directed=False, return_predecessors=True)
    first, last = np.unravel_index(lengths.argmax(), lengths.shape)
    path = [int(last)]
    while path[-1] != first:
        path.append(int(before[first, path[-1]]))
    return np.array(path if centres[path[0], 0] >= centres[path[-1], 0] else path[::-1])


def _number_voxels(votes: np.ndarray, peaks: np.ndarray, volumes: np.ndarray, owner: np.ndarray) -> np.ndarray:
    nearest, distances = nearest_points(votes, peaks)
    together = np.bincount(owner, volumes, owner.max() + 1)
    reach = REACH * distance_by_volume(together[owner])
    return np.where(distances <= reach[nearest], owner[nearest], 0)


def _split(points: np.ndarray, votes: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut instances in two that are as large and as tall as two; return numbers from the top down, and votes.

    The votes of such an instance were for a point between the two: the positions of its voxels replace them.
    """
    count = int(numbers.max())
    if count < 3:
        return numbers, votes
    votes = votes.copy()
    inside = numbers > 0
    sizes = np.bincount(numbers, minlength=count + 1)[1:]
    sums = [np.bincount(numbers, points[:, axis], count + 1)[1:] for axis in range(3)]
    middles = np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None]
    directions = np.gradient(middles, axis=0)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-6)
    along = np.zeros(len(numbers))
    own = numbers[inside] - 1
    along[inside] = ((points[inside] - middles[own]) * directions[own]).sum(axis=1)
    heights = np.sqrt(np.bincount(numbers, along**2, count + 1)[1:] / np.maximum(sizes, 1))
    gaps = np.linalg.norm(np.diff(middles, axis=0), axis=1)
    result, next_number = np.zeros_like(numbers), 0
    for index in range(count):
        others = [n for n in range(max(0, index - 2), min(count, index + 3)) if n != index]
        own_gaps = gaps[max(0, index - 1) : index + 1]
        other_gaps = np.r_[gaps[max(0, index - 3) : max(0, index - 1)], gaps[index + 1 : index + 3]]
        two = sizes[index] > TWO_VOLUMES * np.median(sizes[others])
        two &= heights[index] > TWO_HEIGHTS * np.median(heights[others])
        two &= not other_gaps.size or own_gaps.mean() > TWO_DISTANCES * np.median(other_gaps)
        own_voxels = numbers == index + 1
        next_number += 1
        result[own_voxels] = next_number
        if two:
            # ``directions`` run down the column.
            result[own_voxels & (along > 0)] = next_number + 1
            votes[own_voxels] = points[own_voxels]
            next_number += 1
    return result, votes


def _instances(
    shape: tuple[int, ...],
    box: tuple[slice, ...],
    indices: np.ndarray,
    votes: np.ndarray,
    numbers: np.ndarray,
    corner: np.ndarray,
    spacing_mm: float,
) -> Instances:
    present, numbers = np.unique(numbers, return_inverse=True)
    if present[0] != 0:
        numbers = numbers + 1
    count = int(numbers.max())
    labels = np.zeros(shape, np.int16)
    labels[box][tuple(indices)] = numbers
    sizes = np.bincount(numbers, minlength=count + 1)[1:]
    centres = np.stack([np.bincount(numbers, votes[:, axis], count + 1)[1:] / sizes for axis in range(3)], axis=1)
    return Instances(labels, centres + corner, sizes * spacing_mm**3 / 1000)
