"""Volumes of tilted gantries, sheared axes and uneven slices lie as in the patient, and labels come back to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.bright_bone import VALUE, bright_bone, segment, write_model
from helpers.dicom_files import write_slices
from helpers.phantoms import BONE, VERTEBRAE, WATER, dice, rotation
from helpers.stored_phantom import SIZE, drawn, points_of, sheared

from segmamba.errors import InputError
from segmamba.io.labelmap import write_labelmap
from segmamba.io.read import read_stored, read_volume
from segmamba.io.stored_grid import EVEN_MM, StoredGrid, labels_as_stored, resampled, straightened
from segmamba.io.volume import Geometry, Volume, are_orthonormal

__all__ = ["bright_bone"]
SHEARS = [(0.3, (1, 2), 0), (-0.3, (0, 2), 0), (0.2, (0, 1), 20), (0.3, (1, 2), 20), (0.005, (1, 2), 0)]


@pytest.mark.parametrize(("shear", "axes", "degrees"), SHEARS)
def test_a_sheared_volume_is_straight_where_it_was_and_labels_come_back(
    shear: float, axes: tuple[int, int], degrees: int
) -> None:
    geometry = sheared(shear, axes, degrees)
    grid = StoredGrid.of(geometry)
    array, labels = drawn(points_of(grid))
    volume = straightened(Volume(array, geometry), "it")
    assert are_orthonormal(np.reshape(volume.geometry.direction, (3, 3)))
    assert "off a right angle" in volume.notes[0] and "own voxels" in volume.notes[0]
    expected, expected_labels = drawn(points_of(StoredGrid.of(volume.geometry)))
    bone = expected == BONE
    assert dice(volume.array > (BONE + WATER) / 2, bone) > 0.9
    back = labels_as_stored(expected_labels, volume.geometry, grid)
    assert back.shape == labels.shape
    assert all(dice(back == value, labels == value) > 0.85 for value in VERTEBRAE)
    np.testing.assert_allclose(grid.geometry.affine, geometry.affine, atol=1e-9)


def test_a_grid_that_is_straight_stays_as_it_is() -> None:
    geometry = sheared(0.0009)
    volume = Volume(np.zeros(SIZE[::-1], np.int16), geometry)
    assert straightened(volume, "it") is volume


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".mha"])
def test_a_sheared_file_is_segmented_in_place_and_its_label_map_has_its_own_voxels(
    extension: str, tmp_path: Path, bright_bone: None
) -> None:
    geometry = sheared(0.25)
    array, labels = drawn(points_of(StoredGrid.of(geometry)))
    path = tmp_path / f"tilted{extension}"
    write_labelmap(path, (array == BONE).astype(np.uint8), geometry, ())  # for its header alone
    if extension == ".nii.gz":
        affine = np.diag([-1, -1, 1, 1]) @ geometry.affine
        nibabel.save(nibabel.Nifti1Image(array.T, affine), path)
    else:
        image = sitk.GetImageFromArray(array)
        image.CopyInformation(sitk.ReadImage(str(path)))
        sitk.WriteImage(image, str(path))
    found = segment(path, write_model(tmp_path, 5.0), tmp_path)
    assert found.shape == array.shape
    assert dice(found == VALUE, labels > 0) > 0.85


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".mha", ".seg.nrrd"])
def test_labels_on_a_sheared_grid_are_written_and_read_as_they_are(extension: str, tmp_path: Path) -> None:
    geometry = sheared(0.25)
    labels = drawn(points_of(StoredGrid.of(geometry)))[1]
    write_labelmap(tmp_path / f"labels{extension}", labels, geometry, ())
    written = read_stored(tmp_path / f"labels{extension}")
    np.testing.assert_array_equal(written.array, labels)
    np.testing.assert_allclose(written.geometry.affine, geometry.affine, atol=1e-3)


@pytest.mark.parametrize("tilt", [0.0, 0.3])
@pytest.mark.parametrize("uneven", [False, True])
def test_slices_of_a_tilted_gantry_and_at_two_distances_lie_where_the_files_say(
    tilt: float, uneven: bool, tmp_path: Path
) -> None:
    heights = np.r_[np.arange(0, 60, 4.0), np.arange(60, 140, 8.0)] if uneven else np.arange(0, 140, 5.0)
    positions = np.array([-45.0, -60.0 - 0.5 * tilt * 140, 30.0]) + heights[:, None] * (0.0, tilt, 1.0)
    grid = StoredGrid((26, 36, len(heights)), np.array([[4.0, 0], [0, 4.0], [0, 0]]), positions)
    array, labels = drawn(points_of(grid))
    for k, (plane, place) in enumerate(zip(array, positions, strict=True)):
        alone = Geometry((26, 36, 1), (4.0, 4.0, 4.0), tuple(place.tolist()), rotation(0, 0))
        write_slices(tmp_path, plane[None], alone, start=k, SeriesInstanceUID="1.2.3")
    volume = read_volume(tmp_path)
    assert bool(volume.notes) == (bool(tilt) or uneven)
    expected = drawn(points_of(StoredGrid.of(volume.geometry)))[1]
    assert dice(volume.array > (BONE + WATER) / 2, expected > 0) > 0.85
    if volume.stored is not None:
        back = labels_as_stored(expected, volume.geometry, volume.stored)
        assert back.shape == labels.shape and dice(back > 0, labels > 0) > 0.85


def test_axes_that_no_scanner_has_are_refused() -> None:
    volume = Volume(np.zeros(SIZE[::-1], np.int16), sheared(1.2))
    with pytest.raises(InputError, match="far from right angles"):
        straightened(volume, "it")


def test_labels_beyond_a_cropped_volume_are_none() -> None:
    geometry = sheared(0.25)
    grid = StoredGrid.of(geometry)
    volume = straightened(Volume(drawn(points_of(grid))[0], geometry), "it")
    half = replace(volume.geometry, size=(*volume.geometry.size[:2], 20))
    back = labels_as_stored(np.ones(half.size[::-1], np.uint8), half, grid)
    assert back[5].any() and not back[30].any()


def ramp(points: np.ndarray) -> np.ndarray:
    """Return values that grow evenly with the place: linear interpolation keeps them."""
    return points @ (0.5, 2.0, -1.5)


@pytest.mark.parametrize(("shear", "axes", "degrees"), [(0.25, (1, 2), 20), (-0.3, (0, 1), 0)])
def test_each_voxel_of_a_straightened_volume_has_the_value_of_its_place(
    shear: float, axes: tuple[int, int], degrees: int
) -> None:
    geometry = sheared(shear, axes, degrees)
    array = ramp(points_of(StoredGrid.of(geometry)))
    volume = straightened(Volume(array, geometry, notes=("First.",)), "it")
    places = points_of(StoredGrid.of(volume.geometry))
    index = (places - geometry.origin) @ np.linalg.inv(geometry.affine[:3, :3]).T
    inside = ((index > 0.01) & (index < np.array(SIZE) - 1.01)).all(axis=-1)
    assert inside.mean() > 0.4
    np.testing.assert_allclose(volume.array[inside], ramp(places)[inside], atol=1e-6)
    beside = ((index[..., :2] < -1) | (index[..., :2] > np.array(SIZE[:2]))).any(axis=-1)
    assert beside.any() and (volume.array[beside] == array.min()).all()
    # All voxels lie in it, and no more room is around them than a voxel.
    stored = points_of(StoredGrid.of(geometry)).reshape(-1, 3)
    inverse = np.linalg.inv(volume.geometry.affine)
    found = stored @ inverse[:3, :3].T + inverse[:3, 3]
    np.testing.assert_allclose(found.min(axis=0), 0, atol=1e-6)
    assert (found.max(axis=0) <= np.array(volume.geometry.size) - 1 + 1e-3).all()
    assert (found.max(axis=0) > np.array(volume.geometry.size) - 2).all()
    angle = np.degrees(np.arcsin(abs(shear) / np.hypot(1, shear)))
    assert volume.notes[0] == "First." and f" {angle:.1f} degrees off a right angle" in volume.notes[1]
    whole = straightened(Volume(np.round(array).astype(np.int16), geometry), "it")
    assert np.abs(whole.array[inside] - ramp(places)[inside]).max() <= 1.0


# Left-handed where the slices come the other way.
@pytest.mark.parametrize("way", [1.0, -1.0])
def test_uneven_slices_are_interpolated_at_their_own_heights_and_labels_go_to_the_nearest(way: float) -> None:
    heights = np.array([0.0, 4.0, 8.0, 12.0, 17.0, 19.0, 29.0])
    axes = np.array([[2.0, 0], [0, 3.0], [0, 0]])
    grid = StoredGrid((5, 4, 7), axes, np.array([1.0, 2.0, 3.0]) + way * heights[:, None] * (0.0, 0.0, 1.0))
    assert grid.geometry is None
    array = ramp(points_of(grid))
    volume = resampled(Volume(array, sheared(0.0)), grid, "Uneven.")
    assert volume.stored is grid and volume.notes == ("Uneven.",)
    made = volume.geometry
    assert (made.size, made.spacing, made.origin) == ((5, 4, 9), (2.0, 3.0, 4.0), (1.0, 2.0, 3.0))
    assert made.direction == pytest.approx((1.0, 0, 0, 0, 1.0, 0, 0, 0, way))
    # The last one is beyond the last slice.
    np.testing.assert_allclose(volume.array[:8], ramp(points_of(StoredGrid.of(made)))[:8], atol=1e-9)
    np.testing.assert_allclose(volume.array[8], array[-1], atol=1e-9)
    labels = np.random.default_rng(0).integers(0, 200, made.size[::-1]).astype(np.uint8)
    np.testing.assert_array_equal(labels_as_stored(labels, made, grid), labels[[0, 1, 2, 3, 4, 5, 7]])


def test_slices_that_are_off_by_rounding_lie_evenly() -> None:
    for part, even in ((0.9, True), (1.1, False)):
        positions = np.arange(5.0)[:, None] * (0.0, 0.5, 4.0)
        positions[2] += (0.0, part * EVEN_MM, 0.0)
        geometry = StoredGrid((6, 7, 5), np.array([[2.0, 0], [0, 3.0], [0, 0]]), positions).geometry
        assert (geometry is not None) is even
        if geometry is not None:
            assert geometry.size == (6, 7, 5) and geometry.origin == (0.0, 0.0, 0.0)
            np.testing.assert_allclose(geometry.affine[:3, 2], (0.0, 0.5, 4.0))
