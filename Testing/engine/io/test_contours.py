"""Outlines of masks: exactly the voxels of the mask have their centres inside, holes and all."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.rasterize import filled
from scipy import ndimage

from segmamba.io.contours import outlines

CROSS = ndimage.generate_binary_structure(2, 1)


def area(ring: np.ndarray) -> float:
    x, y = ring.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


@pytest.mark.parametrize("density", [0.1, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_any_mask_comes_back(density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((17, 23)) < density
    np.testing.assert_array_equal(filled(outlines(mask), mask.shape), mask)


def test_rings_in_rings_and_several_holes_come_back() -> None:
    mask = np.zeros((30, 40), bool)
    for thick, box in ((True, (2, 28)), (False, (5, 25)), (True, (8, 22)), (False, (11, 19)), (True, (14, 16))):
        mask[box[0] : box[1], box[0] : box[1]] = thick
    mask[3:27, 29:38] = True
    mask[5:25:4, 30:37:3] = False
    rings = outlines(mask)
    np.testing.assert_array_equal(filled(rings, mask.shape), mask)
    # One polygon a region, whatever is cut out of it.
    assert len(rings) == ndimage.label(mask)[1] == 4
    holes = ndimage.label(~mask, CROSS)[1] - 1
    # Each corner of a region is cut off by an eighth of a voxel: four more are convex than concave.
    assert sum(map(area, rings)) == mask.sum() - 0.5 * len(rings) + 0.5 * holes


def test_a_channel_passes_no_centre() -> None:
    mask = np.ones((15, 15), bool)
    mask[7, 9] = mask[4:6, 3] = False
    (ring,) = outlines(mask)
    ends = np.roll(ring, -1, axis=0)
    k = np.linspace(0, 1, 200)[:, None, None]
    points = (ring * (1 - k) + ends * k).reshape(-1, 2)
    assert np.linalg.norm(points - np.rint(points), axis=1).min() > 0.35


def test_straight_lines_have_no_points_within() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:17, 4:26] = True
    (ring,) = outlines(mask)
    assert len(ring) == 8


def test_nothing_has_no_outline() -> None:
    assert outlines(np.zeros((4, 5), bool)) == []
