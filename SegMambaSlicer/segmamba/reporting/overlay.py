"""A greyscale slice and outlines of masks on it, drawn with matplotlib."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from segmamba.utils.arrays import bounding_box, grown_box

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib is not made for threads: they draw one after the other.
DRAWING = threading.RLock()


def show_slice(
    axes: Axes, image: np.ndarray, window: tuple[float, float], extent: tuple[float, float, float, float] | None = None
) -> None:
    """Show a slice without axes.

    Parameters
    ----------
    axes : Axes
    image : ndarray
        Shape (rows, columns).
    window : tuple of float
        Intensities shown as black and as white.
    extent : tuple of float or None
        Coordinates of the left, right, bottom and top edge; None for pixels.
    """
    axes.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, aspect="equal")
    # Without ticks: where they are only hidden, they are made all the same.
    axes.set(xticks=[], yticks=[])
    axes.set_axis_off()


def draw_outline(
    axes: Axes,
    mask: np.ndarray,
    color: Any,
    coordinates: tuple[np.ndarray, np.ndarray] | None = None,
    fill: float = 0.0,
    **style: Any,
) -> bool:
    """Draw the outline of a mask where it has one, and say whether it does.

    Parameters
    ----------
    axes : Axes
    mask : ndarray
        Shape (rows, columns): 0 to 1 or bool; inside is above 0.5.
    color
        As matplotlib takes it.
    coordinates : tuple of ndarray or None
        Of the columns and of the rows; None for pixels.
    fill : float
        Opacity of the inside.
    style
        For `matplotlib.collections.LineCollection`, for example ``linewidths``.
    """
    from contourpy import contour_generator
    from matplotlib.collections import LineCollection, PathCollection
    from matplotlib.path import Path

    if mask.max() <= 0.5:
        return False
    columns, rows = coordinates if coordinates is not None else map(np.arange, mask.shape[::-1])
    # Of the part with the mask alone, and not by way of matplotlib's contour sets: these take ten times as long.
    down, along = grown_box(bounding_box(mask) or (), mask.shape)
    lines = contour_generator(columns[along], rows[down], mask[down, along].astype(float))
    if fill:
        shapes = [
            Path(points[first:last], closed=True)
            for points, offsets in zip(*lines.filled(0.5, 2.0), strict=True)
            for first, last in pairwise(offsets.tolist())
        ]
        inside = Path.make_compound_path(*shapes)
        look: dict[str, Any] = {"facecolors": [color], "alpha": fill, "linewidths": 0, "antialiaseds": False}
        axes.add_collection(PathCollection([inside], **look), autolim=False)
    outline: Any = lines.lines(0.5)
    axes.add_collection(LineCollection(outline, colors=[color], **style), autolim=False)
    return True
