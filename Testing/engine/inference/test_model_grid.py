"""Grids in numbers: what is cropped, where a model's grid begins, how many voxels it has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.phantoms import rotation, spine_model

from segmamba.errors import InputError, ModelError
from segmamba.inference.model_grid import (
    Box,
    cropped_geometry,
    isotropic_geometry,
    isotropic_spacing,
    model_grid,
    with_coarser_grid,
)
from segmamba.io.volume import Geometry, Volume, corners
from segmamba.models.manifest import load_manifest

IDENTITY = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)
GEOMETRY = Geometry((30, 20, 10), (1.0, 2.0, 4.0), (100.0, -50.0, 7.0), IDENTITY)


def volume(*inside: tuple[int, int, int]) -> Volume:
    """Air, with water at some voxels (z, y, x)."""
    array = np.full(GEOMETRY.size[::-1], -1000, np.int16)
    for place in inside:
        array[place] = 0
    return Volume(array, GEOMETRY)


def preprocessing(**changes: object):
    return replace(spine_model().preprocessing, **({"spacing": (5.0, 5.0, 5.0), "crop_threshold": None} | changes))


def test_a_box_grows_on_all_sides() -> None:
    assert Box((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)).padded(10.0) == Box((-9.0, -8.0, -7.0), (14.0, 15.0, 16.0))


def test_a_box_has_eight_corners_in_homogeneous_coordinates() -> None:
    expected = {(x, y, z, 1.0) for x in (0, 1) for y in (2, 3) for z in (4, 5)}
    found = corners([0, 2, 4], [1, 3, 5])
    assert found.shape == (8, 4) and set(map(tuple, found.tolist())) == expected


def test_a_part_of_a_volume_begins_where_its_first_voxel_lies() -> None:
    turned = replace(GEOMETRY, direction=rotation(30, -10))
    part = cropped_geometry(turned, (slice(3, 5), slice(2, 9), slice(1, 30)))
    assert part.size == (29, 7, 2)
    assert (part.spacing, part.direction) == (turned.spacing, turned.direction)
    np.testing.assert_allclose(part.origin, (turned.affine @ [1, 2, 3, 1])[:3])


def test_a_whole_volume_is_covered_from_face_to_face_by_a_grid_around_its_middle() -> None:
    grid = model_grid(volume(), preprocessing())
    # Faces: x from 99.5 to 129.5, y from -51 to -11, z from 5 to 45 mm.
    assert grid.crop == (slice(0, 10), slice(0, 20), slice(0, 30))
    assert grid.geometry.size == (6, 8, 8)
    assert grid.geometry.spacing == (5.0, 5.0, 5.0)
    np.testing.assert_allclose(grid.geometry.origin, (102.0, -48.5, 7.5))
    assert grid.geometry.direction == IDENTITY
    assert grid.input is GEOMETRY and grid.roi is None


def test_a_grid_in_another_orientation_begins_at_the_other_end() -> None:
    grid = model_grid(volume(), preprocessing(orientation="RAS", spacing=(5.0, 4.0, 5.0)))
    assert grid.geometry.size == (6, 10, 8)
    np.testing.assert_allclose(grid.geometry.origin, (127.0, -13.0, 7.5))
    assert grid.geometry.direction == (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)


def test_axes_in_another_order_swap_the_sizes() -> None:
    grid = model_grid(volume(), preprocessing(orientation="SLP", spacing=(8.0, 5.0, 4.0)))
    assert grid.geometry.size == (5, 6, 10)
    assert grid.geometry.direction == (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(("length", "count"), [(30.02, 6), (30.1, 7), (29.0, 6), (0.5, 1)])
def test_less_than_a_hundredth_of_a_voxel_is_left_out(length: float, count: int) -> None:
    geometry = replace(GEOMETRY, size=(10, 20, 10), spacing=(length / 10, 2.0, 4.0))
    array = np.zeros(geometry.size[::-1], np.int16)
    assert model_grid(Volume(array, geometry), preprocessing()).geometry.size[0] == count


def test_the_body_is_cropped_with_ten_millimetres_around_in_whole_voxels() -> None:
    body = volume((4, 9, 14), (5, 10, 15), (6, 11, 16))
    grid = model_grid(body, preprocessing(crop_threshold=-500.0))
    # 10 mm are 3 voxels of 4 mm, 5 of 2 mm, 10 of 1 mm.
    assert grid.crop == (slice(1, 10), slice(4, 17), slice(4, 27))
    assert grid.geometry.size == (5, 6, 8)


def test_the_crop_ends_with_the_volume() -> None:
    grid = model_grid(volume((0, 0, 0), (9, 19, 29)), preprocessing(crop_threshold=-500.0))
    assert grid.crop == (slice(0, 10), slice(0, 20), slice(0, 30))


def test_only_what_is_above_the_threshold_is_body() -> None:
    with pytest.raises(InputError, match="nothing above 0, so there is no body in it: check that it is a CT"):
        model_grid(volume((5, 9, 14)), preprocessing(crop_threshold=0.0))


def test_a_region_of_interest_is_covered_with_what_the_network_sees_around_it() -> None:
    roi = Box((110.0, -31.0, 20.0), (115.0, -30.0, 21.0))
    grid = model_grid(volume(), preprocessing(), roi, context_mm=4.0)
    assert grid.roi is roi
    # x 106 to 119 is voxel 6 to 19, y -35 to -26 voxel 7.5 to 12, z 16 to 25 voxel 2.25 to 4.5.
    assert grid.crop == (slice(2, 6), slice(7, 13), slice(6, 20))
    assert grid.geometry.size == (3, 2, 2)
    middle = np.array(grid.geometry.origin) + (np.array(grid.geometry.size) - 1) / 2 * 5.0
    np.testing.assert_allclose(middle, (112.5, -30.5, 20.5))


def test_twenty_millimetres_around_a_region_are_seen_unless_told_otherwise() -> None:
    roi = Box((110.0, -31.0, 20.0), (115.0, -30.0, 21.0))
    assert model_grid(volume(), preprocessing(), roi) == model_grid(volume(), preprocessing(), roi, 20.0)
    assert model_grid(volume(), preprocessing(), roi) != model_grid(volume(), preprocessing(), roi, 10.0)


@pytest.mark.parametrize("shift", [(500.0, 0.0, 0.0), (0.0, 500.0, 0.0), (0.0, 0.0, -500.0)])
def test_a_region_beside_the_volume_is_refused(shift: tuple[float, float, float]) -> None:
    low, high = np.add((110.0, -31.0, 20.0), shift), np.add((115.0, -30.0, 21.0), shift)
    with pytest.raises(InputError, match="^The region of interest holds no part of the patient: move it over the anat"):
        model_grid(volume(), preprocessing(), Box(tuple(low), tuple(high)))


def test_a_region_that_only_touches_the_volume_is_beside_it() -> None:
    with pytest.raises(InputError, match="holds no part of the patient"):
        model_grid(volume(), preprocessing(), Box((130.0, -31.0, 20.0), (131.0, -30.0, 21.0)), context_mm=0.0)


@pytest.mark.parametrize("orientation", ["LPX", "LLS", "LP", ""])
def test_an_orientation_that_is_none_is_named(orientation: str) -> None:
    with pytest.raises(ModelError, match=f"orientation '{orientation}' is not one like LPS: correct its manifest"):
        model_grid(volume(), preprocessing(orientation=orientation))


def test_what_is_zero_in_all_channels_is_cropped_without_a_margin() -> None:
    first, second = (np.zeros(GEOMETRY.size[::-1], np.int16) for _ in range(2))
    first[4, 9, 14], second[6, 3, 15] = -5, 7
    alone, both = Volume(first, GEOMETRY), Volume(first, GEOMETRY, channels=(first, second))
    assert model_grid(alone, preprocessing(crop_nonzero=True)).crop == (slice(4, 5), slice(9, 10), slice(14, 15))
    assert model_grid(both, preprocessing(crop_nonzero=True)).crop == (slice(4, 7), slice(3, 10), slice(14, 16))
    with pytest.raises(InputError, match="nothing but zeros: check that it is the right volume"):
        model_grid(Volume(np.zeros_like(first), GEOMETRY), preprocessing(crop_nonzero=True))


def test_isotropic_voxels_are_as_small_as_the_smallest_but_not_below_half_a_millimetre() -> None:
    assert isotropic_spacing(GEOMETRY, "iso") == 1.0
    assert isotropic_spacing(replace(GEOMETRY, spacing=(3.0, 0.3, 2.0)), "iso") == 0.5
    assert isotropic_spacing(GEOMETRY, "0.25") == 0.25


def test_an_isotropic_grid_begins_at_the_outer_face_of_the_first_voxel() -> None:
    fine = isotropic_geometry(GEOMETRY, 3.0)
    # Faces: x from 99.5 to 129.5, y from -51 to -11, z from 5 to 45 mm.
    assert (fine.size, fine.spacing, fine.origin) == ((10, 14, 14), (3.0,) * 3, (101.0, -49.5, 6.5))
    turned = replace(GEOMETRY, direction=rotation(30, -10))
    assert isotropic_geometry(turned, 3.0).direction == turned.direction
    corner = (isotropic_geometry(turned, 3.0).affine @ [-0.5, -0.5, -0.5, 1.0])[:3]
    np.testing.assert_allclose(corner, (turned.affine @ [-0.5, -0.5, -0.5, 1.0])[:3])
    assert isotropic_geometry(replace(GEOMETRY, size=(1, 1, 1)), 500.0).size == (1, 1, 1)


def test_a_fast_run_has_a_coarser_grid_where_a_second_stage_follows() -> None:
    manifest = load_manifest()
    model = next(model for model in manifest.models if model.fine is not None)
    coarser = with_coarser_grid(model)
    assert coarser.preprocessing.spacing == pytest.approx([1.25 * step for step in model.preprocessing.spacing])
    assert replace(coarser, preprocessing=model.preprocessing) == model
    alone = replace(model, fine=None)
    assert with_coarser_grid(alone) is alone
