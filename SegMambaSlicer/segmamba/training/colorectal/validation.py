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
from segmamba.models.manifest import Channel
from segmamba.training.colorectal.labels import LABELS, TUMOUR_LABEL
from segmamba.training.synthesis.npz import read_arrays
from segmamba.training.vertebrae.samples import normalised
from segmamba.utils.morphology import CONNECTIVITY_26

# A tumour is found where at least this part of it is labelled tumour.
FOUND = 0.1
COUNTED_ML = 1.0


def evaluate_bowel(
    network: nn.Module,
    files: Sequence[Path],
    channels: Sequence[Channel],
    patch: tuple[int, int, int],
    dtype: torch.dtype,
) -> dict[str, dict[str, float]]:
    """Return the Dice coefficient of each label that is there, for each case, without any post-processing.

    Parameters and errors as `segmamba.training.vertebrae.validation.evaluate`; ``benchmarks/colorectal.py`` makes the
    cases.
    """
    results = {}
    for file in files:
        intensities, reference = read_arrays(file, ["image", "labels"], "'benchmarks/colorectal.py paint'")
        labels = answered(network, intensities, channels, patch, dtype)
        table = confusion_matrix(labels, reference)
        present = {name: value for name, value in LABELS.items() if (reference == value).any()}
        results[file.stem] = {
            f"dice_{name}": dice_from_confusion(table, value, value) for name, value in present.items()
        }
    return results


def answered(
    network: nn.Module,
    intensities: np.ndarray,
    channels: Sequence[Channel],
    patch: tuple[int, int, int],
    dtype: torch.dtype,
) -> np.ndarray:
    """Return the labels (z, y, x), uint8, that a network gives a CT in HU on its own grid."""
    answer = answered_logits(network, intensities, channels, patch, dtype)
    return answer.argmax(dim=0).cpu().numpy().astype(np.uint8)


def answered_logits(
    network: nn.Module,
    intensities: np.ndarray,
    channels: Sequence[Channel],
    patch: tuple[int, int, int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the logits (classes, z, y, x) behind `answered`, on the network's device."""
    image = normalised(torch.from_numpy(intensities.astype(np.float32))[None], channels)
    device = next(network.parameters()).device
    return predict(network, image, Windows(patch), RunContext(device, dtype), identity).values


def tumours_found(labels: np.ndarray, reference: np.ndarray, spacing: float) -> dict[str, int]:
    """Count tumours of more than 1 ml, each a connected piece.

    Parameters
    ----------
    labels, reference : ndarray (z, y, x)
    spacing : float
        Of the grid in mm.

    Returns
    -------
    dict
        ``tumours`` of the reference, how many of them are ``found`` (a tenth of their voxels or more), and
        ``false_tumours``: pieces of ours that touch no tumour of the reference.
    """
    ours, theirs = labels == TUMOUR_LABEL, reference == TUMOUR_LABEL
    counts = {"tumours": 0, "found": 0, "false_tumours": 0}
    for piece in _pieces(theirs, spacing):
        counts["tumours"] += 1
        counts["found"] += int(ours[piece].mean() >= FOUND)
    for piece in _pieces(ours, spacing):
        counts["false_tumours"] += int(not theirs[piece].any())
    return counts


def _pieces(mask: np.ndarray, spacing: float) -> list[tuple[np.ndarray, ...]]:
    """Return the voxels of each connected piece of more than `COUNTED_ML`."""
    numbered, _ = ndimage.label(mask, CONNECTIVITY_26)
    sizes = np.bincount(numbered.ravel())
    kept = [number for number in range(1, len(sizes)) if sizes[number] * spacing**3 / 1000 > COUNTED_ML]
    return [np.nonzero(numbered == number) for number in kept]
