"""Which voxels are one vertebra: every voxel votes for the centroid that its offset points to. Our own construction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from scipy.spatial import KDTree, distance_matrix

from segmamba.spine.column import column
from segmamba.spine.levels import distance_by_volume
from segmamba.utils.arrays import bounding_box

VERTEBRA = 0.5
# Votes are counted in cells of this size and smoothed this much: half of what separates two vertebrae of a neck would
# be 6 mm.
CELL_MM = 2.0
VOTE_SIGMA_MM = 2.5
# Small vertebrae are joined over their discs, lest the rule for the column drops them one by one.
JOINED_MM = 4.0
# Fewer votes are no vertebra: slivers at the border, specks.
SMALLEST_ML = 1.0
# Two centres with no valley between them are one: votes on the way, against those at the lesser centre.
VALLEY = 0.85
# Two centres that are closer along the column than this part of what vertebrae of their common volume are apart are one
# (body and arch voting for two places are at one height).
CLOSEST = 0.4
# Less than this part of the volume of those around it is no vertebra between them.
BIT = 0.2
# The column's direction at a place is that of the votes within this distance.
DIRECTION_MM = 60.0
# A vote is for the nearest centre if it lands this near, in parts of the distance of neighbours.
REACH = 1.0
# More volume, height and distance to the neighbours than this, in parts of the others', are two vertebrae with one
# centre (C2 is big and tall, but no further from its neighbours).
TWO_VOLUMES, TWO_HEIGHTS, TWO_DISTANCES = 1.5, 1.3, 1.3
LONE_REACH_MM = 40.0
# Votes for the vertebra at an end of the column are for the next one where they land further beyond its centre than the
# neighbour's votes are spread, times this; and not further to the sides than this part of the neighbours' distance.
SPREADS, BESIDE = 2.5, 0.5
# Rounds that divide the votes between the two.
ROUNDS = 5
# No voxel is further from its vertebra's centroid along an axis.
LONGEST_MM = 80.0


@dataclass(frozen=True)
class Instances:
    """Vertebrae without numbers.

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


def find_instances(vertebra: np.ndarray, offsets: np.ndarray, spacing_mm: float) -> Instances:
    """Separate the vertebrae of a column.

    Parameters
    ----------
    vertebra : ndarray of float32
        Shape (z, y, x): probability of a vertebra.
    offsets : ndarray of float32
        Shape (3, z, y, x): from the voxel to the centroid of its vertebra along z, y, x in mm.
    spacing_mm : float
        Of the isotropic grid.
    """
    mask = vertebra > VERTEBRA
    box = bounding_box(mask)
    empty = Instances(np.zeros(vertebra.shape, np.int16), np.zeros((0, 3)), np.zeros(0))
    if box is None:
        return empty
    inner = mask[box]
    corner = np.array([part.start for part in box]) * spacing_mm
    indices, votes = _votes(inner, offsets[(slice(None), *box)], spacing_mm)
    joined = ndimage.binary_dilation(inner, iterations=max(1, round(JOINED_MM / spacing_mm)))
    on_column = column(joined, np.diag([spacing_mm] * 3 + [1.0]))[tuple(indices)]
    weights = vertebra[box][inner] * (spacing_mm**3 / 1000)
    peaks, volumes = _peaks(votes[on_column], weights[on_column])
    if not len(peaks):
        return empty
    owner = _merged(peaks, volumes, votes[on_column], weights[on_column])
    numbers = _number_voxels(votes, peaks, volumes, owner)
    numbers, votes = _split(indices.T * spacing_mm, votes, numbers)
    return _instances(vertebra.shape, box, indices, votes, numbers, corner, spacing_mm)


def assign(
    mask: np.ndarray, offsets: np.ndarray, spacing_mm: float, origin_mm: np.ndarray, centres: np.ndarray
) -> np.ndarray:
    """Give each voxel of a mask to the known centre that its vote is nearest to.

    Parameters
    ----------
    mask : ndarray of bool
        Shape (z, y, x).
    offsets : ndarray
        Shape (3, z, y, x), from the voxel to its vertebra's centroid, in mm.
    spacing_mm : float
        Of the mask's isotropic grid.
    origin_mm : ndarray
        Where the centre of the mask's voxel (0, 0, 0) lies in the frame of ``centres``: (z, y, x) in mm. The axes
        are the same.
    centres : ndarray
        Shape (n, 3), in mm, neighbours beside each other.

    Returns
    -------
    ndarray of int16
        0 outside of the mask and where a vote is for none of the centres, else the centre's number from 1.
    """
    labels = np.zeros(mask.shape, np.int16)
    if not len(centres) or not mask.any():
        return labels
    gaps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    reach = np.full(len(centres), LONE_REACH_MM)
    if len(gaps):
        reach = np.maximum(np.r_[gaps, gaps[-1]], np.r_[gaps[0], gaps]) * REACH
    _, votes = _votes(mask, offsets, spacing_mm)
    distances, nearest = KDTree(centres).query(votes + np.asarray(origin_mm))
    labels[mask] = np.where(distances <= reach[nearest], nearest + 1, 0)
    return labels


def find_next(
    mask: np.ndarray, offsets: np.ndarray, spacing_mm: float, origin_mm: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Find a vertebra that follows upon the last of known centres and has been taken for one with it.

    Its voxels lie beyond the last centre, and vote for a place further beyond than a single vertebra's votes do.

    Parameters
    ----------
    mask, offsets, spacing_mm, origin_mm
        As for `assign`.
    centres : ndarray
        Shape (n, 3), two or more, in order; the last one is that at the end.

    Returns
    -------
    tuple of ndarray or None
        The places (3,) that the votes for the last one and for the next one gather at; None where all are for one.
    """
    course = centres[-1] - centres[-2]
    gap = float(np.linalg.norm(course))
    course = course / gap
    indices, votes = _votes(mask, offsets, spacing_mm)
    votes += np.asarray(origin_mm)
    from_end = votes - centres[-1]
    along = from_end @ course
    near = np.linalg.norm(from_end - along[:, None] * course, axis=1) < BESIDE * gap
    indices, votes, along = indices[:, near], votes[near], along[near]
    nearest = KDTree(centres).query(votes)[1]
    last, before = (nearest == len(centres) - number for number in (1, 2))
    if not last.any() or not before.any():
        return None
    spread = 1.48 * np.median(np.abs(along[before] - np.median(along[before])))
    votes, along = votes[last], along[last]
    beyond = (indices.T[last] * spacing_mm + origin_mm - centres[-1]) @ course
    middle = _mode(along)
    following = (along - middle > max(CLOSEST * gap, SPREADS * spread)) & (beyond > middle)
    if np.count_nonzero(following) * spacing_mm**3 < SMALLEST_ML * 1000:
        return None
    for _ in range(ROUNDS):
        following = along > (along[~following].mean() + along[following].mean()) / 2
    return votes[~following].mean(axis=0), votes[following].mean(axis=0)


def _mode(values: np.ndarray) -> float:
    """Return where values (mm) are densest."""
    low = values.min()
    density = np.bincount(((values - low) / CELL_MM).round().astype(int)).astype(np.float32)
    density = ndimage.gaussian_filter1d(density, VOTE_SIGMA_MM / CELL_MM, mode="constant")
    return float(low + CELL_MM * density.argmax())


def _votes(mask: np.ndarray, offsets: np.ndarray, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (3, voxels) of a mask and the points (voxels, 3) in mm that they vote for."""
    indices = np.array(np.nonzero(mask))
    offset = np.stack([axis[mask] for axis in offsets], axis=1)
    return indices, indices.T * spacing_mm + np.clip(offset, -LONGEST_MM, LONGEST_MM)


def _peaks(votes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places (n, 3) in mm that votes gather at, without those of a common hill, and their mL of votes."""
    low = votes.min(axis=0) - 2 * CELL_MM
    cells = ((votes - low) / CELL_MM).round().astype(int)
    shape = tuple(cells.max(axis=0) + 3)
    flat = np.ravel_multi_index(tuple(cells.T), shape)
    density = np.bincount(flat, weights, int(np.prod(shape))).reshape(shape).astype(np.float32)
    density = ndimage.gaussian_filter(density, VOTE_SIGMA_MM / CELL_MM, mode="constant")
    high = (density == ndimage.maximum_filter(density, 3)) & (density > density.max() / 200)
    places = np.argwhere(high)
    places = places[np.argsort(-density[tuple(places.T)], kind="stable")]
    kept: list[np.ndarray] = []
    for place in places:
        if not any(_valley(density, place, other) >= VALLEY for other in kept):
            kept.append(place)
    peaks = np.array(kept) * CELL_MM + low
    volumes = np.bincount(KDTree(peaks).query(votes)[1], weights, len(peaks))
    return peaks[volumes >= SMALLEST_ML], volumes[volumes >= SMALLEST_ML]


def _valley(density: np.ndarray, lesser: np.ndarray, greater: np.ndarray) -> float:
    """Return the least density on the line between two maxima, as a part of the lesser one's."""
    steps = int(np.abs(greater - lesser).max()) + 1
    if steps > DIRECTION_MM / CELL_MM:
        return 0.0
    line = np.linspace(lesser, greater, steps + 1).T
    return float(ndimage.map_coordinates(density, line, order=1).min() / density[tuple(lesser)])


def _merged(peaks: np.ndarray, volumes: np.ndarray, votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return for each peak the number, from 1 at the top, of the vertebra that it belongs to; 0 for none."""
    group = np.arange(len(peaks))
    centres, masses = peaks.copy(), volumes.copy()
    directions = np.array([_direction(peak, votes, weights) for peak in peaks])
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
    """Return which vertebrae along a column are no mere bits between others; those at its ends may be cut."""
    large = np.ones(len(volumes), bool)
    for index in range(1, len(volumes) - 1):
        large[index] = volumes[index] > BIT * np.median(volumes[max(0, index - 2) : index + 3])
    return large


def _direction(place: np.ndarray, votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the direction (unit vector z, y, x) of the column at a place: the votes' main axis around it."""
    near = np.linalg.norm(votes - place, axis=1) < DIRECTION_MM
    spread = np.cov(votes[near].T, aweights=weights[near]) if near.sum() > 3 else np.eye(3)
    values, vectors = np.linalg.eigh(spread)
    return vectors[:, -1] if values[-1] > 1.5 * values[-2] else np.array([1.0, 0.0, 0.0])


def _path(centres: np.ndarray) -> np.ndarray:
    """Return the order of centres along the column, top first: the longest path of their shortest tree."""
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
    distances, nearest = KDTree(peaks).query(votes)
    together = np.bincount(owner, volumes, owner.max() + 1)
    reach = REACH * distance_by_volume(together[owner])
    return np.where(distances <= reach[nearest], owner[nearest], 0)


def _split(points: np.ndarray, votes: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut in two what is as big and as high as two of its neighbours; return numbers from the top down, and votes.

    The votes of what is cut were for a place between the two: its voxels' own places replace them.
    """
    count = int(numbers.max())
    if count < 3:
        return numbers, votes
    votes = votes.copy()
    inside = numbers > 0
    sizes = np.bincount(numbers, minlength=count + 1)[1:]
    sums = [np.bincount(numbers, points[:, axis], count + 1)[1:] for axis in range(3)]
    middles = np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None]
    courses = np.gradient(middles, axis=0)
    courses /= np.maximum(np.linalg.norm(courses, axis=1, keepdims=True), 1e-6)
    along = np.zeros(len(numbers))
    own = numbers[inside] - 1
    along[inside] = ((points[inside] - middles[own]) * courses[own]).sum(axis=1)
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
            # ``courses`` run down the column.
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
