"""The shape model's parts in numbers: distances, poses, grids, one step of a fit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.modelled_spine import distance_at

from segmamba.errors import ModelError
from segmamba.spine.frames import Frame
from segmamba.spine.shape_model import (
    GRID,
    REGIONS,
    ShapeModel,
    _box,
    _gauss_newton_step,
    _in_box,
    apply_pose,
    fit,
    grid_points,
    interpolate,
    load_shapes,
    region_of,
    signed_distance,
    without_modes,
)

FRAME = Frame(np.array([10.0, 20.0, 30.0]), np.eye(3), 1.5)
HALF = np.array([20.0, 30.0, 25.0])


def cube() -> np.ndarray:
    mask = np.zeros((12, 13, 14), bool)
    mask[4:8, 4:9, 5:9] = True
    return mask


def test_every_level_is_in_the_region_of_its_neighbours() -> None:
    expected = [0, 1, *[2] * 5, *[3] * 6, *[4] * 6, *[5] * 6]
    assert [region_of(level) for level in range(1, 26)] == expected
    assert len(REGIONS) == 6


def test_distances_are_half_a_voxel_at_the_surface_and_negative_inside() -> None:
    signed = signed_distance(cube(), 2.0)
    assert signed.dtype == np.float32
    assert signed[4, 6, 7] == -1.0 and signed[5, 6, 7] == -3.0
    assert signed[3, 6, 7] == 1.0 and signed[0, 6, 7] == 7.0
    assert signed[0, 0, 7] == pytest.approx(2 * np.hypot(4, 4) - 1)
    assert np.array_equal(signed < 0, cube())


def test_a_box_holds_a_mask_and_what_is_around_it_within_the_volume() -> None:
    assert _box(cube(), 2.0, 4.0) == (slice(2, 10), slice(2, 11), slice(3, 11))
    assert _box(cube(), 2.0, 3.0) == (slice(2, 10), slice(2, 11), slice(3, 11))
    assert _box(cube(), 1.0, 100.0) == (slice(0, 12), slice(0, 13), slice(0, 14))
    assert _box(cube(), 1.0, 0.0) == (slice(4, 8), slice(4, 9), slice(5, 9))


def test_a_regions_grid_goes_from_end_to_end_of_its_extent() -> None:
    points = grid_points(HALF)
    assert points.shape == (*GRID, 3)
    np.testing.assert_allclose(points[0, 0, 0], -HALF)
    np.testing.assert_allclose(points[-1, -1, -1], HALF)
    np.testing.assert_allclose(points[-1, 0, 0], HALF * (1, -1, -1))
    np.testing.assert_allclose(points[1, 0, 0] - points[0, 0, 0], (2 * 20 / (GRID[0] - 1), 0, 0))


def test_values_between_voxels_are_linear_and_outside_those_at_the_border() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    places = np.array([[0.5, 1.0, 2.0], [0.0, 0.0, 0.25], [-5.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    np.testing.assert_allclose(interpolate(values, places), [12.0, 0.25, 0.0, 23.0])


def test_beyond_its_grid_a_distance_is_that_at_the_border_and_the_way_there() -> None:
    shape = grid_points(HALF)[..., 0].copy()
    local = np.array([[0, 0, 0], [7, -3, 4], [23, 34, 0], [-20, 0, -37]])
    corner, size = np.array([-20, -34, -37]), (44, 69, 42)
    distance = _in_box(shape, HALF, Frame(np.zeros(3), np.eye(3), 1.0), corner, size, 1.0)
    np.testing.assert_allclose(distance[tuple((local - corner).T)], [0.0, 7.0, 20.0 + 5.0, -20.0 + 12.0], atol=1e-9)


def test_a_frame_is_shifted_along_its_own_axes_in_its_own_millimetres() -> None:
    turned = apply_pose(FRAME, [0, 0, 0, np.pi / 2, 0, 0, 0])
    shifted = apply_pose(turned, [0, 2.0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(shifted.centre, FRAME.centre + 1.5 * 2.0 * turned.axes[1], atol=1e-12)
    np.testing.assert_allclose(shifted.axes, turned.axes)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_turn_is_about_a_frames_own_axis_by_the_right_hand_rule_of_its_numbers(axis: int) -> None:
    pose = np.zeros(7)
    pose[3 + axis] = np.pi / 2
    axes = apply_pose(FRAME, pose).axes
    following, last = (axis + 1) % 3, (axis + 2) % 3
    np.testing.assert_allclose(axes[axis], np.eye(3)[axis], atol=1e-12)
    np.testing.assert_allclose(axes[following], np.eye(3)[last], atol=1e-12)
    np.testing.assert_allclose(axes[last], -np.eye(3)[following], atol=1e-12)


def test_a_turn_keeps_right_angles_and_growth_is_a_logarithm() -> None:
    frame = apply_pose(FRAME, [0, 0, 0, 0.3, -0.2, 0.5, np.log(2)])
    np.testing.assert_allclose(frame.axes @ frame.axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(frame.axes) == pytest.approx(1)
    assert frame.scale == pytest.approx(3.0)
    np.testing.assert_array_equal(frame.centre, FRAME.centre)


def test_a_model_without_modes_keeps_its_means() -> None:
    model = ShapeModel(np.zeros((25, *GRID)), tuple(np.ones((2, *GRID)) for _ in REGIONS), np.ones((6, 3)))
    plain = without_modes(model)
    assert all(modes.shape == (0, *GRID) for modes in plain.modes)
    assert plain.means is model.means and plain.half_extents is model.half_extents


def ellipsoid(points: np.ndarray, axes: tuple[float, float, float] = (9.0, 14.0, 11.0)) -> np.ndarray:
    """About the signed distance of an ellipsoid at local points."""
    radius = np.linalg.norm(points / np.array(axes), axis=-1)
    return (radius - 1) * np.linalg.norm(points, axis=-1) / np.maximum(radius, 1e-6)


@pytest.mark.parametrize("part", range(7))
def test_one_gauss_newton_step_goes_most_of_the_way_to_a_pose_near_by(part: int) -> None:
    points = grid_points(HALF)
    pose = np.zeros(7)
    pose[part] = (1.0, 1.0, 1.0, 0.05, 0.05, 0.05, 0.04)[part]
    frame = apply_pose(Frame(np.zeros(3), np.eye(3), 1.0), pose)
    world = points
    target = np.clip(ellipsoid(frame.to_local(world)) * frame.scale, -10, 10)
    shape = np.clip(ellipsoid(points), -10, 10)
    change, weights = _gauss_newton_step(target, shape, np.zeros((0, *GRID)), np.zeros(0), points)
    assert weights.shape == (0,)
    assert change[part] == pytest.approx(pose[part], rel=0.35)
    others = np.delete(change / (6, 6, 6, 0.2, 0.2, 0.2, 0.1), part)
    assert np.abs(others).max() < 0.1


def test_one_gauss_newton_step_finds_how_much_of_a_mode_there_is_and_holds_back_what_is_unlikely() -> None:
    points = grid_points(HALF)
    mode = (2.0 * np.cos(points[..., 1] / 5))[None]
    shape = np.clip(ellipsoid(points), -10, 10)
    none, twice = np.zeros(1), np.array([2.0])
    assert _gauss_newton_step(shape + 0.5 * mode[0], shape, mode, none, points)[1] == pytest.approx([0.5], rel=0.2)
    # What is there already counts: the model as it is, with a weight that is not needed, is drawn back a little.
    assert -0.5 < _gauss_newton_step(shape, shape, mode, twice, points)[1][0] < 0


def test_a_fit_recovers_pose_size_and_shape_of_a_known_body() -> None:
    points = grid_points(HALF)
    means = np.stack([np.clip(ellipsoid(points), -10, 10)] * 25)
    modes = tuple((1.0 * np.clip(points[..., 1] / 10, -1, 1) ** 2)[None] for _ in REGIONS)
    model = ShapeModel(means, modes, np.stack([HALF] * 6))
    spacing, truth = 1.5, apply_pose(Frame(np.array([40.0, 42.0, 38.0]), np.eye(3), 1.1), [0, 0, 0, 0.1, 0.05, -0.1, 0])
    places = np.moveaxis(np.indices((54, 56, 52)), 0, -1) * spacing
    mask = distance_at(means[0] + modes[0][0], HALF, truth.to_local(places)) < 0
    start = apply_pose(truth, [2.0, -2.0, 1.5, 0.05, -0.05, 0.05, 0.05])
    found = fit(mask, 21, model, start, spacing)
    assert found.dice > 0.96
    np.testing.assert_allclose(found.frame.centre, truth.centre, atol=0.5)
    assert found.frame.scale == pytest.approx(1.1, rel=0.06)
    assert found.box == _box(mask, spacing, 12.0)
    assert found.distance.shape == mask[found.box].shape
    wrong = (found.distance < 0) != mask[found.box]
    assert np.abs(signed_distance(mask, spacing)[found.box][wrong]).max() < 1.6
    far = fit(mask, 21, without_modes(model), start, spacing)
    assert far.dice < found.dice


def test_files_that_are_no_shape_model_of_this_version_are_told_apart(tmp_path) -> None:
    from safetensors.numpy import save_file

    regions = range(len(REGIONS))
    parts = {f"modes{number}": np.ones((1, *GRID), np.int8) for number in regions}
    parts |= {f"steps{number}": np.full(1, 0.5, np.float32) for number in regions}
    whole = parts | {"means": np.full((25, *GRID), 127, np.int8), "halves": np.ones((6, 3), np.float32)}
    save_file(whole, tmp_path / "good")
    model = load_shapes(tmp_path / "good")
    assert model.means.max() == pytest.approx(10.0) and model.means.dtype == np.float32
    assert model.modes[5][0, 0, 0, 0] == 0.5 and model.half_extents.dtype == float
    for name, value in (("means", whole["means"][:24]), ("halves", whole["halves"][:5])):
        save_file(whole | {name: np.ascontiguousarray(value)}, tmp_path / "other")
        with pytest.raises(ModelError, match="of another version: install the software again"):
            load_shapes(tmp_path / "other")
    for name in ("means", "halves", "modes5", "steps0"):
        save_file({key: value for key, value in whole.items() if key != name}, tmp_path / "lacking")
        with pytest.raises(ModelError, match="is not a shape model .*install the software again"):
            load_shapes(tmp_path / "lacking")
