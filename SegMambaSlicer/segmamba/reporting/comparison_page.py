"""The page of two exams of a spine: what changed, in sentences, pictures and a table, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy import ndimage

from segmamba.io.volume import Volume
from segmamba.reporting import DISCLAIMER
from segmamba.reporting.look_first import short
from segmamba.reporting.overlay import draw_outline, show_slice
from segmamba.reporting.page import picture_uri, templates
from segmamba.reporting.page_pictures import (
    COLOURS,
    FLAGGED,
    HALF_MM,
    OUTLINE,
    PLACES,
    SIDE,
    axes_of,
    figure,
    frame_section,
    index_of,
    png,
    points_lps,
    section,
)
from segmamba.reporting.report import describe_software

TEMPLATE = "comparison.html.j2"
CHANGE, POSSIBLE, DENSITY = "change", "possible", "trabecular_hu"
# So many standard deviations of each change are drawn: 95 %.
BAR_SD = 1.96
FOREST_SIZE, SECTIONS_SIZE = (8.0, 6.4), (5.0, 2.0)
# Percentiles of a section that are shown as black and as white.
WINDOW = (2.0, 99.5)


class Exam(Protocol):
    """A measured segmentation: rows of measurements, and masks by level.

    A mask has an ``array`` (z, y, x) and the matrix ``to_lps`` from its index (x, y, z, 1) to LPS mm.
    """

    @property
    def rows(self) -> Any: ...

    @property
    def masks(self) -> Mapping[int, Any]: ...


def comparison_result(
    comparison: Mapping[str, Any], exams: tuple[Mapping[str, Any], Mapping[str, Any]], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a comparison with what a reader has to know of its exams.

    Parameters
    ----------
    comparison : mapping
        As `segmamba.measurements.comparison.compare` returns it.
    exams : tuple of mapping
        Of each exam ``exam``, ``segmentation``, ``segmentation_sha256``, ``image`` and ``model``; None where there is
        none.
    notes : sequence of str
        Sentences that come after those of the comparison.
    """
    return {
        **comparison,
        "summary": [*comparison["summary"], *notes],
        "first": exams[0],
        "second": exams[1],
        "software": describe_software(),
        "disclaimer": DISCLAIMER,
    }


def comparison_page(
    result: Mapping[str, Any], exams: tuple[Exam, Exam], images: tuple[Volume | None, Volume | None]
) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    result : mapping
        As ``segmamba compare`` writes it to JSON.
    exams : tuple of Exam
        What was compared.
    images : tuple of Volume or None
        Of the exams.
    """
    vertebrae = result["vertebrae"]
    changed = [row for row in vertebrae if row["fracture_worse"] or _verdicts(row) & {CHANGE}]
    measured = any(change["sd"] is not None for row in vertebrae for change in row["changes"].values())
    pictures = {
        "forest": picture_uri(forest_picture(vertebrae)) if measured else "",
        "vertebrae": [
            (row, picture_uri(picture)) for row in changed if (picture := _sections(row, exams, images)) is not None
        ],
    }
    return str(
        templates().get_template(TEMPLATE).render(result=result, vertebrae=vertebrae, pictures=pictures, dense=DENSITY)
    )


def forest_picture(vertebrae: list[Mapping[str, Any]]) -> bytes:
    """Return a PNG of the changes of each vertebra with the error of measurement around them."""
    dense = any(row["changes"][DENSITY]["sd"] is not None for row in vertebrae)
    size = (FOREST_SIZE[0] if dense else FOREST_SIZE[0] * 2 / 3, max(2.2, 0.36 * len(vertebrae) + 1.0))
    canvas = figure(size)
    parts = canvas.subplots(1, 2, sharey=True, width_ratios=(2, 1)) if dense else [canvas.subplots()]
    at = np.arange(len(vertebrae))
    for number, place in enumerate(PLACES):
        changes = [row["changes"][f"{place}_height_mm"] for row in vertebrae]
        _bars(parts[0], changes, at + 0.22 * (number - 1), COLOURS[place], place)
    parts[0].set_xlabel("change of height, mm (bars: 95 % of the error)")
    parts[0].legend(loc="upper left", bbox_to_anchor=(0, 1 + 0.55 / size[1]), ncols=3, frameon=False, fontsize=9)
    if dense:
        _bars(parts[1], [row["changes"][DENSITY] for row in vertebrae], at, "#333", "density")
        parts[1].set_xlabel("change of density, HU")
    for axes in parts:
        axes.axvline(0, color="#999", linewidth=0.8)
        axes.grid(color="#ddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    parts[0].set_yticks(at, [_both(row) for row in vertebrae])
    parts[0].set_ylim(len(vertebrae) - 0.5, -0.5)
    canvas.subplots_adjust(left=0.11, right=0.98, top=1 - 0.45 / size[1], bottom=0.5 / size[1], wspace=0.08)
    return png(canvas, "white")


def _bars(axes: Any, changes: list[Mapping[str, Any]], at: np.ndarray, colour: str, label: str) -> None:
    known = [number for number, change in enumerate(changes) if change["sd"] is not None]
    values = [changes[number]["change"] for number in known]
    errors = [BAR_SD * changes[number]["sd"] for number in known]
    axes.errorbar(
        values, at[known], xerr=errors, color=colour, marker="o", markersize=4, linewidth=0, elinewidth=1, label=label
    )


def _sections(
    row: Mapping[str, Any], exams: tuple[Exam, Exam], images: tuple[Volume | None, Volume | None]
) -> bytes | None:
    """Return a PNG of a vertebra in both exams, along the axes it has in the second, the first one's outline in both.

    None where it was not measured, or not laid on the other.
    """
    rows = [
        next(each for each in exam.rows if each["value"] == row[key])
        for exam, key in zip(exams, ("first_value", "second_value"), strict=True)
    ]
    if rows[1]["height_points_ras_mm"] is None or row["to_second_lps"] is None:
        return None
    centre, up, back, _ = axes_of(points_lps(rows[1]))
    to_first = np.linalg.inv(np.array(row["to_second_lps"]))
    plane = section(centre, up, back)
    planes = (plane @ to_first[:3, :3].T + to_first[:3, 3], plane)
    outlines = [
        _sampled(exam.masks[each["value"]].array.view(np.uint8), exam.masks[each["value"]].to_lps, points)
        for exam, each, points in zip(exams, rows, planes, strict=True)
    ]
    canvas = figure(SECTIONS_SIZE)
    for number, (image, points) in enumerate(zip(images, planes, strict=True)):
        axes = canvas.add_axes((number / 2, 0, 0.497, 1))
        values = np.zeros(plane.shape[:2]) if image is None else _sampled(image.array, image.geometry.affine, points)
        low, high = np.percentile(values, WINDOW)
        show_slice(axes, values, (float(low), float(max(high, low + 1))), (-HALF_MM, HALF_MM, HALF_MM, -HALF_MM))
        draw_outline(axes, outlines[0], OUTLINE, (SIDE, SIDE), linewidths=1, linestyles="-" if number == 0 else "--")
        if number == 1:
            draw_outline(axes, outlines[1], FLAGGED, (SIDE, SIDE), linewidths=1)
        frame_section(axes, "AP")
    return png(canvas)


def _sampled(array: np.ndarray, to_lps: np.ndarray, points: np.ndarray) -> np.ndarray:
    values: np.ndarray = ndimage.map_coordinates(
        array, index_of(points, to_lps), np.float32, order=1, cval=float(array.min())
    )
    return values


def _verdicts(row: Mapping[str, Any]) -> set[str]:
    return {change["verdict"] for change in row["changes"].values()}


def _both(row: Mapping[str, Any]) -> str:
    names = short(row["first_name"]), short(row["second_name"])
    return names[0] if names[0] == names[1] else " / ".join(names)
