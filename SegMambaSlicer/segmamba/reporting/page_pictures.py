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
    figure = _figure((min(COLUMN_SIZE[0], COLUMN_SIZE[1] * aspect), min(COLUMN_SIZE[1], COLUMN_SIZE[0] / aspect)))
    axes = figure.add_axes((0, 0, 1, 1))
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
    return _png(figure)


def curve_picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG of heights and density along the column, with what is expected of the heights."""
    shown = [row for row in rows if row["anterior_height_mm"] is not None]
    dense = any(row["trabecular_hu"] is not None for row in shown)
    figure = _figure((CURVE_SIZE[0] if dense else CURVE_SIZE[0] * 2 / 3, CURVE_SIZE[1]))
    parts = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1)) if dense else [figure.subplots()]
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
    figure.subplots_adjust(left=0.08, right=0.98, top=0.93, bottom=0.08, wspace=0.08)
    return _png(figure, "white")


def vertebra_picture(row: Mapping[str, Any], volume: Volume, labels: np.ndarray, window: tuple[float, float]) -> bytes:
    """Return a PNG of a vertebra, sagittal and coronal along its own axes, with the points its heights are between."""
    points = np.array(row["height_points_ras_mm"]) * (-1, -1, 1)
    centre = points[1].mean(axis=0)
    up = _unit((points[:, 0] - points[:, 1]).sum(axis=0))
    back = points[2].sum(axis=0) - points[0].sum(axis=0)
    back = _unit(back - (back @ up) * up)
    left = np.cross(back, up)
    figure = _figure(VERTEBRA_SIZE)
    mask = labels == row["value"]
    for number, (across, places) in enumerate(((back, (0, 1, 2)), (left, (4, 1, 3)))):
        axes = figure.add_axes((number / 2, 0, 0.497, 1))
        side = np.arange(-HALF_MM, HALF_MM + PIXEL_MM, PIXEL_MM)
        plane = centre + side[:, None, None] * -up + side[:, None] * across
        index = _index(plane, volume)
        image = ndimage.map_coordinates(volume.array, index, np.float32, order=1, cval=float(volume.array.min()))
        section = ndimage.map_coordinates(mask.view(np.uint8), index, np.float32, order=1)
        show_slice(axes, image, window, (-HALF_MM, HALF_MM, HALF_MM, -HALF_MM))
        draw_outline(axes, section, OUTLINE, (side, side), linewidths=1)
        for place in places:
            ends = (points[place] - centre) @ np.stack([across, -up], axis=1)
            axes.plot(*ends.T, color=POINT, marker="o", markersize=3.5, linewidth=0.9)
        axes.set_xlim(-HALF_MM, HALF_MM)
        axes.set_ylim(HALF_MM * 0.8, -HALF_MM * 0.8)
        _letters(axes, "AP" if number == 0 else "RL")
    return _png(figure)


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


def _index(points: np.ndarray, volume: Volume) -> np.ndarray:
    """Return the indices (z, y, x) of LPS points (..., 3)."""
    to_index = np.linalg.inv(volume.geometry.affine)
    index: np.ndarray = np.moveaxis(points @ to_index[:3, :3].T + to_index[:3, 3], -1, 0)[::-1]
    return index


def _unit(vector: np.ndarray) -> np.ndarray:
    length: np.ndarray = vector / np.linalg.norm(vector)
    return length


def _rim() -> list[Any]:
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=2.5, foreground="#101418"), Normal()]


def _figure(size: tuple[float, float]) -> Figure:
    # Not pyplot: that would choose a window system.
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def _png(figure: Figure, background: str = "#101418") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, facecolor=background)
    return stream.getvalue()
