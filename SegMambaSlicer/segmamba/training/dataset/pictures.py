"""Pictures of labelled cases: one slice each, with outlines of the reference and of what a network found."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segmamba.reporting.overlay import draw_outline, show_slice
from segmamba.training.dataset.partial import FIRST_OPEN
from segmamba.utils.atomic import atomic_write

COLUMNS = 4
INCHES = 3.2
# Names in the legend; with more structures the colours alone would not tell them apart.
LEGEND_NAMES = 12
GOLDEN = 0.618034


@dataclass(frozen=True, eq=False)
class Picture:
    """A slice of a case.

    Attributes
    ----------
    title : str
    image : ndarray (rows, columns)
    reference : ndarray of uint8 (rows, columns)
        Classes, or what is unknown: `IGNORED`, or a code of `segmamba.training.dataset.partial`.
    found : ndarray of uint8 (rows, columns) or None
        Classes.
    extent : tuple of float
        Height and width in mm.
    """

    title: str
    image: np.ndarray
    reference: np.ndarray
    found: np.ndarray | None
    extent: tuple[float, float]


def picture_of(
    title: str,
    image: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    orientation: str,
    found: np.ndarray | None = None,
) -> Picture:
    """Return the slice of a case that shows most: of the structures, or of where the answer is wrong.

    Parameters
    ----------
    title : str
    image, reference, found : ndarray (z, y, x)
        ``found`` is None where only the reference is shown.
    spacing : sequence of float
        In mm along z, y, x. Slices are taken across the axis of the largest spacing, as the scanner did.
    orientation : str
        Directions in which x, y and z grow, such as "LPS": heads are up, faces up or to the left.
    """
    axis = int(np.argmax(spacing))
    others = tuple(a for a in range(3) if a != axis)
    told = (reference > 0) & (reference < FIRST_OPEN)
    if found is not None:
        wrong = (found != reference) & (reference < FIRST_OPEN)
        told = wrong if wrong.any() else told
    place = int(np.argmax(told.sum(axis=others)))
    height, width = (float(spacing[a] * reference.shape[a]) for a in others)
    rows, columns = (orientation[::-1][a] for a in others)
    turned = (slice(None, None, -1 if rows in "SA" else 1), slice(None, None, -1 if columns in "RA" else 1))

    def cut(volume: np.ndarray) -> np.ndarray:
        return np.take(np.asarray(volume), place, axis)[turned]

    answer = None if found is None else cut(found)
    return Picture(title, cut(image).astype(np.float32), cut(reference), answer, (height, width))


def draw_page(pictures: Sequence[Picture], names: Sequence[str], path: Path, title: str) -> None:
    """Write a page of pictures as PNG; ``names`` are those of the classes from 1 on.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = Figure(figsize=(INCHES * columns, (INCHES + 0.3) * rows + 0.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for index in range(rows * columns):
        axes = figure.add_subplot(rows, columns, index + 1)
        if index < len(pictures):
            _draw(axes, pictures[index], len(names))
        else:
            axes.set_axis_off()
    handles = [Line2D([], [], color=color_of(n), label=name) for n, name in enumerate(names[:LEGEND_NAMES], start=1)]
    if any(picture.found is not None for picture in pictures):
        handles.append(Line2D([], [], color="0.4", linestyle=":", label="dotted: reference"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    with atomic_write(path, (".png",)) as file:
        figure.savefig(file, format="png")


def _draw(axes: Any, picture: Picture, classes: int) -> None:
    height, width = picture.extent
    low, high = np.percentile(picture.image, (1, 99.5))
    rows, columns = picture.image.shape
    show_slice(axes, picture.image, (float(low), float(max(high, low + 1e-3))), (0.0, width, height, 0.0))
    places = ((np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows)
    for value in range(1, classes + 1):
        color = color_of(value)
        if picture.found is None:
            draw_outline(axes, picture.reference == value, color, places, linewidths=1.0)
        else:
            draw_outline(axes, picture.found == value, color, places, linewidths=1.0)
            draw_outline(axes, picture.reference == value, color, places, linewidths=1.0, linestyles=":")
    axes.set_title(picture.title, fontsize=8)


def color_of(value: int) -> tuple[float, float, float]:
    """Return a class's colour, red, green and blue from 0 to 1; neighbours in number differ much."""
    return colorsys.hsv_to_rgb((value * GOLDEN) % 1.0, 0.65, 0.95)
