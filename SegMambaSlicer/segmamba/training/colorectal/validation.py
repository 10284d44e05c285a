"""Overlap of a network's labels with reference labels of tumour, colon and rectum, and the tumours it finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from segmamba.evaluation.metrics import confusion_matrix, dice_from_confusion
from segmamba.inference.context import RunContext
from segmamba.inference.sliding_window import identity, predict
from segmamba.inference.windows import Windows
from segmamba.models.manifest import IntensityNormalization
from segmamba.training.colorectal.labels import LABELS, TUMOUR_LABEL
from segmamba.training.synthesis.npz import read_arrays
from segmamba.training.synthesis.synthesizer import normalize
from segmamba.utils.morphology import CONNECTIVITY_26

# A tumour is detected if at least this part of it is labelled as tumour.
FOUND = 0.1
LEAST_VOXELS = 1000
COUNTED_ML = 1.0
CONTENT_NAMES = ("gas", "contrast", "stool", "paste or fluid")


def evaluate_bowel(
    network: nn.Module,
    files: Sequence[Path],
    channels: Sequence[IntensityNormalization],
    patch: tuple[int, int, int],
    dtype: torch.dtype,
) -> dict[str, dict[str, float]]:
    """Return the Dice coefficient of each label that is there, for each case, without any post-processing.

    Parameters and errors as `segmamba.training.vertebrae.validation.evaluate`; the cases are those of
    `segmamba.training.colorectal.render_scans`.
    """
    results = {}
    for file in files:
        intensities, reference = read_scan(file)
        labels = predicted_labels(network, intensities, channels, patch, dtype)
        table = confusion_matrix(labels, reference)
        present = {name: value for name, value in LABELS.items() if (reference == value).any()}
        results[file.stem] = {
            f"dice_{name}": dice_from_confusion(table, value, value) for name, value in present.items()
        }
    return results


def read_scan(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return image in HU and labels, (z, y, x), of a synthetic CT from `segmamba.training.colorectal.render_scans`.

    Raises
    ------
    InputError
        The file is damaged or not such a CT.
    """
    image, labels = read_arrays(file, ["image", "labels"], "'python -m segmamba.training.colorectal.render_scans'")
    return image, labels


def read_regions(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return parts, contents (both z, y, x) and the centre (y, x) of narrow fields of a synthetic CT.

    Raises
    ------
    InputError
        The file is damaged, or was rendered by an older version.
    """
    command = "'python -m segmamba.training.colorectal.render_scans'"
    parts, contents = read_arrays(file, ["parts", "contents"], command)
    with np.load(file) as content:
        centre = content["centre"]
    return parts, contents, centre


def field_of_view(
    shape: tuple[int, ...], centre: np.ndarray, side_mm: float, spacing: tuple[float, float]
) -> tuple[slice, ...]:
    """Return the index of a square field of view in an image (z, y, x), with all slices.

    ``centre`` (y, x) is in voxels, ``spacing`` (y, x) in mm; what would lie beyond the image is left out.
    """
    index = [slice(None)]
    for size, middle, step in zip(shape[1:], centre, spacing, strict=True):
        half = side_mm / step / 2
        index.append(slice(max(0, round(middle - half)), min(size, round(middle + half))))
    return tuple(index)


def found_in(labels: np.ndarray, reference: np.ndarray, regions: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return for each region (1, 2, ... in the order of ``names``) the part of its bowel that is labelled as bowel.

    Only regions with 1000 voxels of bowel or more in the reference are in the result.
    """
    result = {}
    for value, name in enumerate(names, start=1):
        place = (regions == value) & (reference > 0)
        if place.sum() >= LEAST_VOXELS:
            result[name] = float((labels[place] > 0).mean())
    return result


def tumours_by_part(
    labels: np.ndarray, reference: np.ndarray, parts: np.ndarray, spacing: float
) -> dict[int, tuple[int, int]]:
    """Return for each part of the bowel its tumours over 1 mL and those detected, see `tumours_found`."""
    counts: dict[int, tuple[int, int]] = {}
    for component in _components(reference == TUMOUR_LABEL, spacing):
        part = int(np.bincount(parts[component]).argmax())
        number, found = counts.get(part, (0, 0))
        counts[part] = number + 1, found + int((labels[component] == TUMOUR_LABEL).mean() >= FOUND)
    return counts


def predicted_labels(
    network: nn.Module,
    intensities: np.ndarray,
    channels: Sequence[IntensityNormalization],
    patch: tuple[int, int, int],
    dtype: torch.dtype,
) -> np.ndarray:
    """Return the labels (z, y, x), uint8, of a network for a CT in HU on its own grid."""
    logits = predicted_logits(network, intensities, channels, patch, dtype)
    return logits.argmax(dim=0).cpu().numpy().astype(np.uint8)


def predicted_logits(
    network: nn.Module,
    intensities: np.ndarray,
    channels: Sequence[IntensityNormalization],
    patch: tuple[int, int, int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the logits (classes, z, y, x) of a network for a CT in HU on its own grid, on the network's device."""
    image = normalize(torch.from_numpy(intensities.astype(np.float32))[None], channels)
    device = next(network.parameters()).device
    return predict(network, image, Windows(patch), RunContext(device, dtype), identity).values


def tumours_found(labels: np.ndarray, reference: np.ndarray, spacing: float) -> dict[str, int]:
    """Count tumours of more than 1 mL, each a connected component.

    Parameters
    ----------
    labels, reference : ndarray (z, y, x)
    spacing : float
        Of the grid in mm.

    Returns
    -------
    dict
        ``tumours`` of the reference, those of them that are ``found`` (a tenth of their voxels or more), and
        ``false_tumours``: components of the prediction that touch no tumour of the reference.
    """
    predicted, true = labels == TUMOUR_LABEL, reference == TUMOUR_LABEL
    counts = {"tumours": 0, "found": 0, "false_tumours": 0}
    for component in _components(true, spacing):
        counts["tumours"] += 1
        counts["found"] += int(predicted[component].mean() >= FOUND)
    for component in _components(predicted, spacing):
        counts["false_tumours"] += int(not true[component].any())
    return counts


def _components(mask: np.ndarray, spacing: float) -> list[tuple[np.ndarray, ...]]:
    """Return the voxels of each connected component of more than `COUNTED_ML`."""
    numbered, _ = ndimage.label(mask, CONNECTIVITY_26)
    sizes = np.bincount(numbered.ravel())
    kept = [number for number in range(1, len(sizes)) if sizes[number] * spacing**3 / 1000 > COUNTED_ML]
    return [np.nonzero(numbered == number) for number in kept]
