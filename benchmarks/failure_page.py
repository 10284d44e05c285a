"""A page of slices where a network's labels are most wrong: colour is the answer, dashed white is the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segmamba.training.colorectal.gallery import COLOURS, WINDOW_HU

COLUMNS = 3


@dataclass(frozen=True, eq=False)
class Picture:
    """One slice: ``image`` in HU, ``labels`` and ``reference``, each (y, x)."""

    title: str
    image: np.ndarray
    labels: np.ndarray
    reference: np.ndarray


def worst_slice(title: str, image: np.ndarray, labels: np.ndarray, reference: np.ndarray, wrong: np.ndarray) -> Picture:
    """Return the axial slice with the most voxels that are ``wrong``; arrays are (z, y, x)."""
    number = int(wrong.sum(axis=(1, 2)).argmax())
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
        axis.imshow(picture.image, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
        axis.set_title(picture.title, fontsize=8, loc="left", pad=2)
        for value, colour in COLOURS.items():
            if (picture.labels == value).any():
                axis.contour(picture.labels == value, [0.5], colors=colour, linewidths=1.0)
            if (picture.reference == value).any():
                style = {"linewidths": 0.8 if value == min(COLOURS) else 0.4, "linestyles": "dashed"}
                axis.contour(picture.reference == value, [0.5], colors="white", **style)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.96, wspace=0.02, hspace=0.1)
    figure.savefig(path, dpi=95)
