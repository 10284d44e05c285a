"""A page of the slices with the most errors: the network's labels in colour, the reference dashed in white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segmamba.reporting.overlay import draw_outline, show_slice
from segmamba.training.colorectal.gallery import COLORS, WINDOW_HU

COLUMNS = 3


@dataclass(frozen=True, eq=False)
class Picture:
    """One slice: ``image`` in HU, ``labels`` and ``reference``, each (y, x)."""

    title: str
    image: np.ndarray
    labels: np.ndarray
    reference: np.ndarray


def worst_slice(title: str, image: np.ndarray, labels: np.ndarray, reference: np.ndarray, wrong: np.ndarray) -> Picture:
    """Return the axial slice with the most voxels that are ``wrong``; arrays are (z, y, x).

    Where none is, that with the largest difference of labels and reference.
    """
    number = int((wrong if wrong.any() else labels != reference).sum(axis=(1, 2)).argmax())
    return Picture(title, image[number].astype(np.float32), labels[number], reference[number])


def draw(pictures: Sequence[Picture], path: Path) -> None:
    """Write a page of pictures, anterior at the top and the patient's right at the left."""
    from matplotlib.figure import Figure

    rows = -(-len(pictures) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * 4.2, rows * 3.5), facecolor="white")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for picture, axis in zip(pictures, axes, strict=False):
        show_slice(axis, picture.image, WINDOW_HU)
        axis.set_title(picture.title, fontsize=8, loc="left", pad=2)
        for value, color in COLORS.items():
            width = 0.8 if value == min(COLORS) else 0.4
            draw_outline(axis, picture.labels == value, color, linewidths=1.0)
            draw_outline(axis, picture.reference == value, "white", linewidths=width, linestyles="dashed")
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.96, wspace=0.02, hspace=0.1)
    figure.savefig(path, dpi=95)
