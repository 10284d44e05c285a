"""The page of two exams of a spine: what changed, in sentences, pictures and a table, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy import ndimage

from segmamba.io.volume import Volume
from segmamba.reporting import DISCLAIMER
from segmamba.reporting.charts import Panel, Series, chart
from segmamba.reporting.look_first import short
from segmamba.reporting.page import templates
from segmamba.reporting.page_pictures import (
    COLOURS,
    FLAGGED,
    GREY,
    OUTLINE,
    PLACES,
    axes_of,
    index_of,
    points_lps,
    section,
    section_outline,
    section_picture,
    sections_picture,
)
from segmamba.reporting.report import describe_software

TEMPLATE = "comparison.html.j2"
CHANGE, POSSIBLE, DENSITY = "change", "possible", "trabecular_hu"
# So many standard deviations of each change are drawn: 95 %.
BAR_SD = 1.96
# Pixels.
FOREST_WIDTH = 880.0
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
        "forest": forest_picture(vertebrae) if measured else "",
        "vertebrae": [(row, picture) for row in changed if (picture := _sections(row, exams, images)) is not None],
    }
    return str(
        templates().get_template(TEMPLATE).render(result=result, vertebrae=vertebrae, pictures=pictures, dense=DENSITY)
    )


def forest_picture(vertebrae: Sequence[Mapping[str, Any]]) -> str:
    """Return the SVG of the changes of each vertebra with the error of measurement around them."""
    heights = [
        _bars([row["changes"][f"{place}_height_mm"] for row in vertebrae], COLOURS[place], place, 0.22 * (number - 1))
        for number, place in enumerate(PLACES)
    ]
    # Each scale has 0.
    panels = [Panel("change of height, mm (bars: 95 % of the error)", heights, (0.0, 0.0), 2)]
    density = _bars([row["changes"][DENSITY] for row in vertebrae], GREY, "density")
    if any(density.errors):
        panels.append(Panel("change of density, HU", [density], (0.0, 0.0)))
    width = FOREST_WIDTH if len(panels) > 1 else FOREST_WIDTH * 2 / 3
    names = [_both(row) for row in vertebrae]
    return chart(panels, names, "Changes of heights and density with their errors", (width, 110 + 40 * len(names)))


def _bars(changes: Sequence[Mapping[str, Any]], colour: str, name: str, shift: float = 0.0) -> Series:
    known = [change["sd"] is not None for change in changes]
    values = [change["change"] if one else None for change, one in zip(changes, known, strict=True)]
    errors = [BAR_SD * change["sd"] if one else None for change, one in zip(changes, known, strict=True)]
    return Series(values, colour, name, errors, shift, joined=False)


def _sections(
    row: Mapping[str, Any], exams: tuple[Exam, Exam], images: tuple[Volume | None, Volume | None]
) -> str | None:
    """Return the SVG of a vertebra in both exams, along the axes it has in the second, the first's outline in both.

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
    drawn = (
        [section_outline(outlines[0], OUTLINE)],
        [section_outline(outlines[0], OUTLINE, stroke_dasharray="5 3"), section_outline(outlines[1], FLAGGED)],
    )
    parts = []
    for number, (image, points) in enumerate(zip(images, planes, strict=True)):
        values = np.zeros(plane.shape[:2]) if image is None else _sampled(image.array, image.geometry.affine, points)
        low, high = np.percentile(values, WINDOW)
        window = (float(low), float(max(high, low + 1)))
        parts.append(section_picture(values, window, "AP", drawn[number], number))
    return sections_picture(f"{_both(row)} in both exams", parts)


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
