"""A preview of a segmentation: three planes of the patient with outlines and names."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segmamba.io.volume import Volume
from segmamba.labels import Label
from segmamba.models.manifest import Model
from segmamba.reporting.overlay import DRAWING, draw_outline, show_slice
from segmamba.reporting.slice_planes import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    Plane,
    best_slice_position,
    display_box,
    labelled_points,
    resample_plane,
)
from segmamba.utils.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patheffects import AbstractPathEffect

FOOTNOTE = "Research use only - not a medical device"
UNCERTAIN = "Vertebral levels are uncertain"
BACKGROUND = "#101418"
TEXT = "#e8ecf0"
FAINT = "#9aa4ae"
WARNING = "#f0b34c"
# Inches.
PANEL_HEIGHT = 7.0
PANEL_WIDTH = 5.2
NAME_WIDTH = 1.35
EDGE = 0.45
HEADER = 0.95
FOOTER = 0.55
NAME_POINTS = 8.5
LINE_SPACING = 1.25
POINTS_PER_INCH = 72
PIXELS_PER_INCH = 110
SCALE_BAR_MM = 50
FILL, OUTLINE_WIDTH = 0.22, 1.3
# Names are written in a brighter shade than the outlines: dark blue is hard to read on black.
BRIGHTNESS = 0.7


@dataclass(frozen=True, eq=False)
class Picture:
    """What a preview shows; small, so that another process can draw it.

    Attributes
    ----------
    planes : list of Plane
    window : tuple of float
        Intensities shown as black and as white.
    structures : tuple of Label
        Those that may be outlined, with their names and colours.
    title, subtitle : str
    empty : bool
        Whether nothing was found; the picture says so.
    certain : bool
        Whether the vertebral levels are certain; if not, the picture says so.
    """

    planes: list[Plane]
    window: tuple[float, float]
    structures: tuple[Label, ...]
    title: str
    subtitle: str
    empty: bool
    certain: bool


def compose(
    volume: Volume,
    labels: np.ndarray,
    model: Model,
    case: str,
    reference: np.ndarray | None = None,
    certain: bool = True,
) -> Picture:
    """Return three planes through a segmentation, and what is written beside them.

    For an empty segmentation, the planes pass through the volume's centre.

    Parameters
    ----------
    volume : Volume
    labels : ndarray of uint8
        Shape (z, y, x), on the volume's grid.
    model : Model
    case : str
        Name of the case, for the title.
    reference : ndarray of uint8, optional
        Reference labels on the same grid, drawn as white dashed outlines without names.
    certain : bool
        Whether the vertebral levels are certain.
    """
    planes = choose_planes(volume, labels, reference)
    subtitle = f"{model.title}, version {model.version}"
    for clause in filter(None, (model.preprocessing.estimated, model.caution)):
        subtitle += f"; {clause}"
    empty = not any(plane.sections for plane in planes) and not labels.any()
    return Picture(planes, display_window(model, planes), tuple(model.labels), case, subtitle, empty, certain)


def draw(picture: Picture) -> bytes:
    """Draw a preview as a PNG."""
    with DRAWING:
        return _drawn(picture)


def _drawn(picture: Picture) -> bytes:
    sizes = [_panel_size(plane) for plane in picture.planes]
    height = max(size[1] for size in sizes)
    width = sum(size[0] for size in sizes) + len(picture.planes) * (2 * EDGE + NAME_WIDTH)
    figure = _figure(width, height + HEADER + FOOTER)
    _write_titles(figure, picture)
    left = EDGE
    for plane, (panel_width, panel_height) in zip(picture.planes, sizes, strict=True):
        bottom = FOOTER + height - panel_height
        page = height + HEADER + FOOTER
        axes = figure.add_axes((left / width, bottom / page, panel_width / width, panel_height / page))
        _draw_plane(axes, plane, picture.window)
        _draw_structures(axes, plane, picture.structures, panel_height)
        for known in plane.references.values():
            draw_outline(axes, known.mask, TEXT, (known.right, known.down), linewidths=1, linestyles="--")
        left += panel_width + 2 * EDGE + NAME_WIDTH
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=PIXELS_PER_INCH, facecolor=BACKGROUND)
    return stream.getvalue()


def write_png(path: str | Path, picture: bytes) -> None:
    """Write a picture, whole or not at all.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    with atomic_write(path, (".png",)) as temporary:
        temporary.write_bytes(picture)


def choose_planes(volume: Volume, labels: np.ndarray, reference: np.ndarray | None = None) -> list[Plane]:
    """Return an axial, a coronal and a sagittal plane through the reference, or without one through the labels."""
    points, values = labelled_points(labels if reference is None else reference, volume.geometry)
    box = display_box(points, volume.geometry)
    planes = []
    for view in (AXIAL, CORONAL, SAGITTAL):
        if len(points):
            position = best_slice_position(view, points, values, volume.geometry)
        else:
            position = float(box[0][view.across] + box[1][view.across]) / 2
        planes.append(resample_plane(view, position, box, volume, labels, reference))
    return planes


def display_window(model: Model, planes: Sequence[Plane]) -> tuple[float, float]:
    """Return the intensities shown as black and as white.

    They are the clip limits of the model's narrowest channel with fixed limits (HU on CT), else the 1st and 99th
    percentile of the planes.
    """
    fixed = [channel for channel in model.preprocessing.normalization if channel.scheme == "clip"]
    if fixed:
        narrowest = min(fixed, key=lambda channel: channel.high - channel.low)
        return narrowest.low, narrowest.high
    low, high = np.percentile(np.concatenate([plane.image.ravel() for plane in planes]), (1, 99))
    return float(low), float(high)


def spread_apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move sorted positions at least ``gap`` apart within limits; space them evenly if they do not fit."""
    if not wanted:
        return []
    if gap * (len(wanted) - 1) >= high - low:
        return list(np.linspace(low, high, len(wanted)))
    moved: list[float] = []
    for position in wanted:
        moved.append(max(position, moved[-1] + gap if moved else low))
    limit = high
    for number in reversed(range(len(moved))):
        moved[number] = min(moved[number], limit)
        limit = moved[number] - gap
    return moved


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: that would choose a window system.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _panel_size(plane: Plane) -> tuple[float, float]:
    aspect = plane.right.size / plane.down.size
    width = min(PANEL_HEIGHT * aspect, PANEL_WIDTH)
    return width, width / aspect


def _write_titles(figure: Figure, picture: Picture) -> None:
    width, height = figure.get_size_inches()
    left, top = EDGE / width, 1 - 0.3 / height
    figure.text(left, top, picture.title, color=TEXT, fontsize=14, fontweight="bold", va="center", parse_math=False)
    low = 1 - 0.58 / height
    figure.text(left, low, picture.subtitle, color=FAINT, fontsize=9.5, va="center", parse_math=False)
    figure.text(left, 0.22 / height, FOOTNOTE, color=WARNING, fontsize=9.5, va="center")
    if picture.empty:
        figure.text(0.5, top, "No structure was found", color=WARNING, fontsize=14, ha="center", va="center")
    elif not picture.certain:
        style: dict[str, Any] = {"color": WARNING, "fontsize": 11, "fontweight": "bold", "ha": "right", "va": "center"}
        figure.text(1 - left, 0.22 / height, UNCERTAIN, **style)


def _draw_plane(axes: Axes, plane: Plane, window: tuple[float, float]) -> None:
    half = (plane.right[1] - plane.right[0]) / 2
    left, right = plane.right[0] - half, plane.right[-1] + half
    top, bottom = plane.down[0] - half, plane.down[-1] + half
    show_slice(axes, plane.image, window, (left, right, bottom, top))
    view = plane.view
    # Slicer's RAS: the opposite sign of LPS along x and y.
    ras = -plane.position if view.across < 2 else plane.position
    letter = "RAS"[view.across]
    axes.set_title(f"{view.name}  {letter} {ras:.0f} mm", color=FAINT, fontsize=9, pad=3, loc="left")
    style: dict[str, Any] = {"color": TEXT, "fontsize": 10, "transform": axes.transAxes, "fontweight": "bold"}
    for letter, x, y in zip(view.edges, (0.015, 0.985, 0.5, 0.5), (0.5, 0.5, 0.985, 0.015), strict=True):
        across = "left" if x < 0.1 else "right" if x > 0.9 else "center"
        along = "bottom" if y < 0.1 else "top" if y > 0.9 else "center"
        axes.text(x, y, letter, ha=across, va=along, path_effects=_shadow(), **style)
    if right - left > 1.5 * SCALE_BAR_MM:
        y = bottom - 0.02 * (bottom - top)
        start = left + 0.03 * (right - left)
        ends, middle = [start, start + SCALE_BAR_MM], start + SCALE_BAR_MM / 2
        axes.plot(ends, [y, y], color=TEXT, linewidth=2, solid_capstyle="butt", path_effects=_shadow())
        style = {"color": TEXT, "fontsize": 7.5, "ha": "center", "va": "bottom"}
        axes.text(middle, y - 4 * half, f"{SCALE_BAR_MM} mm", path_effects=_shadow(), **style)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _shadow() -> list[AbstractPathEffect]:
    """Return a dark rim that keeps bright text readable on bone."""
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=3, foreground=BACKGROUND), Normal()]


def _draw_structures(axes: Axes, plane: Plane, labels: Sequence[Label], panel_height: float) -> None:
    """Draw outlines, and names to the right of the plane, each with a line to its structure."""
    named = []
    for label in labels:
        found = plane.sections.get(label.value)
        color = tuple(part / 255 for part in label.color)
        if found is None or not draw_outline(
            axes, found.mask, color, (found.right, found.down), fill=FILL, linewidths=OUTLINE_WIDTH
        ):
            continue
        rows, columns = np.nonzero(found.mask > 0.5)
        row = int(np.median(rows))
        nearest = rows == rows[np.abs(rows - row).argmin()]
        bright = tuple(1 - BRIGHTNESS * (1 - part) for part in color)
        named.append((float(found.down[row]), float(found.right[columns[nearest].max()]), label.name, bright))
    named.sort()
    bottom, top = axes.get_ylim()
    left, right = axes.get_xlim()
    gap = NAME_POINTS * LINE_SPACING / POINTS_PER_INCH / panel_height * (bottom - top)
    heights = spread_apart([entry[0] for entry in named], gap, top + gap / 2, bottom - gap / 2)
    column = right + 0.16 * (bottom - top) / panel_height
    for height, (y, x, name, color) in zip(heights, named, strict=True):
        axes.plot([x, right, column], [y, height, height], color=color, linewidth=0.6, alpha=0.8, clip_on=False)
        axes.text(
            column, height, f" {name}", color=color, fontsize=NAME_POINTS, va="center", clip_on=False, parse_math=False
        )
