"""The way to the model's grid and back on small volumes: every voxel against a formula or a second method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.phantoms import positions, rotation, spine_model
from scipy import ndimage

from segmamba.inference import preprocess, resample_back
from segmamba.inference.model_grid import Box, ModelGrid
from segmamba.inference.preprocess import bright_mean, intensity_range, padding_values, resolve
from segmamba.inference.resample_back import resample_to_input
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import IntensityNormalization

IDENTITY = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)
AS_IT_IS = IntensityNormalization("clip", -1e6, 1e6, 0.0, 1.0)
FWHM_SQUARED = 8 * np.log(2)


def volume_of(geometry: Geometry, formula: Callable[[np.ndarray], np.ndarray]) -> Volume:
    """Return a volume with a formula of the position (x, y, z) in each voxel."""
    return Volume(formula(np.moveaxis(positions(geometry), -1, 0)).astype(np.float32), geometry)


def model_of(*channels: IntensityNormalization, **changes: object):
    return spine_model(normalization=channels or (AS_IT_IS,), **({"crop_threshold": None} | changes))


def inner(array: np.ndarray, margin: int) -> np.ndarray:
    return array[(..., *(slice(margin, -margin),) * 3)]


def centre_of(array: np.ndarray) -> float:
    """Return the middle voxel of one channel with an odd number of voxels along each axis."""
    return float(array[tuple(size // 2 for size in array.shape)])


# To the model's grid.


def ramp(position: np.ndarray) -> np.ndarray:
    x, y, z = position
    return 10 * x - 20 * y + 30 * z + 500


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("orientation", ["LPS", "RAI"])
def test_each_voxel_of_the_input_has_the_intensity_of_its_place_in_each_channel(
    interpolation: str, orientation: str
) -> None:
    geometry = Geometry((14, 15, 16), (1.0, 1.2, 1.4), (-3.0, 4.0, 50.0), rotation(10, -15))
    channels = (
        IntensityNormalization("clip", -4000.0, 9000.0, 300.0, 50.0),
        IntensityNormalization("clip", -9000.0, 4000.0, -20.0, 10.0),
    )
    model = model_of(*channels, interpolation=interpolation, orientation=orientation, spacing=(0.9, 1.0, 1.1))
    image, grid = preprocess.resample_to_model(volume_of(geometry, ramp), model)
    assert image.dtype == np.float32 and image.shape == (2, *grid.geometry.size[::-1])
    expected = ramp(np.moveaxis(positions(grid.geometry), -1, 0))
    # In the middle, where no neighbour lies outside the volume.
    middle = (slice(9, -9),) * 3
    for values, channel in zip(image, channels, strict=True):
        np.testing.assert_allclose(values[middle] * channel.std + channel.mean, expected[middle], rtol=1e-3)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_a_part_of_the_volume_is_resampled_where_it_lies(interpolation: str) -> None:
    volume = volume_of(Geometry((20, 20, 20), (1.0, 1.0, 1.0), (5.0, 6.0, 7.0), IDENTITY), ramp)
    volume.array[:6] = 0
    model = model_of(interpolation=interpolation, spacing=(0.5, 0.5, 0.5), crop_nonzero=True)
    image, grid = preprocess.resample_to_model(volume, model)
    assert grid.crop[0] == slice(6, 20)
    expected = ramp(np.moveaxis(positions(grid.geometry), -1, 0))
    np.testing.assert_allclose(inner(image[0], 8), inner(expected, 8), rtol=1e-3)


@pytest.mark.parametrize("context", [2.0, 4.0])
def test_the_network_sees_as_much_around_the_region_as_it_is_told(context: float) -> None:
    volume = volume_of(Geometry((30, 30, 30), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY), ramp)
    roi = Box((10.0, 10.0, 10.0), (20.0, 20.0, 20.0))
    image, grid = preprocess.resample_to_model(volume, model_of(spacing=(1.0, 1.0, 1.0)), roi, context)
    assert image.shape[1:] == (int(10 + 2 * context),) * 3 and grid.roi == roi


@pytest.mark.parametrize(
    ("interpolation", "fill", "expected"),
    [("linear", -2000.0, -10.0), ("linear", 9e9, 20.0), ("linear", 40.0, 4.0), ("cubic", -2000.0, -10.0)],
)
def test_outside_the_volume_lies_the_filler_within_the_channels_limits(
    interpolation: str, fill: float, expected: float
) -> None:
    turned = Geometry((9, 9, 9), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), rotation(40, 40))
    volume = volume_of(turned, lambda position: np.full(position.shape[1:], 100.0))
    channel, spacing = IntensityNormalization("clip", -100.0, 200.0, 0.0, 10.0), (1.0, 1.0, 1.0)
    model = model_of(channel, interpolation=interpolation, fill_value=fill, spacing=spacing)
    image, _ = preprocess.resample_to_model(volume, model)
    assert image[0, 0, 0, 0] == pytest.approx(expected)
    assert centre_of(image[0]) == pytest.approx(10.0, rel=1e-3)


def test_cubic_channels_of_other_kinds_are_measured_before_resampling() -> None:
    volume = volume_of(Geometry((8, 8, 8), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY), lambda p: p[0] + 1)
    model = model_of(IntensityNormalization("percentile", 0.0, 100.0), interpolation="cubic", spacing=(1.0, 1.0, 1.0))
    image, _ = preprocess.resample_to_model(volume, model)
    along_x = (np.arange(8) - 3.5) / np.arange(8).std()
    np.testing.assert_allclose(inner(image[0], 2), np.broadcast_to(along_x[2:-2], (4, 4, 4)), atol=1e-3)


# Smoothing against aliasing: it adds its variance to a parabola, everywhere.


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("spacing", "size"),
    [
        pytest.param((0.5, 0.6, 0.7), (31, 31, 31), id="gaussian"),
        pytest.param((0.04, 2.5, 0.9), (401, 7, 27), id="averaged in blocks"),
        pytest.param((0.9, 0.05, 2.5), (27, 321, 7), id="averaged in blocks along another axis"),
    ],
)
def test_smoothing_widens_a_voxel_to_the_models(
    axis: int, spacing: tuple[float, float, float], size: tuple[int, int, int]
) -> None:
    middle = [-(count - 1) / 2 * step for count, step in zip(size, spacing, strict=True)]
    volume = volume_of(Geometry(size, spacing, (middle[0], middle[1], middle[2]), IDENTITY), lambda p: p[axis] ** 2)
    # An odd number of the model's voxels, so that one lies at 0.
    widths = [count * step / (2 * round(count * step / 4) + 1) for count, step in zip(size, spacing, strict=True)]
    image, grid = preprocess.resample_to_model(volume, model_of(spacing=tuple(widths)))
    assert all(count % 2 for count in grid.geometry.size)
    variance = max(0.0, widths[axis] ** 2 - spacing[axis] ** 2) / FWHM_SQUARED
    assert centre_of(image[0]) == pytest.approx(variance, rel=0.06, abs=0.004)


def test_smoothing_along_an_oblique_axis_is_that_of_the_models_spacings_by_their_share() -> None:
    size, spacing, widths = (41, 41, 41), (0.5, 0.5, 0.5), (1.2, 3.0, 2.0)
    direction = np.reshape(rotation(35, 20), (3, 3))
    middle = tuple((direction @ [-10.0, -10.0, -10.0]).tolist())
    for axis in range(3):
        along = direction[:, axis]
        volume = volume_of(
            Geometry(size, spacing, middle, tuple(direction.ravel())),
            lambda p, along=along: np.tensordot(along, p, 1) ** 2,
        )
        image, grid = preprocess.resample_to_model(volume, model_of(spacing=widths))
        width_squared = (along**2 * np.square(widths)).sum()
        expected = (width_squared - 0.25) / FWHM_SQUARED
        place = np.argmin((positions(grid.geometry) ** 2).sum(-1))
        point = positions(grid.geometry).reshape(-1, 3)[place]
        assert image[0].ravel()[place] - (along @ point) ** 2 == pytest.approx(expected, rel=0.08, abs=0.04)


def test_nothing_is_smoothed_for_a_finer_grid() -> None:
    geometry = Geometry((7, 7, 7), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    noise = np.random.default_rng(1).normal(size=(7, 7, 7)).astype(np.float32)
    image, _ = preprocess.resample_to_model(Volume(noise, geometry), model_of(spacing=(1.0, 1.0, 1.0)))
    np.testing.assert_allclose(image[0], noise, atol=1e-6)


# Channels.


def test_the_intensities_that_matter_are_those_of_all_channels() -> None:
    windows = (
        IntensityNormalization("clip", -1000.0, 300.0, 0.0, 1.0),
        IntensityNormalization("clip", -150.0, 450.0, 0.0, 1.0),
    )
    assert intensity_range(model_of(*windows).preprocessing) == (-1000.0, 450.0)
    low, high = intensity_range(model_of(windows[0], IntensityNormalization("percentile", 1.0, 99.0)).preprocessing)
    assert low == -high and high == np.finfo(np.float32).max


def test_a_relative_channel_is_in_units_of_the_bright_voxels_mean() -> None:
    array = np.array([0.0, 0.0, 10.0, 30.0]).reshape(1, 2, 2)  # mean 10: only 30 is brighter
    assert bright_mean(array) == 30.0
    resolved = resolve(IntensityNormalization("relative", -0.5, 2.0, 0.25, 0.5), torch.from_numpy(array))
    assert resolved == IntensityNormalization("clip", -15.0, 60.0, 7.5, 15.0)


def test_the_unit_of_a_constant_volume_is_one_and_a_unit_of_noise_is_not_divided_by() -> None:
    assert bright_mean(np.full((2, 2, 2), 7.0)) == 1.0
    assert bright_mean(np.array([-3.0, -1.0])) == 1e-6


def test_a_clip_channel_is_what_it_is() -> None:
    channel = IntensityNormalization("clip", 1.0, 2.0, 3.0, 4.0)
    assert resolve(channel, torch.zeros(2, 2, 2)) == channel


def test_a_percentile_channel_clips_at_percentiles_and_has_the_clipped_volumes_moments() -> None:
    array = np.concatenate([np.zeros(50), np.arange(1.0, 102.0), np.zeros(9)]).reshape(4, 4, 10)
    resolved = resolve(IntensityNormalization("percentile", 10.0, 80.0), torch.from_numpy(array))
    clipped = np.clip(array, 11.0, 81.0)
    assert resolved.scheme == "clip"
    assert (resolved.low, resolved.high) == (pytest.approx(11.0), pytest.approx(81.0))
    assert (resolved.mean, resolved.std) == (pytest.approx(clipped.mean()), pytest.approx(clipped.std()))


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_flat_volume_has_a_percentile_channel_that_makes_zeros(value: float) -> None:
    flat = torch.full((3, 3, 3), value)
    assert resolve(IntensityNormalization("percentile", 1.0, 99.0), flat) == IntensityNormalization(
        "clip", value, value, value, 1.0
    )


def test_outside_of_a_channel_without_fixed_limits_lies_its_lowest_value() -> None:
    image = torch.arange(16.0).reshape(2, 2, 2, 2)
    model = model_of(
        IntensityNormalization("percentile", 1.0, 99.0),
        IntensityNormalization("clip", -100.0, 100.0, 50.0, 25.0),
        fill_value=75.0,
    )
    assert padding_values(model, image) == (0.0, 1.0)


# And back.

MODEL_GRID = Geometry((11, 12, 13), (2.0, 2.2, 2.4), (-11.0, -12.1, -14.4), IDENTITY)
VALUES = (0, 20, 21, 22, 23)


def inside_model(spacing: tuple[float, float, float], size: tuple[int, int, int], direction=IDENTITY) -> ModelGrid:
    """Return a volume around 0, where the model's grid has its middle."""
    middle = np.reshape(direction, (3, 3)) @ ((np.array(size) - 1) / 2 * spacing)
    x, y, z = (-middle).tolist()
    crop = (slice(0, size[2]), slice(0, size[1]), slice(0, size[0]))
    return ModelGrid(MODEL_GRID, Geometry(size, spacing, (x, y, z), direction), crop)


def random_probabilities(seed: int = 0, classes: int = len(VALUES)) -> torch.Tensor:
    """Return a network's answer that changes from voxel to voxel; the last class is nowhere."""
    scores = np.random.default_rng(seed).normal(scale=4.0, size=(classes, *MODEL_GRID.size[::-1]))
    scores[-1] = -np.inf
    return torch.from_numpy(scores).softmax(0)


def reference(probabilities: torch.Tensor, grid: ModelGrid) -> np.ndarray:
    """Return the classes' probabilities at the volume's voxels, interpolated by SciPy: shape (classes, z, y, x)."""
    to_model = np.linalg.inv(grid.geometry.affine)
    indices = positions(grid.input) @ to_model[:3, :3].T + to_model[:3, 3]
    places = np.moveaxis(indices[..., ::-1], -1, 0)
    return np.stack([ndimage.map_coordinates(p, places, order=1, mode="nearest") for p in probabilities.numpy()])


def check(labels: np.ndarray, confidence: np.ndarray, expected: np.ndarray) -> None:
    """Compare with interpolated probabilities wherever one class is clearly ahead."""
    best, second = np.sort(expected, axis=0)[[-1, -2]]
    clear = best - second > 0.002
    assert clear.mean() > 0.9
    winner = expected.argmax(axis=0)
    assert len(np.unique(winner)) == len(VALUES) - 1
    np.testing.assert_array_equal(labels[clear], np.array(VALUES)[winner][clear])
    there = clear & (winner > 0)
    np.testing.assert_allclose(confidence[there] / 255, best[there], atol=0.004)
    assert not confidence[labels == 0].any()


BACK = {
    "finer": inside_model((0.9, 1.1, 1.3), (20, 18, 16)),
    "coarser": inside_model((3.0, 2.7, 4.1), (6, 7, 6)),
    "turned": inside_model((1.1, 0.8, 1.0), (11, 14, 12), rotation(25, -30)),
    "mirrored": inside_model((1.0, 1.5, 1.2), (18, 14, 17), (-1.0, 0, 0, 0, 0, -1.0, 0, 1.0, 0)),
}


@pytest.mark.parametrize("block", [5, 64])
@pytest.mark.parametrize("name", BACK)
def test_labels_and_confidence_are_those_of_interpolated_probabilities(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resample_back, "BLOCK", block)
    grid, probabilities = BACK[name], random_probabilities()
    labels, confidence = resample_to_input(probabilities, grid, VALUES, "cpu")
    assert labels.dtype == confidence.dtype == np.uint8
    check(labels, confidence, reference(probabilities, grid))


@pytest.mark.parametrize("name", BACK)
def test_logits_are_interpolated_before_they_become_probabilities(name: str) -> None:
    grid = BACK[name]
    logits = random_probabilities(1).clamp_min(1e-9).log() + 3.0
    labels, confidence = resample_to_input(logits, grid, VALUES, logits=True)
    expected = torch.from_numpy(reference(logits, grid)).softmax(0).numpy()
    check(labels, confidence, expected)


@pytest.mark.parametrize("name", ["finer", "turned"])
def test_nothing_but_the_voxels_in_the_region_is_labelled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample_back, "BLOCK", 7)
    roi = Box((-4.0, -2.0, -5.0), (3.0, 5.0, 1.0))
    grid = replace(BACK[name], roi=roi)
    certain = torch.zeros(2, *MODEL_GRID.size[::-1])
    certain[1] = 1
    labels, confidence = resample_to_input(certain, grid, (0, 9))
    points = positions(grid.input)
    inside = np.all((points >= roi.lps_min) & (points <= roi.lps_max), axis=-1)
    np.testing.assert_array_equal(labels, 9 * inside)
    np.testing.assert_array_equal(confidence, 255 * inside)


def test_a_voxel_on_the_regions_edge_is_in_it() -> None:
    grid = ModelGrid(MODEL_GRID, Geometry((5, 5, 5), (1.0, 1.0, 1.0), (-2.0, -2.0, -2.0), IDENTITY), (slice(0, 5),) * 3)
    certain = torch.zeros(2, *MODEL_GRID.size[::-1])
    certain[1] = 1
    roi = Box((-1.0, -2.0, 0.0), (1.0, 0.0, 2.0))
    labels, _ = resample_to_input(certain, replace(grid, roi=roi), (0, 1))
    expected = np.zeros((5, 5, 5))
    expected[2:5, 0:3, 1:4] = 1
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("name", ["finer", "coarser", "turned", "mirrored"])
@pytest.mark.parametrize("place", [(6, 6, 5), (4, 7, 8), (8, 4, 3)])
def test_a_single_voxel_reaches_half_way_to_its_neighbours(name: str, place: tuple[int, int, int]) -> None:
    grid = BACK[name]
    probabilities = torch.zeros(2, *MODEL_GRID.size[::-1])
    probabilities[0] = 1
    probabilities[(slice(None), *place)] = torch.tensor([0.1, 0.9])
    labels, confidence = resample_to_input(probabilities, grid, (0, 7))
    expected = reference(probabilities, grid)[1]
    clear = np.abs(expected - 0.5) > 1e-3
    np.testing.assert_array_equal((labels == 7)[clear], (expected > 0.5)[clear])
    np.testing.assert_allclose(confidence / 255, np.where(labels == 7, expected, 0), atol=0.004)


@pytest.mark.parametrize("corner", [0, -1])
def test_the_model_grids_outer_voxels_reach_beyond_it_by_no_more_than_one(corner: int) -> None:
    certain = torch.zeros(2, *MODEL_GRID.size[::-1])
    certain[0] = 1
    certain[:, corner, corner, corner] = torch.tensor([0.0, 1.0])
    # A volume around the corner, from 3 mm outside to 3 mm inside.
    side = np.arange(-12, 13) * 0.25
    x, y, z = (positions(MODEL_GRID)[corner, corner, corner] + side[0]).tolist()
    grid = ModelGrid(MODEL_GRID, Geometry((25, 25, 25), (0.25, 0.25, 0.25), (x, y, z), IDENTITY), (slice(0, 25),) * 3)
    labels, _ = resample_to_input(certain, grid, (0, 1))
    inwards = side if corner == 0 else -side
    share, near = [], []
    for step in reversed(MODEL_GRID.spacing):
        share.append(1 - np.clip(inwards / step, 0, 1))
        near.append(inwards >= -step)
    probability = np.einsum("z,y,x->zyx", *share)
    expected = (probability > 0.5) & np.einsum("z,y,x->zyx", *near)
    clear = np.abs(probability - 0.5) > 1e-3
    np.testing.assert_array_equal(labels[clear], expected[clear])


def test_blocks_with_nothing_but_background_between_two_labels_stay_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample_back, "BLOCK", 4)
    probabilities = torch.zeros(2, *MODEL_GRID.size[::-1])
    probabilities[0] = 1
    for place in ((2, 2, 2), (10, 9, 8)):
        probabilities[(slice(None), *place)] = torch.tensor([0.0, 1.0])
    labels, confidence = resample_to_input(probabilities, BACK["finer"], (0, 7))
    expected = reference(probabilities, BACK["finer"])[1]
    assert ndimage.label(labels)[1] == 2
    np.testing.assert_array_equal(labels == 7, expected > 0.5)
    np.testing.assert_allclose(confidence / 255, np.where(labels == 7, expected, 0), atol=0.004)


def test_a_part_of_the_volume_that_the_model_did_not_see_gets_no_label() -> None:
    whole = BACK["finer"]
    seen = (slice(3, 9), slice(5, 16), slice(2, 11))
    certain = torch.zeros(2, *MODEL_GRID.size[::-1])
    certain[1] = 1
    labels, confidence = resample_to_input(certain, replace(whole, crop=seen), (0, 200))
    expected = np.zeros_like(labels)
    expected[seen] = 1
    np.testing.assert_array_equal(labels, 200 * expected)
    np.testing.assert_array_equal(confidence, 255 * expected)


def test_labels_beside_the_seen_part_leave_it_empty() -> None:
    probabilities = torch.zeros(2, *MODEL_GRID.size[::-1])
    probabilities[0] = 1
    probabilities[:, 0, 0, 0] = torch.tensor([0.0, 1.0])
    grid = replace(BACK["finer"], crop=(slice(14, 16), slice(16, 18), slice(18, 20)))
    labels, confidence = resample_to_input(probabilities, grid, (0, 1))
    assert labels.shape == grid.input.size[::-1] and not labels.any() and not confidence.any()


def test_a_network_with_only_a_background_labels_nothing() -> None:
    labels, confidence = resample_to_input(torch.ones(1, *MODEL_GRID.size[::-1]), BACK["finer"], (0,))
    assert not labels.any() and not confidence.any()


@pytest.mark.parametrize("first", [1, 2, 3])
def test_the_lower_of_two_equal_classes_wins(first: int) -> None:
    probabilities = torch.zeros(5, *MODEL_GRID.size[::-1])
    probabilities[first], probabilities[4] = 0.5, 0.5
    labels, confidence = resample_to_input(probabilities, BACK["turned"], VALUES)
    assert (labels == VALUES[first]).all() and (confidence == 127).all()
