"""A greyscale slice and outlines of masks on it, drawn with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        For `matplotlib.axes.Axes.contour`, for example ``linewidths``.
    """
    if mask.max() <= 0.5:
        return False
    where = () if coordinates is None else coordinates
    if fill:
        axes.contourf(*where, mask, levels=[0.5, 2.0], colors=[color], alpha=fill)
    axes.contour(*where, mask, levels=[0.5], colors=[color], **style)
    return True
