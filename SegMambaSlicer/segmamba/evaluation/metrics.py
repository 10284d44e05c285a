"""How well label maps agree: overlap, distances of surfaces and centres, identification of vertebrae."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from segmamba.io.volume import Geometry
from segmamba.utils.arrays import label_boxes

# The VerSe challenge's limit (Sekuboyina et al. 2021).
IDENTIFICATION_MM = 20.0
VALUES = 256


def overlap_table(labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Count the voxels of each pair of values.

    Parameters
    ----------
    labels, reference : ndarray
        Of one shape, with whole values from 0 to 255.

    Returns
    -------
    ndarray of int (256, 256)
        Rows are the reference's values, columns are ours. Voxels that are background in both are not counted.
    """
    either = (labels > 0) | (reference > 0)
    pairs = reference[either].astype(np.intp) * VALUES + labels[either]
    return np.bincount(pairs, minlength=VALUES * VALUES).reshape(VALUES, VALUES)


def table_dice(table: np.ndarray, theirs: int, ours: int) -> float:
    """Return the Dice coefficient of a reference's value and one of ours, from their `overlap_table`.

    0 where neither is there.
    """
    both = table[theirs].sum() + table[:, ours].sum()
    return float(2 * table[theirs, ours] / max(1, both))


def dice_by_label(labels: np.ndarray, reference: np.ndarray) -> dict[int, float]:
    """Return the Dice coefficient of each label present in the reference; both (z, y, x)."""
    table = overlap_table(labels, reference)
    present = np.flatnonzero(table.sum(axis=1)).tolist()
    return {value: table_dice(table, value, value) for value in present if value}


def dice_of_all(labels: np.ndarray, reference: np.ndarray) -> float:
    """Return the Dice coefficient of all labels taken together; both (z, y, x). 0 where both are empty."""
    ours, theirs = labels > 0, reference > 0
    return float(2 * (ours & theirs).sum() / max(1, ours.sum() + theirs.sum()))


def surface_distances(ours: np.ndarray, theirs: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Return how far two surfaces are from each other.

    A surface is the voxels of a mask with a face towards the background; distances are those between centres of
    voxels.

    Parameters
    ----------
    ours, theirs : ndarray of bool (z, y, x)
        Neither is empty.
    spacing : sequence of float
        Millimetres along z, y, x.

    Returns
    -------
    average : float
        Average symmetric surface distance in mm: the mean over the voxels of both surfaces.
    hausdorff_95 : float
        95% Hausdorff distance in mm: the larger one of the two directions' 95th percentiles.
    """
    (box,) = ndimage.find_objects((ours | theirs).astype(np.uint8))
    first, second = (mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (ours, theirs))
    to_theirs = ndimage.distance_transform_edt(~second, sampling=spacing)[first]
    to_ours = ndimage.distance_transform_edt(~first, sampling=spacing)[second]
    average = float(np.concatenate([to_theirs, to_ours]).mean())
    return average, float(max(np.percentile(to_theirs, 95), np.percentile(to_ours, 95)))


def centroids(labels: np.ndarray, geometry: Geometry) -> dict[int, np.ndarray]:
    """Return the LPS position in mm of the centre of mass of each label; ``labels`` is uint8 (z, y, x)."""
    matrix = geometry.affine
    found = {}
    for value, box in label_boxes(labels).items():
        inside = np.argwhere(labels[box] == value).mean(axis=0) + [part.start for part in box]
        found[value] = matrix[:3, :3] @ inside[::-1] + matrix[:3, 3]
    return found


def identified(
    value: int, ours: Mapping[int, np.ndarray], theirs: Mapping[int, np.ndarray], limit: float = IDENTIFICATION_MM
) -> bool:
    """Say whether a vertebra of the reference is found under its own number, as the VerSe challenge counts it.

    Our vertebra of that number lies within ``limit`` of it (centroid to centroid, mm), and no other vertebra of the
    reference is nearer to ours.
    """
    if value not in ours:
        return False
    distances = {other: float(np.linalg.norm(ours[value] - place)) for other, place in theirs.items()}
    return distances[value] <= limit and distances[value] == min(distances.values())
