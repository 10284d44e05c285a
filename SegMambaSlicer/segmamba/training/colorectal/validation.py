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
COUNTED_ML = 1.0


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
