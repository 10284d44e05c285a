"""Curves of the spine, and what lies between neighbours: angles between end plates (Cobb), discs and slips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from segmamba.measurements.end_plates import Surface
from segmamba.measurements.heights import PLACES, Heights
from segmamba.measurements.vertebral_body import FINE_MM, PLATE, Body, Mask, axes_along, resampled
from segmamba.spine.levels import L1, L5, L6, SACRUM, T12, from_top, is_next, level_name

T4 = 11
# Points of a plate further from its plane than this, mm, are spurs, gaps or the plate's own concavity.
SPUR_MM = 2.0
# The sacrum's plate is looked for between these heights below the last vertebra's lower plate, mm, and has at least
# this part of the points that face that plate.
SACRUM_MM, SACRUM_PART = (-6.0, 25.0), 0.5
# A plate's plane is fitted to so many points along each axis.
ACROSS = 9
# A curve in the coronal plane has at least so many vertebrae.
SHORTEST_CURVE = 3
BETWEEN = ("disc_angle_deg", "disc_anterior_mm", "disc_middle_mm", "disc_posterior_mm", "slip_mm", "slip_percent")
CURVES = ("thoracic_kyphosis", "lumbar_lordosis", "coronal_cobb", "sacral_slope")


@dataclass(frozen=True, eq=False)
class Plate:
    """The plane of an end plate: a point and the unit normal (3,), upwards; LPS mm."""

    centre: np.ndarray
    normal: np.ndarray


@dataclass(frozen=True, eq=False)
class Plates:
    """Both end plates of a body, and its axes; of the sacrum the upper one, and the axes of the body above."""

    upper: Plate
    lower: Plate
    axes: np.ndarray


def plates_of(body: Body, surfaces: tuple[Surface, Surface]) -> Plates:
    """Return the planes of a body's end plates, fitted to the inner part of their smooth surfaces."""
    inner = np.linspace(-PLATE, PLATE, ACROSS)
    depth, width = inner * body.size[1] / 2, inner * body.size[2] / 2
    upper, lower = (
        _plane(depth, width, surface.height(depth[:, None], width), body.size[1:], body) for surface in surfaces
    )
    assert upper is not None and lower is not None
    return Plates(upper, lower, body.axes)


def sacral_plate(above: Body, sacrum: Mask) -> Plates | None:
    """Return the upper end plate of S1: what of the sacrum faces the lower plate of the last vertebra.

    None if it is not there: the sacrum is cut off, or the body is another one's.
    """
    low = np.array([-above.size[0] / 2 - SACRUM_MM[1], -above.size[1] / 2, -above.size[2] / 2])
    high = np.array([-above.size[0] / 2 - SACRUM_MM[0], above.size[1] / 2, above.size[2] / 2])
    soft = resampled(sacrum, above.centre, above.axes, low, high, FINE_MM)
    inside = soft >= 0.5
    first = len(inside) - 1 - inside[::-1].argmax(axis=0)
    # A column that begins within the sacrum shows no plate.
    heights = np.where(inside.any(axis=0) & ~inside[-1], low[0] + FINE_MM * (first + 0.5), np.nan)
    depth, width = (low[axis] + FINE_MM * np.arange(soft.shape[axis]) for axis in (1, 2))
    if np.isfinite(heights).mean() < SACRUM_PART:
        return None
    plane = _plane(depth, width, heights, above.size[1:], above)
    return None if plane is None else Plates(plane, plane, above.axes)


def curves(plates: Mapping[int, Plates]) -> list[dict[str, Any]]:
    """Return the curves of a column.

    Parameters
    ----------
    plates : mapping of int to Plates
        By level, and the sacrum's.

    Returns
    -------
    list of dict
        One for each of `CURVES`: ``name``, ``angle_deg`` (None if it is not in view), ``upper`` and ``lower``: names of
        the levels at its ends, and ``note``: why there is no angle, a sentence, else None. Kyphosis, lordosis and a
        sacrum that slopes forwards are positive; a coronal curve is positive where it is convex to the patient's left.
    """
    order = [*from_top(plates), *([SACRUM] if SACRUM in plates else [])]
    lumbar_end = next((level for level in (SACRUM, L6, L5) if level in plates), L5)
    return [
        _sagittal("thoracic_kyphosis", plates, T4, T12, 1.0),
        _sagittal("lumbar_lordosis", plates, L1, lumbar_end, -1.0),
        _coronal(plates, [level for level in order if level != SACRUM]),
        _slope(plates),
    ]


def between(
    upper: int, lower: int | None, plates: Mapping[int, Plates], heights: Mapping[int, Heights]
) -> dict[str, Any]:
    """Return what lies between a body and the next one below it.

    Returns
    -------
    dict
        ``disc_angle_deg``: between the two plates in their sagittal plane, lordosis negative;
        ``disc_anterior_mm``, ``disc_middle_mm``, ``disc_posterior_mm``: distances of the plates;
        ``slip_mm``: how far the upper body lies in front of the lower one, at their posterior corners, and
        ``slip_percent`` of the lower plate's depth. None each where one of the two is not there.
    """
    known = all(level in plates and level in heights for level in (upper, lower))
    if lower is None or not known or not is_next(upper, lower):
        return dict.fromkeys(BETWEEN)
    first, second = plates[upper], plates[lower]
    up = first.lower.normal + second.upper.normal
    angle = _angle(first.lower.normal, second.upper.normal, axes_along(up, first.axes[1] + second.axes[1]))
    front, back = (list(PLACES).index(place) for place in ("anterior", "posterior"))
    above, below = heights[upper].points[:3, 1], heights[lower].points[:3, 0]
    gaps = (above - below) @ (up / np.linalg.norm(up))
    depth = below[back] - below[front]
    backwards = depth / np.linalg.norm(depth)
    slip = float((below[back] - above[back]) @ backwards)
    values = (angle, *gaps, slip, 100 * slip / float(np.linalg.norm(depth)))
    digits = (1, 1, 1, 1, 1, 0)
    return {
        name: round(float(value), digit) + 0.0 if np.isfinite(value) else None
        for name, value, digit in zip(BETWEEN, values, digits, strict=True)
    }


def _sagittal(name: str, plates: Mapping[int, Plates], first: int, last: int, sign: float) -> dict[str, Any]:
    missing = [level_name(level) for level in (first, last) if level not in plates]
    if missing:
        return _curve(name, None, first, last, f"{' and '.join(missing)} cannot be measured.")
    frame = _frame([plates[level] for level in plates if level != SACRUM and first <= level <= last])
    return _curve(name, sign * _angle(plates[first].upper.normal, plates[last].lower.normal, frame), first, last, None)


def _coronal(plates: Mapping[int, Plates], order: Sequence[int]) -> dict[str, Any]:
    """Return the largest angle between an upper plate and one of the lower plates below it."""
    if len(order) < SHORTEST_CURVE:
        return _curve("coronal_cobb", None, None, None, f"Fewer than {SHORTEST_CURVE} vertebrae can be measured.")
    frame = _frame([plates[level] for level in order])

    def tilt(plate: Plate) -> float:
        up, _, left = frame @ plate.normal
        return float(np.degrees(np.arctan2(left, up)))

    pairs = [pair for pair in combinations(range(len(order)), 2) if pair[1] - pair[0] >= SHORTEST_CURVE - 1]
    angles = {
        # The upper body leans to the right and the lower one to the left: the bodies between lie to the left.
        pair: tilt(plates[order[pair[1]]].lower) - tilt(plates[order[pair[0]]].upper)
        for pair in pairs
    }
    first, last = max(angles, key=lambda pair: abs(angles[pair]))
    return _curve("coronal_cobb", angles[first, last], order[first], order[last], None)


def _slope(plates: Mapping[int, Plates]) -> dict[str, Any]:
    if SACRUM not in plates:
        return _curve("sacral_slope", None, SACRUM, SACRUM, "The sacrum's upper end plate cannot be measured.")
    # Against the axial plane of the patient, who lies.
    normal = plates[SACRUM].upper.normal
    return _curve("sacral_slope", float(np.degrees(np.arctan2(-normal[1], normal[2]))), SACRUM, SACRUM, None)


def _curve(name: str, angle: float | None, first: int | None, last: int | None, note: str | None) -> dict[str, Any]:
    return {
        "name": name,
        # No negative zero.
        "angle_deg": None if angle is None else round(angle, 1) + 0.0,
        "upper": None if first is None else level_name(first),
        "lower": None if last is None else level_name(last),
        "note": note,
    }


def _frame(plates: Sequence[Plates]) -> np.ndarray:
    """Return the common axes of bodies: up, backwards and to the left, one a row."""
    up, back, _ = np.sum([each.axes for each in plates], axis=0)
    return axes_along(up, back)


def _angle(upper: np.ndarray, lower: np.ndarray, frame: np.ndarray) -> float:
    """Return the angle in degrees from one normal to another in the sagittal plane of a frame; kyphosis is positive."""
    (up_1, back_1, _), (up_2, back_2, _) = frame @ upper, frame @ lower
    return float(np.degrees(np.arctan2(back_2, up_2) - np.arctan2(back_1, up_1)))


def _plane(depth: np.ndarray, width: np.ndarray, heights: np.ndarray, size: np.ndarray, body: Body) -> Plate | None:
    """Return the plane of the inner part of a plate, given by its heights (depth, width) in a body's frame."""
    half = size / 2 * PLATE
    rows, columns = np.flatnonzero(np.abs(depth) <= half[0]), np.flatnonzero(np.abs(width) <= half[1])
    values = heights[np.ix_(rows, columns)].ravel()
    places = np.stack(np.meshgrid(depth[rows], width[columns], indexing="ij"), axis=-1).reshape(-1, 2)
    design = np.column_stack([np.ones(len(values)), places])
    use, fit = np.isfinite(values), np.zeros(3)
    for _ in range(2):
        if np.count_nonzero(use) < len(use) * SACRUM_PART:
            return None
        fit = np.linalg.lstsq(design[use], values[use], rcond=None)[0]
        away = np.abs(values - design @ fit)
        use = np.isfinite(values) & (away <= max(SPUR_MM, float(np.nanmedian(away))))
    normal = np.array([1.0, -fit[1], -fit[2]]) @ body.axes
    return Plate(body.centre + np.array([fit[0], 0.0, 0.0]) @ body.axes, normal / np.linalg.norm(normal))
