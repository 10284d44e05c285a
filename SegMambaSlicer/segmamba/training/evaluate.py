"""Overlap of a network's labels with reference labels, on the network's own grid, during training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from segmamba.manifest import Channel
from segmamba.sliding_window import predict


def dice_by_label(labels: np.ndarray, reference: np.ndarray) -> dict[int, float]:
    """Return the Dice coefficient of each label present in the reference."""
    result = {}
    for value in np.unique(reference[reference > 0]):
        ours, theirs = labels == value, reference == value
        result[int(value)] = float(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    return result


def dice_of_all(labels: np.ndarray, reference: np.ndarray) -> float:
    """Return the Dice coefficient of all labels taken together."""
    ours, theirs = labels > 0, reference > 0
    return float(2 * (ours & theirs).sum() / max(1, ours.sum() + theirs.sum()))


def normalised(image: torch.Tensor, channels: tuple[Channel, ...]) -> torch.Tensor:
    """Return (batch, channels, z, y, x) from intensities (batch, 1, z, y, x), for channels of kind "clip"."""
    parts = [(image.clamp(c.low, c.high) - (c.mean or 0.0)) / (c.std or 1.0) for c in channels]
    return torch.cat(parts, dim=1)


def evaluate(
    network: nn.Module,
    files: list[Path],
    channels: tuple[Channel, ...],
    patch: tuple[int, int, int],
    dtype: torch.dtype,
) -> dict[str, dict[str, float]]:
    """Return, for each case, the Dice of all labels together and the mean over labels.

    Parameters
    ----------
    files : list of Path
        ``.npz`` with ``image`` (intensities) and ``labels``, (z, y, x), on the network's grid.
    """
    device = next(network.parameters()).device
    results = {}
    for file in files:
        case = np.load(file)
        image = torch.from_numpy(case["image"].astype(np.float32))[None, None]
        scores = predict(network, normalised(image, channels)[0], patch=patch, overlap=0.5, device=device, dtype=dtype)
        labels = scores.argmax(dim=0).cpu().numpy()
        by_label = dice_by_label(labels, case["labels"])
        results[file.stem] = {
            "dice_all": dice_of_all(labels, case["labels"]),
            "dice_mean": float(np.mean(list(by_label.values()))),
        }
    return results
