"""Charts of values along a column of vertebrae, one row a vertebra, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segmamba.reporting.svg import element, path, picture, point, text

TEXT, FAINT, GRID = "#1c2329", "#5d6873", "#dddddd"
# Pixels: around the panels, between them, and of the text.
LEFT, RIGHT, TOP, BOTTOM, GAP, SIZE = 46.0, 14.0, 34.0, 52.0, 22.0, 13
# At most so many steps of a scale; they are one, two or five times a power of ten.
MOST_STEPS, STEPS = 7, (1, 2, 5, 10)
# A scale reaches this part of the values' range beyond them.
AROUND = 0.05


@dataclass(frozen=True, eq=False)
class Series:
    """Values of the rows of a chart.

    Attributes
    ----------
    values : sequence of float or None
        One a row; None where there is none.
    colour : str
    name : str
        For the legend and the points; without one it is not in the legend.
    errors : sequence of float or None
        Half the length of a bar around each value.
    shift : float
        Rows that it is drawn below its own.
    joined, dotted, marked : bool
        Whether values of neighbouring rows are joined by a line, whether that is dotted, and whether they have points.
    """

    values: Sequence[float | None]
    colour: str
    name: str = ""
    errors: Sequence[float | None] = ()
    shift: float = 0.0
    joined: bool = True
    dotted: bool = False
    marked: bool = True


@dataclass(frozen=True, eq=False)
class Panel:
    """A scale, and what is shown along it.

    Attributes
    ----------
    title : str
        Of the scale, with its unit.
    series : sequence of Series
    limits : tuple of float
        What the scale shows in any case.
    share : float
        Of the chart's width, next to the other panels'.
    """

    title: str
    series: Sequence[Series]
    limits: tuple[float, ...] = ()
    share: float = 1.0


@dataclass(frozen=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    first: float
    last: float
    ticks: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, panel: Panel, first: float, last: float) -> Scale:
        """Return the scale that shows a panel's values and bars between two pixels."""
        ends = list(panel.limits)
        for series in panel.series:
            for value, error in zip(series.values, _errors(series), strict=True):
                ends += [] if value is None else [value - error, value + error]
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        room = AROUND * (high - low) or 1.0
        # A scale that begins at 0 begins there.
        low = low if panel.limits and low == panel.limits[0] else low - room
        step = step_of(high + room - low)
        ticks = np.arange(np.ceil(low / step), np.floor((high + room) / step) + 1) * step
        return cls(low, high + room, first, last, [float(tick) for tick in ticks])

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)


def step_of(length: float) -> float:
    """Return the step of a scale of some length.

    Examples
    --------
    >>> [step_of(length) for length in (0.9, 30, 36, 250)]
    [0.2, 5.0, 10.0, 50.0]
    """
    power = 10.0 ** np.floor(np.log10(length / MOST_STEPS))
    return float(power * next(step for step in STEPS if step * power * MOST_STEPS >= length))


def chart(panels: Sequence[Panel], names: Sequence[str], title: str, size: tuple[float, float]) -> str:
    """Return a chart with a row for each name from the top down, and panels side by side."""
    width, height = size
    row = (height - TOP - BOTTOM) / max(1, len(names))
    at = [TOP + row * (number + 0.5) for number in range(len(names))]
    parts = [
        text(name, (LEFT - 8, y), TEXT, font_size=SIZE, text_anchor="end") for name, y in zip(names, at, strict=True)
    ]
    left, room = LEFT, width - LEFT - RIGHT - GAP * (len(panels) - 1)
    for panel in panels:
        right = left + room * panel.share / sum(each.share for each in panels)
        scale = Scale.of(panel, left, right)
        parts += _grid(panel, scale, at, height)
        for series in panel.series:
            parts += _drawn(series, scale, at, names)
        parts.append(_legend(panel, left))
        left = right + GAP
    return picture(size, title, parts, "#ffffff")


def _grid(panel: Panel, scale: Scale, at: Sequence[float], height: float) -> list[str]:
    bottom = height - BOTTOM
    lines = [np.array([(scale.first, y), (scale.last, y)]) for y in at]
    lines += [np.array([(scale(tick), TOP), (scale(tick), bottom)]) for tick in scale.ticks]
    zero = [np.array([(scale(0), TOP), (scale(0), bottom)])] if scale.low < 0 < scale.high else []
    style: dict[str, Any] = {"font_size": SIZE, "text_anchor": "middle"}
    return [
        path(lines, GRID, stroke_width=1),
        path([np.array([(scale.first, TOP), (scale.first, bottom), (scale.last, bottom)]), *zero], FAINT),
        *(text(f"{tick:g}", (scale(tick), bottom + 14), FAINT, **style) for tick in scale.ticks),
        text(panel.title, ((scale.first + scale.last) / 2, bottom + 36), TEXT, **style),
    ]


def _drawn(series: Series, scale: Scale, at: Sequence[float], names: Sequence[str]) -> list[str]:
    shift = series.shift * (at[1] - at[0] if len(at) > 1 else 0.0)
    places = [None if value is None else (scale(value), y + shift) for value, y in zip(series.values, at, strict=True)]
    pieces: list[list[tuple[float, float]]] = [[]]
    for place in places:
        pieces = [*pieces, []] if place is None else [*pieces[:-1], [*pieces[-1], place]]
    found = []
    if series.joined:
        dots = {"stroke_dasharray": "1.5 3"} if series.dotted else {}
        found.append(path([np.array(piece) for piece in pieces if len(piece) > 1], series.colour, **dots))
    for place, value, error, name in zip(places, series.values, _errors(series), names, strict=True):
        if place is None or value is None:
            continue
        if error:
            ends = np.array([(scale(value + sign * error), place[1]) for sign in (-1, 1)])
            found.append(path([ends], series.colour, stroke_width=1))
        if series.marked:
            found.append(point(place, series.colour, tip=f"{name} {series.name}: {value}"))
    return found


def _legend(panel: Panel, left: float) -> str:
    said, parts = [series for series in panel.series if series.name and series.marked], []
    if len(said) < 2:
        return ""
    for number, series in enumerate(said):
        x = left + 6 + 92 * number
        parts += [point((x, TOP / 2), series.colour), text(series.name, (x + 9, TOP / 2), TEXT, font_size=SIZE)]
    return element("g", "".join(parts))


def _errors(series: Series) -> list[float]:
    return [error or 0.0 for error in series.errors] if series.errors else [0.0] * len(series.values)
