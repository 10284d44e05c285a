"""End plates between voxels: finer than slices are thick where they cross some, and honest where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.measured_spine import Vertebra, painted, turned

from segmamba.io.volume import Geometry
from segmamba.measurements.end_plates import end_plates
from segmamba.measurements.heights import Heights, heights_of
from segmamba.measurements.vertebral_body import Mask, find_body

SLICE_MM = 5.0
STRAIGHT = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)
UP = np.array([0.0, 0.0, 1.0])


def in_thick_slices(axes: np.ndarray, offset: float = 0.0) -> Mask:
    """Return the mask of a vertebra of 26 mm in slices of 5 mm that begin at an offset."""
    geometry = Geometry((130, 140, 18), (0.8, 0.8, SLICE_MM), (-52.0, -40.0, -42.0 + offset), STRAIGHT)
    return Mask(painted({20: Vertebra((0, 0, 0), axes)}, geometry)[0] == 20, geometry.affine)


def measured(mask: Mask) -> Heights:
    body = find_body(mask, UP)
    plates = None if body is None else end_plates(body, mask)
    assert body is not None and plates is not None
    return heights_of(body, plates, mask)


@pytest.mark.parametrize("offset", [0.0, 1.7, 3.1])
def test_a_plate_that_crosses_slices_is_placed_between_them(offset: float) -> None:
    heights = measured(in_thick_slices(turned(14, 9), offset))
    assert heights.mm == pytest.approx([26.0] * 5, abs=SLICE_MM / 10)
    assert (heights.sd < SLICE_MM / 2).all()


def test_a_plate_along_a_slice_says_that_nothing_places_it() -> None:
    along, across = measured(in_thick_slices(turned())), measured(in_thick_slices(turned(14, 9)))
    assert along.sd[1] > 1.5 * across.sd[1]
    assert (np.abs(along.mm - 26.0) <= 2 * along.sd).all()


def test_a_spur_does_not_lift_a_plate() -> None:
    geometry = Geometry((104, 112, 80), (1.0, 1.0, 1.0), (-52.3, -40.2, -40.1), STRAIGHT)
    labels, _ = painted({20: Vertebra((0, 0, 0), turned())}, geometry)
    plain = measured(Mask(labels == 20, geometry.affine))
    # 5 mm high, 4 mm deep, 6 mm wide, at the front rim.
    labels[52:58, 26:30, 49:55] = 20
    spurred = measured(Mask(labels == 20, geometry.affine))
    assert spurred.mm == pytest.approx(plain.mm, abs=1.2)
    assert spurred.mm[1:] == pytest.approx(plain.mm[1:], abs=0.3)
