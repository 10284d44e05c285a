"""The pictures of a report's page: the column, its curves, and single vertebrae with the points that were measured."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from segmamba.io.volume import Volume
from segmamba.labels import Label
from segmamba.reporting.look_first import short
from segmamba.reporting.overlay import draw_outline, show_slice
from segmamba.reporting.slice_planes import (
    SAGITTAL,
    Plane,
    best_slice_position,
    display_box,
    labelled_points,
    resample_plane,
)
from segmamba.spine.levels import SACRUM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLACES = ("anterior", "middle", "posterior")
COLOURS = {"anterior": "#b3261e", "middle": "#1f6f43", "posterior": "#1f4e8c"}
FLAGGED, OUTLINE, POINT = "#ff5d4f", "#58c4dd", "#ffd23f"
# Inches, and pixels for each.
COLUMN_SIZE, CURVE_SIZE, VERTEBRA_SIZE, DPI = (5.0, 7.0), (6.2, 7.0), (5.0, 2.6), 110
# A name is so far in front of its body, and this wide, mm.
NAME_GAP_MM, NAME_MM = 3.0, 14.0
# The scale of density reaches at least so far, HU.
DENSITY_HU = 250
# Half the width and height of a section of a vertebra, mm, and its pixels.
HALF_MM, PIXEL_MM = 32.0, 0.25
SIDE = np.arange(-HALF_MM, HALF_MM + PIXEL_MM, PIXEL_MM)


def sagittal_plane(volume: Volume, labels: np.ndarray) -> Plane:
    """Return the sagittal plane that shows most vertebrae; through the middle where there are none."""
    points, values = labelled_points(labels, volume.geometry)
    box = display_box(points, volume.geometry)
    if len(points):
        position = best_slice_position(SAGITTAL, points, values, volume.geometry)
    else:
        position = float(box[0][0] + box[1][0]) / 2
    return resample_plane(SAGITTAL, position, box, volume, labels)


def column_picture(plane: Plane, structures: Sequence[Label], flagged: set[int], window: tuple[float, float]) -> bytes:
    """Return a PNG of a sagittal plane with outlines and levels; flagged ones in red."""
    aspect = plane.right.size / plane.down.size
    canvas = figure((min(COLUMN_SIZE[0], COLUMN_SIZE[1] * aspect), min(COLUMN_SIZE[1], COLUMN_SIZE[0] / aspect)))
    axes = canvas.add_axes((0, 0, 1, 1))
    half = (plane.right[1] - plane.right[0]) / 2
    ends = (plane.right[0] - half, plane.right[-1] + half, plane.down[-1] + half, plane.down[0] - half)
    show_slice(axes, plane.image, window, ends)
    for label in structures:
        mask = plane.masks.get(label.value)
        colour = FLAGGED if label.value in flagged else OUTLINE
        if mask is None or not draw_outline(axes, mask, colour, (plane.right, plane.down), linewidths=1.1):
            continue
        rows, columns = np.nonzero(mask > 0.5)
        row = int(np.median(rows))
        # In front of the body, or inside of it where the image ends.
        place = plane.right[columns[np.abs(rows - row) <= 3].min()] - NAME_GAP_MM
        place = max(place, ends[0] + NAME_MM * (2 if label.value == SACRUM else 1))
        style: dict[str, Any] = {"color": colour, "fontsize": 9, "fontweight": "bold", "ha": "right", "va": "center"}
        axes.text(place, plane.down[row], short(label.name), path_effects=_rim(), **style)
    axes.set_xlim(*ends[:2])
    axes.set_ylim(*ends[2:])
    return png(canvas)


def curve_picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG of heights and density along the column, with what is expected of the heights."""
    shown = [row for row in rows if row["anterior_height_mm"] is not None]
    dense = any(row["trabecular_hu"] is not None for row in shown)
    canvas = figure((CURVE_SIZE[0] if dense else CURVE_SIZE[0] * 2 / 3, CURVE_SIZE[1]))
    parts = canvas.subplots(1, 2, sharey=True, width_ratios=(2, 1)) if dense else [canvas.subplots()]
    at = np.arange(len(shown))
    for place in PLACES:
        heights = [row[f"{place}_height_mm"] for row in shown]
        expected = [row[f"expected_{place}_height_mm"] or np.nan for row in shown]
        errors = [row["height_sd_mm"] for row in shown]
        parts[0].plot(expected, at, color=COLOURS[place], linewidth=1, linestyle=":")
        parts[0].errorbar(
            heights,
            at,
            xerr=errors,
            color=COLOURS[place],
            marker="o",
            markersize=4,
            linewidth=1.2,
            elinewidth=0.7,
            label=place,
        )
    parts[0].set_xlabel("height, mm (dotted: expected)")
    parts[0].legend(loc="upper left", bbox_to_anchor=(0, 1.09), ncols=3, frameon=False, fontsize=9)
    if dense:
        parts[1].plot([row["trabecular_hu"] or np.nan for row in shown], at, color="#333", marker="s", markersize=4)
        # From 0, so that small differences look small.
        parts[1].set_xlim(0, max(DENSITY_HU, *(1.1 * (row["trabecular_hu"] or 0) for row in shown)))
        parts[1].set_xlabel("density, HU")
    for axes in parts:
        axes.grid(color="#ddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    parts[0].set_yticks(at, [short(row["name"]) for row in shown])
    parts[0].set_ylim(len(shown) - 0.5, -0.5)
    canvas.subplots_adjust(left=0.08, right=0.98, top=0.93, bottom=0.08, wspace=0.08)
    return png(canvas, "white")


def vertebra_picture(row: Mapping[str, Any], volume: Volume, labels: np.ndarray, window: tuple[float, float]) -> bytes:
    """Return a PNG of a vertebra, sagittal and coronal along its own axes, with the points its heights are between."""
    points = points_lps(row)
    centre, up, back, left = axes_of(points)
    canvas = figure(VERTEBRA_SIZE)
    mask = labels == row["value"]
    for number, (across, places) in enumerate(((back, (0, 1, 2)), (left, (4, 1, 3)))):
        axes = canvas.add_axes((number / 2, 0, 0.497, 1))
        plane = section(centre, up, across)
        index = index_of(plane, volume.geometry.affine)
        image = ndimage.map_coordinates(volume.array, index, np.float32, order=1, cval=float(volume.array.min()))
        outline = ndimage.map_coordinates(mask.view(np.uint8), index, np.float32, order=1)
        show_slice(axes, image, window, (-HALF_MM, HALF_MM, HALF_MM, -HALF_MM))
        draw_outline(axes, outline, OUTLINE, (SIDE, SIDE), linewidths=1)
        for place in places:
            ends = (points[place] - centre) @ np.stack([across, -up], axis=1)
            axes.plot(*ends.T, color=POINT, marker="o", markersize=3.5, linewidth=0.9)
        frame_section(axes, "AP" if number == 0 else "RL")
    return png(canvas)


def points_lps(row: Mapping[str, Any]) -> np.ndarray:
    """Return the points that a row's heights are between, shape (5, 2, 3), LPS mm."""
    return np.array(row["height_points_ras_mm"]) * (-1, -1, 1)


def axes_of(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the centre of a body with such points, and unit vectors up, back and left, LPS."""
    up = _unit((points[:, 0] - points[:, 1]).sum(axis=0))
    back = points[2].sum(axis=0) - points[0].sum(axis=0)
    back = _unit(back - (back @ up) * up)
    return points[1].mean(axis=0), up, back, np.cross(back, up)


def section(centre: np.ndarray, up: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Return the LPS points (rows, columns, 3) of a section of a vertebra, one for each place of `SIDE` in both."""
    return centre + SIDE[:, None, None] * -up + SIDE[:, None] * across


def index_of(points: np.ndarray, to_lps: np.ndarray) -> np.ndarray:
    """Return the indices (z, y, x) of LPS points (..., 3) in an array with this matrix."""
    to_index = np.linalg.inv(to_lps)
    index: np.ndarray = np.moveaxis(points @ to_index[:3, :3].T + to_index[:3, 3], -1, 0)[::-1]
    return index


def frame_section(axes: Axes, letters: str) -> None:
    """Set the limits of a section, and write the patient's sides at its edges."""
    axes.set_xlim(-HALF_MM, HALF_MM)
    axes.set_ylim(HALF_MM * 0.8, -HALF_MM * 0.8)
    _letters(axes, letters)


def _letters(axes: Axes, letters: str) -> None:
    for letter, x in zip(letters, (0.02, 0.98), strict=True):
        axes.text(
            x,
            0.5,
            letter,
            color="white",
            fontsize=9,
            ha="left" if x < 0.5 else "right",
            va="center",
            transform=axes.transAxes,
            path_effects=_rim(),
        )


def _unit(vector: np.ndarray) -> np.ndarray:
    length: np.ndarray = vector / np.linalg.norm(vector)
    return length


def _rim() -> list[Any]:
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=2.5, foreground="#101418"), Normal()]


def figure(size: tuple[float, float]) -> Figure:
    """Return an empty figure of a size in inches."""
    # Not pyplot: that would choose a window system.
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def png(canvas: Figure, background: str = "#101418") -> bytes:
    """Return a figure as a PNG."""
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", dpi=DPI, facecolor=background)
    return stream.getvalue()
