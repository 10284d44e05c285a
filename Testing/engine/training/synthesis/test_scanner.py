"""What a scanner does to an image: nothing moves, and constants stay what they are."""

from __future__ import annotations

import pytest
import torch

from segmamba.training.synthesis.scanner import blur, surface, thick_slices


def test_blur_keeps_the_shape_and_the_sum() -> None:
    image = torch.zeros(15, 13, 11)
    image[7, 6, 5] = 1.0
    blurred = blur(image, 0.8)
    assert blurred.shape == image.shape
    assert blurred.sum() == pytest.approx(1.0, abs=1e-5)
    assert 0 < blurred[7, 6, 5] < 0.3
    assert blurred[7, 6, 6] == pytest.approx(float(blurred[7, 5, 5]))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [2, 3])
def test_thick_slices_keep_the_shape_and_smooth_one_axis_only(axis: int, factor: int) -> None:
    ramp = torch.arange(12.0)
    shape = [12, 12, 12]
    along = ramp.view([-1 if i == axis else 1 for i in range(3)]).expand(shape)
    across = ramp.view([-1 if i == (axis + 1) % 3 else 1 for i in range(3)]).expand(shape)
    assert torch.allclose(thick_slices(across, axis, factor), across)
    thick = thick_slices(along, axis, factor)
    assert thick.shape == along.shape
    assert torch.allclose(thick.narrow(axis, 3, 6), along.narrow(axis, 3, 6))  # a ramp stays one but at its ends
    assert not torch.allclose(thick, along)
    assert thick_slices(torch.ones(7, 8, 9), axis, factor).shape == (7, 8, 9)


@pytest.mark.parametrize("size", [15, 16, 17])
def test_thick_slices_leave_an_edge_where_it_is(size: int) -> None:
    edge = torch.zeros(size, 2, 2)
    edge[12:] = 1.0  # on a border between slices of two and of three voxels
    thick = thick_slices(edge, 0, 3)
    assert torch.equal(thick > 0.5, edge > 0.5)


def test_the_surface_is_on_both_sides_of_a_change_of_code() -> None:
    tissues = torch.full((6, 6, 6), 20, dtype=torch.uint8)
    tissues[4:] = 255
    expected = torch.zeros(6, 6, 6, dtype=torch.bool)
    expected[3:5] = True
    assert torch.equal(surface(tissues), expected)
    tissues[0, 0, 0] = 21
    expected[:2, :2, :2] = True
    assert torch.equal(surface(tissues), expected)
