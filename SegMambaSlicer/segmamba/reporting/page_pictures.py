"""The pictures of a report's page: the column, its curves, and single vertebrae with the points that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from segmamba.io.volume import Volume
from segmamba.labels import Label
from segmamba.reporting.charts import Panel, Series, chart
from segmamba.reporting.look_first import short
from segmamba.reporting.slice_planes import (
    SAGITTAL,
    Plane,
    best_slice_position,
    display_box,
    labelled_points,
    resample_plane,
)
from segmamba.reporting.svg import BACKGROUND, element, outline, path, picture, point, slice_image, text
from segmamba.spine.levels import SACRUM

PLACES = ("anterior", "middle", "posterior")
COLOURS = {"anterior": "#b3261e", "middle": "#1f6f43", "posterior": "#1f4e8c"}
FLAGGED, OUTLINE, POINT, GREY = "#ff5d4f", "#58c4dd", "#ffd23f", "#333333"
# Largest sizes in pixels.
COLUMN_SIZE, CURVE_SIZE = (550.0, 770.0), (682.0, 770.0)
# Rows of a chart are at most so high, pixels.
ROW_PIXELS = 50.0
# A name is so far in front of its body, and this wide, mm.
NAME_GAP_MM, NAME_MM = 3.0, 14.0
# The scale of density reaches at least so far, HU.
DENSITY_HU = 250.0
# Half the width and height of a section of a vertebra, mm, and the samples in it; the part of the height that is shown.
HALF_MM, PIXEL_MM, SHOWN = 32.0, 0.25, 0.8
SIDE = np.arange(-HALF_MM, HALF_MM + PIXEL_MM, PIXEL_MM)
# A section is shown so wide, and the next one so far to its right, pixels.
SECTION, NEXT_SECTION = 272.0, 275.0
SCALE = SECTION / (2 * HALF_MM)


def sagittal_plane(volume: Volume, labels: np.ndarray) -> Plane:
    """Return the sagittal plane that shows most vertebrae; through the middle where there are none."""
    points, values = labelled_points(labels, volume.geometry)
    box = display_box(points, volume.geometry)
    if len(points):
        position = best_slice_position(SAGITTAL, points, values, volume.geometry)
    else:
        position = float(box[0][0] + box[1][0]) / 2
    return resample_plane(SAGITTAL, position, box, volume, labels)


def column_picture(plane: Plane, structures: Sequence[Label], flagged: set[int], window: tuple[float, float]) -> str:
    """Return the SVG of a sagittal plane with outlines and levels; flagged ones in red."""
    pixel_mm = plane.right[1] - plane.right[0]
    left, top = plane.right[0] - pixel_mm / 2, plane.down[0] - pixel_mm / 2
    extent = np.array([plane.right[-1] - left, plane.down[-1] - top]) + pixel_mm / 2
    scale = float((np.array(COLUMN_SIZE) / extent).min())
    width, height = (extent * scale).tolist()
    parts = [slice_image(plane.image, window, (0, 0, width, height))]
    for label in structures:
        found = plane.sections.get(label.value)
        colour = FLAGGED if label.value in flagged else OUTLINE
        if found is None:
            continue
        columns, rows = (found.right - left) * scale, (found.down - top) * scale
        drawn = outline(found.mask, columns, rows, colour)
        if not drawn:
            continue
        inside = np.nonzero(found.mask > 0.5)
        row = int(np.median(inside[0]))
        # In front of the body, or inside of it where the image ends.
        x = columns[inside[1][np.abs(inside[0] - row) <= 3].min()] - NAME_GAP_MM * scale
        x = max(x, NAME_MM * (2 if label.value == SACRUM else 1) * scale)
        style = {"font_weight": "bold", "text_anchor": "end"}
        parts += [drawn, text(short(label.name), (x, rows[row]), colour, rim=BACKGROUND, **style)]
    return picture((width, height), "Sagittal plane with the levels", parts)


def curve_picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the SVG of heights and density along the column, with what is expected of the heights."""
    shown = [row for row in rows if row["anterior_height_mm"] is not None]
    series = []
    for place in PLACES:
        expected = [row[f"expected_{place}_height_mm"] for row in shown]
        series.append(Series(expected, COLOURS[place], dotted=True, marked=False))
        heights, errors = ([row[key] for row in shown] for key in (f"{place}_height_mm", "height_sd_mm"))
        series.append(Series(heights, COLOURS[place], place, errors))
    panels = [Panel("height, mm (dotted: expected)", series, share=2)]
    if any(row["trabecular_hu"] is not None for row in shown):
        # From 0, so that small differences look small.
        density = Series([row["trabecular_hu"] for row in shown], GREY, "density")
        panels.append(Panel("density, HU", [density], (0.0, DENSITY_HU)))
    width, height = CURVE_SIZE[0] * (1 if len(panels) > 1 else 2 / 3), min(CURVE_SIZE[1], 90 + ROW_PIXELS * len(shown))
    names = [short(row["name"]) for row in shown]
    return chart(panels, names, "Heights and density along the column", (width, height))


def vertebra_picture(row: Mapping[str, Any], volume: Volume, labels: np.ndarray, window: tuple[float, float]) -> str:
    """Return the SVG of a vertebra, sagittal and coronal along its own axes, with the points that were measured."""
    points = points_lps(row)
    centre, up, back, left = axes_of(points)
    parts = []
    for number, (across, places, letters) in enumerate(((back, (0, 1, 2), "AP"), (left, (4, 1, 3), "RL"))):
        index = index_of(section(centre, up, across), volume.geometry.affine)
        # Only what lies around the section: a volume has a thousand times as many voxels.
        box = _around(index, labels.shape)
        index = index - np.array([part.start for part in box])[:, None, None]
        image = ndimage.map_coordinates(volume.array[box], index, np.float32, order=1, cval=window[0])
        mask = (labels[box] == row["value"]).view(np.uint8)
        inside = ndimage.map_coordinates(mask, index, np.float32, order=1)
        drawn = [section_outline(inside, OUTLINE)]
        for place in places:
            ends = section_pixels((points[place] - centre) @ np.stack([across, -up], axis=1))
            drawn += [path([ends], POINT, stroke_width=1), *(point(end, POINT, 2.5) for end in ends)]
        parts.append(section_picture(image, window, letters, drawn, number))
    return sections_picture(f"{row['name']}, sagittal and coronal", parts)


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


def _around(index: np.ndarray, shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the box of an array of a shape that indices (z, y, x; rows; columns) are in, at least one voxel."""
    first = np.floor(index.min(axis=(1, 2))).astype(int)
    last = np.ceil(index.max(axis=(1, 2))).astype(int) + 1
    ends = zip(first.tolist(), last.tolist(), shape, strict=True)
    return tuple(slice(min(max(a, 0), size - 1), min(max(b, 1), size)) for a, b, size in ends)


def section_pixels(points: np.ndarray) -> np.ndarray:
    """Return the pixels of points (..., 2) of a section, mm to the right and down from its centre."""
    pixels: np.ndarray = (points + (HALF_MM, HALF_MM * SHOWN)) * SCALE
    return pixels


def section_outline(mask: np.ndarray, colour: str, **style: Any) -> str:
    """Return the outline of a section's mask, 0 to 1 at the places of `SIDE`."""
    columns, rows = section_pixels(np.stack([SIDE, SIDE], axis=1)).T
    return outline(mask, columns, rows, colour, **style)


def section_picture(
    image: np.ndarray, window: tuple[float, float], letters: str, drawn: Sequence[str], number: int
) -> str:
    """Return a section with what is drawn on it and the patient's sides at its edges, the first or the next ones."""
    left, top = section_pixels(np.array([-HALF_MM, -HALF_MM])).tolist()
    height, style = SECTION * SHOWN, {"rim": BACKGROUND}
    parts = [slice_image(image, window, (left, top, SECTION, SECTION)), *drawn]
    parts.append(text(letters[0], (6, height / 2), "white", **style))
    parts.append(text(letters[1], (SECTION - 6, height / 2), "white", text_anchor="end", **style))
    # An inner picture shows nothing beyond its edges.
    return element("svg", "".join(parts), x=NEXT_SECTION * number, y=0, width=SECTION, height=height)


def sections_picture(title: str, sections: Sequence[str]) -> str:
    """Return sections side by side."""
    return picture((NEXT_SECTION * len(sections) - NEXT_SECTION + SECTION, SECTION * SHOWN), title, sections)


def _unit(vector: np.ndarray) -> np.ndarray:
    length: np.ndarray = vector / np.linalg.norm(vector)
    return length
