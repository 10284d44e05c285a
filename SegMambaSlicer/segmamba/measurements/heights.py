"""Heights of a vertebral body: at the front and the back of its middle, at its centre, and at its two sides.

The first three are the six points of vertebral morphometry (Genant et al. 1993), each pair on the two end plates. They
are read from the smooth end plates where these meet the walls of the body: a wedge has the ratio of its rims, and a
loss at a rim alone counts. The walls of a wedge lean against its axis, so that each plate has corners of its own, and
a height is the distance of two corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segmamba.measurements.end_plates import Surface
from segmamba.measurements.vertebral_body import FINE_MM, Body, Mask, resampled
from segmamba.utils.runs import runs_of

# Where the end plates are read: parts of the depth from the front, and of the width from the right. The sides are not
# read at the walls: processes of L5 and heads of ribs begin there.
PLACES = {
    "anterior": (0.0, 0.5),
    "middle": (0.5, 0.5),
    "posterior": (1.0, 0.5),
    "left": (0.5, 0.85),
    "right": (0.5, 0.15),
}
CORNER_PASSES = 3
# So far beyond its lines of voxels a plate may go on to rise, mm: the rims of bones do not.
RISING_MM = 2.0
# Standard deviation of a height of a perfect mask: where the walls are, and what the smooth surface does not follow.
FLOOR_MM = 0.25
# Standard deviation of a wall's position where it meets a plate, mm.
WALL_MM = 0.6
# Where a whole body is solid: in this part of its depth and width, and so far from its end plates, mm.
WHOLE, WITHIN_MM = 0.85, 2.0
CENTRE = (0.0, 0.0)
# A plate reaches so far above or below its height at the centre, mm, at most.
BEYOND_MM = 8.0


@dataclass(frozen=True, eq=False)
class Heights:
    """Heights of a body at each of `PLACES`, in its order.

    Attributes
    ----------
    mm : ndarray (5,)
        In mm.
    sd : ndarray (5,)
        Their standard deviations in mm, from the size and direction of the mask's voxels and its roughness.
    points : ndarray (5, 2, 3)
        The points on the upper and on the lower end plate, LPS mm.
    torn : float
        The part of the body that the mask does not fill, that is ragged, or that is a piece of its own, see `torn`.
    """

    mm: np.ndarray
    sd: np.ndarray
    points: np.ndarray
    torn: float

    def at(self, place: str) -> float | None:
        """Return the height at one of `PLACES`, in mm to two decimals; None where there is none."""
        height = float(self.mm[list(PLACES).index(place)])
        return round(height, 2) if np.isfinite(height) else None


def heights_of(body: Body, plates: tuple[Surface, Surface], mask: Mask) -> Heights:
    """Measure the heights of a body in a mask between its end plates, the upper one first."""
    points, variances = np.empty((len(PLACES), 2, 3)), np.full(len(PLACES), FLOOR_MM**2)
    deep, wide = np.array(list(PLACES.values())).T
    for side, plate in enumerate(plates):
        front, back = corners_of(body, plate)
        at = front + deep * (back - front), (wide - 0.5) * body.size[2]
        points[:, side] = body.centre + np.stack([plate.height(*at), *at], axis=1) @ body.axes
        variances += plate.variance(*at)
        # Where a plate is steep at its rim, as after a loss there, a height is as uncertain as the wall.
        ahead, behind = (plate.height(at[0] + step, at[1]) for step in (WALL_MM, -WALL_MM))
        variances += np.where((deep == 0) | (deep == 1), ((ahead - behind) / 2) ** 2, 0.0)
    mm = np.linalg.norm(points[:, 0] - points[:, 1], axis=1)
    return Heights(mm, np.sqrt(variances), points, torn(body, plates, mask))


def torn(body: Body, plates: tuple[Surface, Surface], mask: Mask) -> float:
    """Return the largest of: the part of a body that is not filled, that of a plate that is ragged, and the pieces.

    The last is the size of the second largest piece of the body, as a part of the largest one. An arch that is apart
    from its body, as in lysis or where slices are thick, tears nothing.
    """
    # No body is much narrower than it is deep: what seems so has holes at its sides.
    half = np.array([body.size[1], max(body.size[1], body.size[2])]) / 2 * WHOLE
    low, high = plates[1].height(*CENTRE) + WITHIN_MM, plates[0].height(*CENTRE) - WITHIN_MM
    corner = np.array([min(low, high) - BEYOND_MM, *-half])
    filled = resampled(mask, body.centre, body.axes, corner, np.array([max(low, high) + BEYOND_MM, *half]), FINE_MM)
    up, depth, width = (corner[axis] + FINE_MM * np.arange(filled.shape[axis]) for axis in range(3))
    inner = (depth[:, None] / half[0]) ** 2 + (width / half[1]) ** 2 <= 1
    upper, lower = (plate.height(depth[:, None], width) for plate in plates)
    between = inner & (up[:, None, None] <= upper - WITHIN_MM) & (up[:, None, None] >= lower + WITHIN_MM)
    solid = filled >= 0.5
    empty = 1 - float(solid[between].mean()) if between.any() else 0.0
    sizes = np.sort(runs_of(solid & inner, corners=True).sizes)
    piece = float(sizes[-2] / sizes[-1]) if len(sizes) > 1 else 0.0
    return max(empty, *(plate.ragged for plate in plates), piece)


def corners_of(body: Body, plate: Surface) -> tuple[float, float]:
    """Return where an end plate meets the front and the back wall, mm posterior of the body's centre.

    Beside a deep hollow plate and wall rise without end: there the corner is where the bone ends.
    """
    corners = np.array([-0.5, 0.5]) * body.size[1]
    for _ in range(CORNER_PASSES):
        corners = body.walls[:, 0] + body.walls[:, 1] * plate.height(corners, 0.0)
    ends = np.clip(corners, plate.span[0] - RISING_MM, plate.span[1] + RISING_MM)
    rises = plate.sign * (plate.height(corners, 0.0) - plate.height(ends, 0.0)) > 0
    front, back = np.where(rises, ends, corners)
    return float(front), float(back)
