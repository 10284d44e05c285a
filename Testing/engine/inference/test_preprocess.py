"""The way to the model's grid and back, as one pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.phantoms import (
    AIR,
    ANISOTROPIC,
    BODY_AXES,
    BODY_CENTRE,
    BONE,
    OBLIQUE,
    STRAIGHT,
    VERTEBRAE,
    WATER,
    dice,
    grid_around_patient,
    on_axes_of,
    phantom,
    positions,
    restored,
    spine_model,
    true_labels,
)
from scipy import ndimage

from segmamba.errors import InputError, ModelError
from segmamba.inference.model_grid import Box, ModelGrid
from segmamba.inference.preprocess import (
    _by_itk,
    normalise,
    oblique_resample,
    padding_values,
    resample_to_model,
    resolve,
)
from segmamba.inference.resample_back import resample_to_input
from segmamba.io.modality import check_modality, modality_warning, model_for_modality, resolve_modality
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import IntensityNormalization

MODEL = spine_model()
SAGITTAL = grid_around_patient((1.6, 1.9, 3.1), (0, 0, 1.0, 1.0, 0, 0, 0, -1.0, 0))
GRIDS = {"straight": STRAIGHT, "oblique": OBLIQUE, "anisotropic": ANISOTROPIC, "sagittal": SAGITTAL}


def painted(grid: ModelGrid, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the probabilities of a network that is always right and always sure."""
    labels = true_labels(grid.geometry)
    return torch.from_numpy(np.stack([labels == value for value in MODEL.channel_values])).to(dtype)


def labels_there_and_back(volume: Volume) -> np.ndarray:
    _, grid = resample_to_model(volume, MODEL)
    return resample_to_input(painted(grid), grid, MODEL.channel_values)[0]


@pytest.mark.parametrize("name", GRIDS)
def test_a_known_shape_comes_back_on_the_input_grid(name: str) -> None:
    truth = true_labels(GRIDS[name])
    labels = labels_there_and_back(phantom(GRIDS[name]))
    for value in VERTEBRAE:
        assert dice(labels == value, truth == value) > 0.97


@pytest.mark.parametrize("name", GRIDS)
def test_surfaces_come_back_within_one_voxel(name: str) -> None:
    geometry = GRIDS[name]
    truth = true_labels(geometry) > 0
    wrong = (labels_there_and_back(phantom(geometry)) > 0) != truth
    spacing = geometry.spacing[::-1]
    distance = np.maximum(
        ndimage.distance_transform_edt(truth, spacing), ndimage.distance_transform_edt(~truth, spacing)
    )
    assert wrong.any() and distance[wrong].max() <= max(2.0, *spacing)


@pytest.mark.parametrize("name", GRIDS)
def test_flipped_and_permuted_copies_give_the_same_labels(name: str) -> None:
    volume = phantom(GRIDS[name])
    labels = labels_there_and_back(volume)
    for copy in restored(volume):
        other = on_axes_of(labels_there_and_back(copy), copy.geometry, volume.geometry)
        assert np.count_nonzero(other != labels) <= 0.005 * np.count_nonzero(labels)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("name", GRIDS)
def test_flipped_and_permuted_copies_give_the_same_input_to_the_network(name: str, interpolation: str) -> None:
    volume, model = phantom(GRIDS[name]), spine_model(interpolation=interpolation)
    image, grid = resample_to_model(volume, model)
    for copy in restored(volume):
        other, other_grid = resample_to_model(copy, model)
        assert other_grid.geometry.size == grid.geometry.size
        np.testing.assert_allclose(other_grid.geometry.affine, grid.geometry.affine, atol=1e-9)
        np.testing.assert_allclose(other, image, atol=1e-3)


@pytest.mark.parametrize("name", GRIDS)
def test_the_network_sees_the_patient_where_the_grid_says(name: str) -> None:
    image, grid = resample_to_model(phantom(GRIDS[name]), MODEL)
    channel = MODEL.preprocessing.normalization[0]
    expected = normalise(torch.from_numpy(phantom(grid.geometry).array), channel).numpy()
    # Away from surfaces, where the resolution of the input does not matter.
    flat = ndimage.maximum_filter(expected, 5) == ndimage.minimum_filter(expected, 5)
    assert flat.mean() > 0.3
    np.testing.assert_allclose(image[0][flat], expected[flat], atol=0.05)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SLP"])
def test_the_model_grid_has_the_models_orientation(orientation: str) -> None:
    _, grid = resample_to_model(phantom(), spine_model(orientation))
    axes = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1)}
    expected = np.array([axes[letter] for letter in orientation]).T
    np.testing.assert_array_equal(np.reshape(grid.geometry.direction, (3, 3)), expected)
    labels = resample_to_input(painted(grid), grid, MODEL.channel_values)[0]
    assert dice(labels > 0, true_labels(STRAIGHT) > 0) > 0.97


def test_an_unknown_orientation_is_a_fault_of_the_model() -> None:
    with pytest.raises(ModelError, match="LLS"):
        resample_to_model(phantom(), spine_model("LLS"))


def test_the_grid_covers_the_body_and_little_air() -> None:
    _, grid = resample_to_model(phantom(ANISOTROPIC), MODEL)
    points = positions(grid.geometry).reshape(-1, 3)
    lowest, highest = points.min(axis=0), points.max(axis=0)
    body_low, body_high = np.subtract(BODY_CENTRE, BODY_AXES), np.add(BODY_CENTRE, BODY_AXES)
    assert np.all(lowest <= body_low) and np.all(highest >= body_high)
    assert np.all(lowest >= body_low - 14) and np.all(highest <= body_high + 14)


def test_a_volume_of_air_is_refused() -> None:
    with pytest.raises(InputError, match="nothing above -500"):
        resample_to_model(Volume(np.full((9, 9, 9), AIR, np.int16), STRAIGHT), MODEL)


@pytest.mark.parametrize("geometry", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_nothing_outside_the_roi_is_labelled(geometry: Geometry) -> None:
    roi = Box((-10.0, -5.0, 90.0), (8.0, 12.0, 120.0))
    _, grid = resample_to_model(phantom(geometry), MODEL, roi)
    labels, _ = resample_to_input(painted(grid), grid, MODEL.channel_values)
    inside = np.all((positions(geometry) >= roi.lps_min) & (positions(geometry) <= roi.lps_max), axis=-1)
    assert not labels[~inside].any()
    assert dice(labels[inside] > 0, true_labels(geometry)[inside] > 0) > 0.97
    extent = np.multiply(grid.geometry.size, grid.geometry.spacing)
    assert np.all(extent <= np.subtract(roi.lps_max, roi.lps_min) + 2 * 20 + 2)


def test_a_grid_can_leave_out_the_zeros_around_a_volume_and_nothing_there_is_labelled() -> None:
    whole = phantom()
    array = np.zeros_like(whole.array)
    inside = (slice(10, 70), slice(5, 60), slice(8, 66))
    array[inside] = whole.array[inside]
    array[40, 30, 30] = 0  # a hole
    model = spine_model(crop_threshold=None, crop_nonzero=True)
    _, grid = resample_to_model(Volume(array, whole.geometry), model)
    assert grid.crop == inside
    everything = torch.zeros(4, *grid.geometry.size[::-1])
    everything[2] = 1
    labels, _ = resample_to_input(everything, grid, MODEL.channel_values)
    expected = np.zeros_like(labels)
    expected[inside] = 21
    np.testing.assert_array_equal(labels, expected)
    with pytest.raises(InputError, match="nothing but zeros"):
        resample_to_model(Volume(np.zeros_like(array), whole.geometry), model)


def test_windows_beyond_the_volume_hold_air_or_what_the_model_says() -> None:
    channels = (IntensityNormalization("clip", -57.0, 175.0, 65.0, 30.0),) * 2
    image = torch.zeros(2, 4, 4, 4)
    air = (-57.0 - 65.0) / 30.0
    assert padding_values(spine_model(normalization=channels), image) == (pytest.approx(air),) * 2
    assert padding_values(spine_model(normalization=channels, pad_value=0.0), image) == (0.0, 0.0)


def test_an_roi_beside_the_patient_is_refused() -> None:
    with pytest.raises(InputError, match="region of interest"):
        resample_to_model(phantom(), MODEL, Box((500.0, 0.0, 0.0), (600.0, 10.0, 10.0)))


def test_half_precision_gives_the_same_labels() -> None:
    _, grid = resample_to_model(phantom(), MODEL)
    single, _ = resample_to_input(painted(grid), grid, MODEL.channel_values)
    half, _ = resample_to_input(painted(grid, torch.float16), grid, MODEL.channel_values)
    np.testing.assert_array_equal(single, half)


def test_the_background_wins_ties() -> None:
    _, grid = resample_to_model(phantom(), MODEL)
    even = torch.full((4, *grid.geometry.size[::-1]), 0.25)
    labels, confidence = resample_to_input(even, grid, MODEL.channel_values)
    assert not labels.any() and not confidence.any()


def test_a_class_may_win_between_voxels_where_it_wins_at_none() -> None:
    geometry = Geometry((3, 4, 4), (1.0, 1.0, 1.0), (0.5, 0.0, 0.0), STRAIGHT.direction)
    grid = ModelGrid(
        Geometry((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), STRAIGHT.direction),
        geometry,
        (slice(0, 4),) * 2 + (slice(0, 3),),
    )
    probabilities = torch.zeros(4, 4, 4, 4)
    probabilities[1, ..., :2], probabilities[2, ..., 2:], probabilities[3] = 0.6, 0.6, 0.4
    labels, confidence = resample_to_input(probabilities, grid, MODEL.channel_values)
    np.testing.assert_array_equal(labels[1, 1], [20, 22, 21])
    np.testing.assert_array_equal(confidence[1, 1], [153, 102, 153])


@pytest.mark.parametrize("logits", [False, True])
def test_interpolated_logits_let_a_sure_voxel_reach_further_than_interpolated_probabilities(logits: bool) -> None:
    # One voxel of the volume 0.65 of the way from a sure voxel of the model's grid to one that is less sure of the
    # background: logits change their sign at 8 / 11 of the way, probabilities just beyond the middle.
    grid = ModelGrid(
        Geometry((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), STRAIGHT.direction),
        Geometry((1, 2, 2), (1.0, 1.0, 1.0), (0.65, 0.0, 0.0), STRAIGHT.direction),
        (slice(0, 2), slice(0, 2), slice(0, 1)),
    )
    scores = torch.zeros(2, 2, 2, 2)
    scores[1, ..., 0], scores[1, ..., 1] = 8.0, -3.0
    labels, confidence = resample_to_input(scores if logits else scores.softmax(0), grid, (0, 1), logits=logits)
    assert (labels == int(logits)).all()
    if logits:
        expected = 1 / (1 + np.exp(-(0.35 * 8.0 - 0.65 * 3.0)))
        np.testing.assert_allclose(confidence / 255, expected, atol=0.003)


def test_confidence_is_the_probability_of_the_label() -> None:
    _, grid = resample_to_model(phantom(), MODEL)
    probabilities = painted(grid) * 0.7
    probabilities[0] += 0.3
    labels, confidence = resample_to_input(probabilities, grid, MODEL.channel_values)
    inner = ndimage.binary_erosion(true_labels(STRAIGHT) == 21, iterations=3)
    assert np.all(np.abs(confidence[inner] / 255 - 0.7) < 0.01)
    assert not confidence[labels == 0].any()


def test_fine_stripes_average_out_on_a_coarse_grid() -> None:
    array = np.full((40, 40, 40), 100, np.int16)
    array[:, :, ::2] = 300
    fine = Geometry((40, 40, 40), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), STRAIGHT.direction)
    image, _ = resample_to_model(
        Volume(array, fine), spine_model(normalization=(IntensityNormalization("clip", 0.0, 400.0, 0.0, 1.0),))
    )
    np.testing.assert_allclose(image[0][:, :, 2:-2], 200, atol=5)


@pytest.mark.parametrize("variances", [(0.0, 0.0, 0.0), (0.5, 1.0, 0.0)])
def test_what_a_gpu_makes_of_an_oblique_volume_is_what_itk_makes_of_it(variances: tuple[float, ...]) -> None:
    values = torch.rand(OBLIQUE.size[::-1], generator=torch.Generator().manual_seed(0)) * 2000 - 1000
    given = values, OBLIQUE, np.array(variances), STRAIGHT, -1000.0
    found = oblique_resample(*given)
    expected = _by_itk(values, OBLIQUE, STRAIGHT, (sitk.sitkLinear, -1000.0), np.array(variances))
    assert (expected == -1000).any()
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_a_filler_value_outside_the_scanner_looks_like_air() -> None:
    volume = phantom()
    padded = np.where(volume.array == AIR, -2048, volume.array).astype(np.int16)
    np.testing.assert_array_equal(
        resample_to_model(Volume(padded, volume.geometry), MODEL)[0], resample_to_model(volume, MODEL)[0]
    )


def test_cubic_interpolation_is_applied_to_normalised_intensities_and_not_clipped() -> None:
    channel = IntensityNormalization("clip", -57.0, 175.0, 65.175, 32.651)
    model = spine_model(interpolation="cubic", crop_threshold=None, spacing=(1.0, 1.0, 3.0), normalization=(channel,))
    image, grid = resample_to_model(phantom(), model)
    highest = (channel.high - channel.mean) / channel.std
    assert image.max() > highest + 0.05
    k, j, i = np.array(image.shape[1:]) // 2
    expected = {BONE: highest, WATER: (WATER - channel.mean) / channel.std}
    labels = true_labels(grid.geometry)
    assert image[0, k, j, i] == pytest.approx(expected[BONE if labels[k, j, i] else WATER], abs=0.2)


def test_a_percentile_channel_is_measured_on_the_voxels_that_are_not_zero() -> None:
    array = np.zeros((10, 10, 20), np.float32)
    array[:, :, 10:] = np.linspace(1, 101, 1000).reshape(10, 10, 10)
    image = torch.from_numpy(array)
    resolved = resolve(IntensityNormalization("percentile", 1.0, 99.0), image)
    assert (resolved.low, resolved.high) == (pytest.approx(2.0), pytest.approx(100.0))
    normalised = normalise(image, resolved).numpy()
    assert abs(normalised.mean()) < 1e-4 and normalised.std() == pytest.approx(1.0, abs=1e-4)


def test_two_channels_show_two_windows_of_one_volume() -> None:
    windows = (
        IntensityNormalization("clip", -1000.0, 1600.0, 300.0, 1300.0),
        IntensityNormalization("clip", -150.0, 450.0, 150.0, 300.0),
    )
    image, _ = resample_to_model(phantom(), spine_model(normalization=windows))
    assert image.dtype == np.float32 and image.shape[0] == 2
    assert image[1].min() == pytest.approx(-1.0) and image[1].max() == pytest.approx(1.0)
    assert image[0].min() == pytest.approx(-1.0) and image[0].max() < 0.2


def test_a_network_that_finds_nothing_gives_no_label() -> None:
    volume = phantom()
    _, grid = resample_to_model(volume, MODEL)
    probabilities = torch.zeros(4, *grid.geometry.size[::-1])
    probabilities[0] = 1
    labels, _ = resample_to_input(probabilities, grid, MODEL.channel_values)
    assert labels.shape == volume.array.shape and labels.dtype == np.uint8 and not labels.any()


@pytest.mark.parametrize(
    ("array", "modality", "reason"),
    [
        (phantom().array, "MR", "The volume is MR and the model 'test-spine' takes CT"),
        (phantom().array + 1024, None, "start at 24"),
        (np.random.default_rng(0).normal(size=(4, 4, 4)), None, "cannot be Hounsfield units"),
    ],
    ids=["stated", "shifted", "normalised"],
)
def test_a_volume_that_is_no_ct_is_refused_by_a_model_for_ct(
    array: np.ndarray, modality: str | None, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        check_modality(Volume(array, STRAIGHT, modality), MODEL)


BOTH = replace(MODEL, modalities=("CT", "MR"), mr_preprocessing=replace(MODEL.preprocessing, fill_value=0.0))


@pytest.mark.parametrize(
    ("array", "modality", "taken", "said"),
    [
        (phantom().array, None, "CT", False),
        (phantom().array, "MR", "MR", False),
        (phantom().array + 1024, "MR", "MR", False),
        (phantom().array + 1024, None, "MR", True),
        (np.random.default_rng(0).normal(size=(4, 4, 4)), None, "MR", True),
    ],
    ids=["air", "stated", "stated and bright", "bright", "around zero"],
)
def test_a_model_for_both_prepares_a_volume_as_what_it_is_and_says_when_it_had_to_guess(
    array: np.ndarray, modality: str | None, taken: str, said: bool
) -> None:
    volume = Volume(array, STRAIGHT, modality)
    check_modality(volume, BOTH)
    resolved = resolve_modality(volume)
    assert (resolved.modality, resolved.modality_inferred) == (taken, modality is None)
    assert resolve_modality(resolved) is resolved
    assert (model_for_modality(volume, BOTH).preprocessing.fill_value == 0.0) == (taken == "MR")
    assert (modality_warning(volume, BOTH) is not None) == said


def test_a_stated_ct_that_is_not_in_hounsfield_units_is_refused_by_a_model_for_both() -> None:
    with pytest.raises(InputError, match="start at 24"):
        check_modality(Volume(phantom().array + 1024, STRAIGHT, "CT"), BOTH)


@pytest.mark.parametrize("modality", ["CT", None])
def test_a_ct_is_accepted_by_a_model_for_ct(modality: str | None) -> None:
    check_modality(Volume(phantom().array, STRAIGHT, modality), MODEL)
