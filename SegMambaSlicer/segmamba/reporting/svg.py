"""Pictures of pages as SVG: slices are PNGs inside of them, and what is drawn on these stays sharp at any size.

A page's pictures are part of its HTML, so that they scale with the window, print as lines, and need no drawing library.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from segmamba.utils.arrays import bounding_box, grown_box

# What is drawn on slices has a dark rim, so that it can be read on bone.
BACKGROUND = "#101418"
FONT = "system-ui, sans-serif"
# Shapes are drawn with so many decimals of a pixel.
DECIMALS = 1


def element(tag: str, content: str = "", **attributes: Any) -> str:
    """Return an element with its content, which is SVG already; underscores of attributes are hyphens."""
    given = "".join(f' {key.replace("_", "-")}="{escape(_written(value))}"' for key, value in attributes.items())
    return f"<{tag}{given}>{content}</{tag}>" if content else f"<{tag}{given}/>"


def picture(size: tuple[float, float], title: str, parts: Iterable[str], background: str = BACKGROUND) -> str:
    """Return a picture of a size in pixels, which a page may show at any other; ``title`` says what is on it."""
    width, height = size
    ground = element("rect", width=width, height=height, fill=background)
    return element(
        "svg",
        ground + "".join(parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_written(width)} {_written(height)}",
        role="img",
        aria_label=title,
        font_family=FONT,
        width=width,
        height=height,
    )


def slice_image(image: np.ndarray, window: tuple[float, float], box: tuple[float, float, float, float]) -> str:
    """Return a slice (rows, columns) in a box: left, top, width and height in pixels.

    ``window`` are the intensities shown as black and as white.
    """
    from PIL import Image

    low, high = window
    grey = np.clip((image - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, format="png", compress_level=6)
    left, top, width, height = box
    address = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    return element("image", x=left, y=top, width=width, height=height, preserveAspectRatio="none", href=address)


def outline(mask: np.ndarray, columns: np.ndarray, rows: np.ndarray, colour: str, **style: Any) -> str:
    """Return the outline of a mask (rows, columns), inside above one half; empty where nothing is inside.

    ``columns`` and ``rows`` are the pixels of its samples in the picture.
    """
    from contourpy import contour_generator

    box = bounding_box(mask > 0.5)
    if box is None:
        return ""
    down, along = grown_box(box, mask.shape)
    lines: Any = contour_generator(columns[along], rows[down], mask[down, along].astype(float)).lines(0.5)
    return path(lines, colour, **style)


def path(lines: Sequence[np.ndarray], colour: str, **style: Any) -> str:
    """Return lines, each (n, 2) pixels to the right and down."""
    shapes = "".join(f"M{' '.join(map(_point, line))}" for line in lines)
    given: dict[str, Any] = {"stroke_width": 1.4, "stroke_linejoin": "round", **style}
    return element("path", d=shapes, fill="none", stroke=colour, **given)


def point(at: Sequence[float] | np.ndarray, colour: str, radius: float = 3.5, tip: str = "") -> str:
    """Return a dot; a browser shows ``tip`` where the pointer is on it."""
    said = element("title", escape(tip)) if tip else ""
    return element("circle", said, cx=at[0], cy=at[1], r=radius, fill=colour)


def text(said: str, at: Sequence[float] | np.ndarray, colour: str, rim: str = "", **style: Any) -> str:
    """Return a line of text, its middle height at a place; ``rim`` is the colour around its letters."""
    around: dict[str, Any] = (
        {"stroke": rim, "stroke_width": 3, "paint_order": "stroke", "stroke_linejoin": "round"} if rim else {}
    )
    given: dict[str, Any] = {"font_size": 14, "dominant_baseline": "central", **around, **style}
    return element("text", escape(said), x=at[0], y=at[1], fill=colour, **given)


def _point(at: np.ndarray) -> str:
    return f"{_written(at[0])},{_written(at[1])}"


def _written(value: Any) -> str:
    """Return a number in few digits, and anything else as it is."""
    return f"{round(float(value), DECIMALS):g}" if isinstance(value, int | float | np.number) else str(value)
