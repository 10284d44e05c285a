"""Reading volumes: every format gives the same voxels at the same places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.phantoms import OBLIQUE, rotation

from segmamba.errors import InputError
from segmamba.io.read import read_volume
from segmamba.io.volume import (
    FARTHEST_MM,
    LONGEST_MM,
    SPACING_RANGE_MM,
    TOLERANCE_VOXELS,
    Geometry,
    Volume,
    are_one_grid,
    are_orthonormal,
    check_geometry,
    check_scalar_3d,
    image_geometry,
    nearest_orthonormal,
    to_image,
)

GEOMETRY = Geometry((9, 8, 7), (0.7, 0.8, 2.5), (-10.0, 20.5, -300.0), rotation(20, -15))


def some_ct() -> np.ndarray:
    return np.random.default_rng(1).integers(-1000, 1500, GEOMETRY.size[::-1]).astype(np.int16)


def write_series(
    folder: Path, array: np.ndarray, geometry: Geometry, uid: str = "1.2.3.4", modality: str = "CT", start: int = 0
) -> list[Path]:
    """Write a DICOM series with names and numbers in an order that says nothing of the slices' places."""
    folder.mkdir(parents=True, exist_ok=True)
    direction = np.reshape(geometry.direction, (3, 3))
    matrix = geometry.affine
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    files = []
    for k in range(len(array)):
        # With these tags the writer stores the value plus 1024.
        image = sitk.GetImageFromArray(array[k : k + 1])
        image.SetSpacing(geometry.spacing)
        number = (k * 5) % len(array) + start
        tags = {
            "0008|0060": modality,
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{number + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(number + 1),
            "0008|103e": f"series {uid[-1]}",
            "0020|0032": "\\".join(f"{value:.6f}" for value in (matrix @ [0, 0, k, 1])[:3]),
            "0020|0037": "\\".join(f"{value:.8f}" for value in direction[:, :2].T.ravel()),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        files.append(folder / f"IM{number:03d}.dcm")
        writer.SetFileName(str(files[-1]))
        writer.Execute(image)
    return files


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_all_file_formats_give_the_same_volume(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"ct{extension}"
    sitk.WriteImage(to_image(some_ct(), GEOMETRY), str(path), useCompression=True)
    volume = read_volume(path)
    assert volume.array.dtype == np.int16 and volume.modality is None
    np.testing.assert_array_equal(volume.array, some_ct())
    np.testing.assert_allclose(volume.geometry.affine, GEOMETRY.affine, atol=1e-4)


def test_a_path_with_other_letters_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "Wirbelsäule 脊椎" / "é.nii.gz"
    path.parent.mkdir()
    sitk.WriteImage(to_image(some_ct(), GEOMETRY), str(path))
    np.testing.assert_array_equal(read_volume(path).array, some_ct())


def test_a_fourth_dimension_of_one_is_left_out(tmp_path: Path) -> None:
    image = sitk.JoinSeries([to_image(some_ct(), GEOMETRY)])
    sitk.WriteImage(image, str(tmp_path / "ct.nrrd"))
    volume = read_volume(tmp_path / "ct.nrrd")
    np.testing.assert_array_equal(volume.array, some_ct())
    np.testing.assert_allclose(volume.geometry.affine, GEOMETRY.affine, atol=1e-6)


def test_the_affine_agrees_with_simpleitk() -> None:
    image = to_image(np.zeros(OBLIQUE.size[::-1], np.uint8), OBLIQUE)
    index = (3, 5, 7)
    expected = image.TransformIndexToPhysicalPoint(index)
    np.testing.assert_allclose((OBLIQUE.affine @ [*index, 1])[:3], expected, atol=1e-9)


def test_a_dicom_folder_is_read_in_the_order_of_positions_and_rescaled(tmp_path: Path) -> None:
    write_series(tmp_path, some_ct(), GEOMETRY)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, some_ct())
    np.testing.assert_allclose(volume.geometry.affine, GEOMETRY.affine, atol=1e-4)
    assert volume.modality == "CT"


def test_the_modality_comes_from_the_dicom_tag(tmp_path: Path) -> None:
    write_series(tmp_path, some_ct(), GEOMETRY, modality="MR")
    assert read_volume(tmp_path).modality == "MR"


def test_a_multi_frame_dicom_file_is_a_volume(tmp_path: Path) -> None:
    path = tmp_path / "enhanced.dcm"
    stored = (some_ct() + 1000).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(stored), str(path))
    np.testing.assert_array_equal(read_volume(path).array, stored)
    np.testing.assert_array_equal(read_volume(tmp_path).array, stored)


def test_several_series_are_named_and_one_file_chooses_one_of_them(tmp_path: Path) -> None:
    write_series(tmp_path, some_ct(), GEOMETRY, "1.2.3.4")
    files = write_series(tmp_path, some_ct() // 2, GEOMETRY, "1.2.3.5", start=100)
    with pytest.raises(InputError, match="2 DICOM series.*'series 4', 7 files.*'series 5', 7 files"):
        read_volume(tmp_path)
    np.testing.assert_array_equal(read_volume(files[3]).array, some_ct() // 2)


@pytest.mark.parametrize("lost", [1, 3])
def test_missing_slices_are_noticed(tmp_path: Path, lost: int) -> None:
    write_series(tmp_path, some_ct(), GEOMETRY)[lost].unlink()
    with pytest.raises(InputError, match="lacks 1 slice.*complete series"):
        read_volume(tmp_path)


def test_two_slices_at_one_place_are_noticed(tmp_path: Path) -> None:
    write_series(tmp_path, some_ct(), GEOMETRY)
    write_series(tmp_path, some_ct(), GEOMETRY, start=100)
    with pytest.raises(InputError, match="7 slices at the position of another"):
        read_volume(tmp_path)


def test_a_scout_view_in_the_series_is_noticed(tmp_path: Path) -> None:
    write_series(tmp_path, some_ct(), GEOMETRY)
    scout = Geometry((9, 8, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 0, -1.0, 0, 1.0, 0))
    write_series(tmp_path, some_ct()[:1], scout, start=100)
    with pytest.raises(InputError, match="scout"):
        read_volume(tmp_path)


def test_a_single_dicom_slice_is_no_volume(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path, some_ct()[:1], GEOMETRY)
    for path in (tmp_path, file):
        with pytest.raises(InputError, match="single slice"):
            read_volume(path)


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="holds no DICOM series"):
        read_volume(tmp_path)


def test_a_modality_in_a_header_field_is_read(tmp_path: Path) -> None:
    image = to_image(some_ct(), GEOMETRY)
    image.SetMetaData("0008|0060", "MR")
    sitk.WriteImage(image, str(tmp_path / "named.nrrd"))
    assert read_volume(tmp_path / "named.nrrd").modality == "MR"
    sitk.WriteImage(to_image(some_ct(), GEOMETRY), str(tmp_path / "plain.nrrd"))
    assert read_volume(tmp_path / "plain.nrrd").modality is None


def grid(**changes: object) -> Geometry:
    sound = {"size": (9, 8, 7), "spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "direction": rotation(0, 0)}
    return Geometry(**(sound | changes))  # type: ignore[arg-type]


LOW, HIGH = SPACING_RANGE_MM


@pytest.mark.parametrize(
    "sound",
    [
        grid(size=(2, 2, 2)),
        grid(spacing=(LOW, LOW, HIGH)),
        grid(size=(2, 2, 100), spacing=(1.0, 1.0, LONGEST_MM / 100)),
        grid(origin=(FARTHEST_MM, -FARTHEST_MM, FARTHEST_MM)),
    ],
)
def test_a_grid_is_sound_up_to_its_limits(sound: Geometry) -> None:
    check_geometry(sound, "it")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (grid(size=(9, 0, 7)), "^it holds no voxel: "),
        (grid(size=(9, 1, 7)), "^it has a single slice: "),
        (grid(spacing=(1.0, LOW / 2, 1.0)), "^it has a voxel size of 1 x .* x 1 mm"),
        (grid(spacing=(1.0, 1.0, 2 * HIGH)), "^it has a voxel size of 1 x 1 x "),
        (grid(size=(2, 2, 101), spacing=(1.0, 1.0, LONGEST_MM / 100)), f"^it is {1.01 * LONGEST_MM / 1000:.1f} m long"),
        (grid(origin=(0.0, 1.01 * FARTHEST_MM, 0.0)), "^it has an origin far outside"),
        (grid(origin=(0.0, 0.0, float("nan"))), "^it has an origin far outside"),
    ],
)
def test_a_grid_beyond_its_limits_is_refused_in_a_sentence(wrong: Geometry, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_geometry(wrong, "it")


def test_sheared_axes_are_refused_unless_they_are_expected() -> None:
    sheared = grid(direction=(1.0, 0.2, 0, 0, 0.98, 0, 0, 0, 1.0))
    with pytest.raises(InputError):
        check_geometry(sheared, "it")
    check_geometry(sheared, "it", sheared=True)


def test_a_matrix_gives_the_grid_that_it_describes() -> None:
    again = Geometry.from_affine(GEOMETRY.size, GEOMETRY.affine)
    np.testing.assert_allclose(again.affine, GEOMETRY.affine, atol=1e-12)
    assert (again.size, again.spacing) == (GEOMETRY.size, pytest.approx(GEOMETRY.spacing))
    assert again.voxel_volume == pytest.approx(0.7 * 0.8 * 2.5)
    for value in (0.0, np.nan, np.inf):
        with pytest.raises(InputError, match="^it has an affine that gives no voxel size"):
            Geometry.from_affine((9, 8, 7), np.diag([1.0, value, 1.0, 1.0]), "it")


def test_an_image_has_the_grid_that_it_was_made_with() -> None:
    made = image_geometry(to_image(some_ct(), GEOMETRY))
    assert (made.size, made.spacing, made.origin) == (GEOMETRY.size, GEOMETRY.spacing, GEOMETRY.origin)
    assert made.direction == pytest.approx(GEOMETRY.direction)


@pytest.mark.parametrize(
    ("shape", "components", "kind", "said"),
    [
        ((9, 8, 7), 1, "int16", None),
        ((9, 8, 7, 1, 1), 1, "", None),
        ((9, 8, 7), 2, "", "^it has colours or vectors"),
        ((9, 8, 7), 1, "complex64", "^it has colours or vectors"),
        ((9, 8), 1, "", "^it is a 2-D image: give a 3-D volume"),
        ((9, 8, 7, 2, 3), 1, "", r"^it holds 6 volumes \(4-D\): extract one of them"),
    ],
)
def test_a_header_that_announces_no_volume_is_refused(
    shape: tuple[int, ...], components: int, kind: str, said: str | None
) -> None:
    if said is None:
        check_scalar_3d(shape, components, "it", kind)
    else:
        with pytest.raises(InputError, match=said):
            check_scalar_3d(shape, components, "it", kind)


def test_two_grids_are_one_where_no_corner_is_a_tenth_of_a_voxel_off() -> None:
    step = TOLERANCE_VOXELS * min(GEOMETRY.spacing)
    x, y, z = GEOMETRY.origin
    assert are_one_grid(GEOMETRY, replace(GEOMETRY, origin=(x, y, z + 0.99 * step)))
    assert not are_one_grid(GEOMETRY, replace(GEOMETRY, origin=(x, y - 1.01 * step, z)))
    assert not are_one_grid(GEOMETRY, replace(GEOMETRY, size=(9, 8, 6)))
    # The last of seven slices is six steps away.
    for part, one in ((0.99, True), (1.01, False)):
        spacing = (0.7, 0.8, 2.5 + part * step / 6)
        assert are_one_grid(GEOMETRY, replace(GEOMETRY, spacing=spacing)) is one


def test_what_is_no_right_angle_begins_at_a_thousandth() -> None:
    for part, right in ((0.0009, True), (0.0011, False)):
        leaning = np.eye(3)
        leaning[0, 1] = part
        assert are_orthonormal(leaning) is right
    assert not are_orthonormal(np.diag([1.0, 1.0, 1.01]))


def test_rounded_directions_become_the_nearest_right_angles() -> None:
    turned = np.reshape(rotation(25, -10), (3, 3))
    np.testing.assert_allclose(nearest_orthonormal(turned @ np.diag([1.01, 0.98, 1.002])), turned, atol=1e-12)


def test_a_modality_is_inferred_only_where_the_values_say_it() -> None:
    volume = Volume(some_ct(), GEOMETRY, "CT")
    assert not volume.modality_inferred and volume.modality_from == "source"
    assert [replace(volume, modality_from=by).modality_inferred for by in ("values", "user")] == [True, False]
