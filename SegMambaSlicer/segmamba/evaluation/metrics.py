"""Agreement of label maps: overlap, distances between surfaces and centroids, identification of vertebrae."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from segmamba.io.volume import Geometry
from segmamba.utils.arrays import label_boxes

# The VerSe challenge's limit (Sekuboyina et al. 2021).
IDENTIFICATION_MM = 20.0
VALUES = 256


def confusion_matrix(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Count the voxels of each pair of values.

    Parameters
    ----------
    prediction, reference : ndarray
        Of one shape, with whole values from 0 to 255.

    Returns
    -------
    ndarray of int (256, 256)
        Rows are the reference's values, columns the prediction's. Voxels that are background in both are not counted.
    """
    either = (prediction > 0) | (reference > 0)
    pairs = reference[either].astype(np.intp) * VALUES + prediction[either]
    return np.bincount(pairs, minlength=VALUES * VALUES).reshape(VALUES, VALUES)


def dice_from_confusion(confusion: np.ndarray, reference_value: int, predicted_value: int) -> float:
    """Return the Dice coefficient of a value of the reference and one of the prediction, from a `confusion_matrix`.

    0 where neither is there.
    """
    both = confusion[reference_value].sum() + confusion[:, predicted_value].sum()
    return float(2 * confusion[reference_value, predicted_value] / max(1, both))


def dice_by_label(prediction: np.ndarray, reference: np.ndarray) -> dict[int, float]:
    """Return the Dice coefficient of each label present in the reference; both (z, y, x)."""
    confusion = confusion_matrix(prediction, reference)
    present = np.flatnonzero(confusion.sum(axis=1)).tolist()
    return {value: dice_from_confusion(confusion, value, value) for value in present if value}


def dice_foreground(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Return the Dice coefficient of all labels against the background; both (z, y, x). 0 where both are empty."""
    predicted, true = prediction > 0, reference > 0
    return float(2 * (predicted & true).sum() / max(1, predicted.sum() + true.sum()))


def surface_distances(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Return how far the surfaces of two masks are from each other.

    A surface consists of the voxels of a mask with a face towards the background; distances are between centres of
    voxels.

    Parameters
    ----------
    prediction, reference : ndarray of bool (z, y, x)
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
    (box,) = ndimage.find_objects((prediction | reference).astype(np.uint8))
    predicted, true = (mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (prediction, reference))
    to_reference = ndimage.distance_transform_edt(~true, sampling=spacing)[predicted]
    to_prediction = ndimage.distance_transform_edt(~predicted, sampling=spacing)[true]
    average = float(np.concatenate([to_reference, to_prediction]).mean())
    return average, float(max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95)))


def centroids(labels: np.ndarray, geometry: Geometry) -> dict[int, np.ndarray]:
    """Return the LPS position in mm of the centre of mass of each label; ``labels`` is uint8 (z, y, x)."""
    matrix = geometry.affine
    found = {}
    for value, box in label_boxes(labels).items():
        inside = np.argwhere(labels[box] == value).mean(axis=0) + [part.start for part in box]
        found[value] = matrix[:3, :3] @ inside[::-1] + matrix[:3, 3]
    return found


def identified(
    value: int,
    prediction: Mapping[int, np.ndarray],
    reference: Mapping[int, np.ndarray],
    limit: float = IDENTIFICATION_MM,
) -> bool:
    """Say whether a vertebra of the reference is found at its own level, by the rule of the VerSe challenge.

    The predicted vertebra of that level lies within ``limit`` of it (centroid to centroid, mm), and no other vertebra
    of the reference is nearer to the predicted one.

    Parameters
    ----------
    value : int
        Label of the vertebra.
    prediction, reference : mapping of int to ndarray (3,)
        Centroids of both in LPS mm, by label.
    limit : float
    """
    if value not in prediction:
        return False
    distances = {other: float(np.linalg.norm(prediction[value] - place)) for other, place in reference.items()}
    return distances[value] <= limit and distances[value] == min(distances.values())
