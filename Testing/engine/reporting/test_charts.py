"""Charts and slices of pages: what is drawn lies where its values are."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from segmamba.reporting.charts import Panel, Scale, Series, chart, step_of
from segmamba.reporting.svg import outline, picture, slice_image, text

NAMES = ("T12", "L1", "L2", "L3")
SVG = "{http://www.w3.org/2000/svg}"
SIZE = (400.0, 300.0)


def drawn(*series: Series, limits: tuple[float, ...] = ()) -> ElementTree.Element:
    return ElementTree.fromstring(chart([Panel("height, mm", series, limits)], NAMES, "A chart", SIZE))


def test_a_point_is_where_its_value_and_its_row_are() -> None:
    series = Series([20.0, 10.0, 30.0, 25.0], "#123456", "anterior")
    found = drawn(series)
    points = [each for each in found.iter(f"{SVG}circle") if each.find(f"{SVG}title") is not None]
    assert [point.find(f"{SVG}title").text for point in points] == [  # type: ignore[union-attr]
        f"{name} anterior: {value}" for name, value in zip(NAMES, series.values, strict=True)
    ]
    across = np.array([float(point.get("cx", "")) for point in points])
    ticks = {each.text: float(each.get("x", "")) for each in found.iter(f"{SVG}text")}
    # The scale's own numbers say what a place means.
    value = np.interp(across, [ticks["10"], ticks["30"]], [10, 30])
    assert value == pytest.approx(series.values, abs=0.05)
    down = [float(point.get("cy", "")) for point in points]
    rows = {each.text: float(each.get("y", "")) for each in found.iter(f"{SVG}text")}
    assert down == pytest.approx([rows[name] for name in NAMES])


def test_what_is_missing_breaks_the_line_and_has_no_point() -> None:
    found = drawn(Series([20.0, 10.0, None, 25.0], "#123456", "anterior", [1.0, None, None, 2.0]))
    lines = [each.get("d", "") for each in found.iter(f"{SVG}path") if each.get("stroke") == "#123456"]
    # Two values are joined, one stands alone; two have bars.
    assert len(lines) == 3 and lines[0].count("M") == 1 and lines[0].count(",") == 2
    assert len([each for each in found.iter(f"{SVG}circle")]) == 3
    assert len(list(drawn(Series([None] * 4, "#123456", "anterior")).iter(f"{SVG}circle"))) == 0


def test_a_scale_shows_its_limits_values_and_bars() -> None:
    scale = Scale.of(Panel("", [Series([20.0, -8.0], "#000", errors=[5.0, 4.0])], (0.0, 10.0)), 100, 200)
    assert scale.low < -12 and scale.high > 25 and 0.0 in scale.ticks
    assert (scale(scale.low), scale(scale.high)) == (100, 200)
    assert Scale.of(Panel("", [Series([20.0], "#000")], (0.0, 10.0)), 0, 1).low == 0
    assert all(length / 7 <= step_of(length) <= length / 2 for length in (0.03, 1.0, 4.9, 70.0, 999.0))


def test_names_are_text_and_slices_are_in_their_window() -> None:
    shown = picture((50, 20), 'a "title"', [text("<b>", (1, 1), "red")])
    assert (
        "<b>" not in shown and "&lt;b&gt;" in shown and ElementTree.fromstring(shown).get("aria-label") == 'a "title"'
    )
    address = slice_image(np.array([[-200.0, 0.0, 100.0, 500.0]]), (-100.0, 300.0), (0, 0, 8, 2))
    match = re.search(r"base64,([^\"]+)", address)
    assert match is not None
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(match[1]))))
    assert pixels.tolist() == [[0, 63, 127, 255]]


def test_an_outline_follows_the_mask_in_the_picture_s_pixels() -> None:
    mask = np.zeros((20, 30))
    mask[5:10, 10:20] = 1
    columns, rows = 3 * np.arange(30.0) + 7, 2 * np.arange(20.0)
    numbers = re.findall(r"(-?[\d.]+),(-?[\d.]+)", outline(mask, columns, rows, "#fff"))
    x, y = np.array(numbers, float).T
    # Half way between the last voxel inside and the next one.
    assert (x.min(), x.max(), y.min(), y.max()) == (35.5, 65.5, 9, 19)
    assert outline(np.zeros((4, 4)), np.arange(4.0), np.arange(4.0), "#fff") == ""
