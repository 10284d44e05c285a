"""NIfTI is read as ITK reads it, which shows the volume in Slicer, and where ITK is silent in one sentence."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.phantoms import rotation

from segmamba.errors import DeviceError, InputError
from segmamba.io import nifti
from segmamba.io.labelmap import write_labelmap
from segmamba.io.read import read_image, read_volume
from segmamba.io.volume import image_geometry

SPACING = (1.5, 2.0, 2.5)
DIM, TYPE, PIXDIM, OFFSET, SLOPE, UNITS, CODES = 42, 70, 76, 108, 112, 123, 252
NONE, SCANNER, ALIGNED = 0, 1, 2


def grid(x_degrees: float, y_degrees: float, mirrored: bool = False) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(rotation(x_degrees, y_degrees), (3, 3)) * SPACING * ((-1, 1, 1) if mirrored else 1)
    matrix[:3, 3] = (10, -20, 30)
    return matrix


def values(kind: str = "int16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype(kind)


def written(path: Path, image: nibabel.Nifti1Image, *fields: tuple[int, str, tuple[float, ...]]) -> Path:
    """Write an image, then fields of its header at their offsets."""
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    for offset, kind, numbers in fields:
        struct.pack_into(f"<{len(numbers)}{kind}", content, offset, *numbers)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("qform_code", [NONE, SCANNER, ALIGNED])
@pytest.mark.parametrize("sform_code", [NONE, SCANNER, ALIGNED, 4])
def test_the_grid_is_that_of_itk_whichever_of_its_two_places_states_it_and_the_standards_where_none_does(
    sform_code: int, qform_code: int, mirrored: bool, tmp_path: Path
) -> None:
    image = nibabel.Nifti1Image(values(), None)
    image.set_qform(grid(-5, 40, mirrored), qform_code)
    image.set_sform(grid(20, -15, mirrored), sform_code)
    path = written(tmp_path / "ct.nii", image, (CODES, "h", (qform_code, sform_code)))
    expected = image_geometry(sitk.ReadImage(str(path)))
    volume = read_volume(path)
    affine = expected.affine if sform_code or qform_code else np.diag([-1, -1, 1, 1]) @ expected.affine
    np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-5)
    assert volume.geometry.size == expected.size
    np.testing.assert_array_equal(volume.array.T, values())


@pytest.mark.parametrize("unit", [0, 1, 2, 3, 10])
@pytest.mark.parametrize("codes", [(0, 1), (1, 0)])
def test_the_unit_of_length_is_taken_as_itk_takes_it(unit: int, codes: tuple[int, int], tmp_path: Path) -> None:
    affine = np.diag([0.02, 0.02, 0.02, 1.0]) if unit == 1 else np.diag([20.0, 20.0, 20.0, 1.0])
    affine[:3, 3] = (1, 2, 3)
    path = written(
        tmp_path / "ct.nii", nibabel.Nifti1Image(values(), affine), (UNITS, "b", (unit,)), (CODES, "h", codes)
    )
    np.testing.assert_allclose(
        read_volume(path).geometry.affine, image_geometry(sitk.ReadImage(str(path))).affine, atol=1e-5
    )


@pytest.mark.parametrize("pair", [(1, 0), (0, 0), (0, 5), (2, 0), (1, -1024), (1.1, 0.3), (np.nan, 0), (1, np.inf)])
@pytest.mark.parametrize(
    "kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)
def test_values_are_those_of_itk_and_in_its_type_or_a_smaller_one(
    kind: str, pair: tuple[float, float], tmp_path: Path
) -> None:
    path = written(tmp_path / "ct.nii", nibabel.Nifti1Image(values(kind), np.eye(4), dtype=kind), (SLOPE, "f", pair))
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    array = read_volume(path).array
    whole = "int" in kind and pair in ((0, 5), (2, 0), (1, -1024))
    assert array.dtype == (np.int16 if whole else expected.dtype)
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(("stored", "kind"), [(-31744, np.int16), (-31745, np.float32)])
def test_whole_numbers_beyond_16_bits_are_kept_as_floating_ones(stored: int, kind: type, tmp_path: Path) -> None:
    array = values("int16")
    array[0, 0, 0] = stored
    path = written(tmp_path / "ct.nii", nibabel.Nifti1Image(array, np.eye(4), dtype="int16"), (SLOPE, "f", (1, -1024)))
    found = read_volume(path).array
    assert found.dtype == kind
    assert found.min() == stored - 1024


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.hdr", "ct.img"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_both_versions_are_read_from_one_file_and_from_two(
    kind: type[nibabel.Nifti1Image], name: str, tmp_path: Path
) -> None:
    pairs = {nibabel.Nifti1Image: nibabel.Nifti1Pair, nibabel.Nifti2Image: nibabel.nifti2.Nifti2Pair}
    image = (kind if ".nii" in name else pairs[kind])(values(), grid(20, -15))
    image.to_filename(tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array.T, values())
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ volume.geometry.affine, grid(20, -15), atol=1e-5)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["i2", "f4", "f8"])
def test_a_file_of_either_byte_order_is_read_as_the_processors_own(order: str, dtype: str, tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=order)
    image = nibabel.Nifti1Image(values(order + dtype), grid(0, 0), header, dtype=np.dtype(order + dtype))
    nibabel.save(image, tmp_path / "ct.nii")
    array = read_volume(tmp_path / "ct.nii").array
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array.T, values())


def test_a_label_map_is_read_whatever_its_values(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 6, 7), np.uint8), np.eye(4)), tmp_path / "empty.nii.gz")
    assert not read_image(tmp_path / "empty.nii.gz").array.any()
    with pytest.raises(InputError, match="the value 0 everywhere"):
        read_volume(tmp_path / "empty.nii.gz")


def test_a_missing_half_is_named(tmp_path: Path) -> None:
    nibabel.Nifti1Pair(values(), np.eye(4)).to_filename(tmp_path / "ct.img")
    (tmp_path / "ct.hdr").unlink()
    with pytest.raises(InputError, match=r"ct.img belongs to ct.hdr, which is missing: copy both"):
        read_volume(tmp_path / "ct.img")


def test_an_analyze_file_which_does_not_say_left_from_right_is_refused(tmp_path: Path) -> None:
    nibabel.AnalyzeImage(values(), np.eye(4)).to_filename(tmp_path / "ct.img")
    with pytest.raises(InputError, match="is an Analyze file, which does not say left from right: convert"):
        read_volume(tmp_path / "ct.img")


def test_nifti_2_with_another_name_is_told_its_own(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(values(), np.eye(4)), tmp_path / "ct.nii")
    with pytest.raises(InputError, match="change its extension to .nii"):
        read_volume((tmp_path / "ct.nii").rename(tmp_path / "ct.mha"))


def test_a_qform_that_is_no_rotation_is_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values(), np.eye(4))
    path = written(tmp_path / "ct.nii", image, (CODES, "h", (1, 0)), (256, "f", (0.9, 0.9, 0.9)))
    with pytest.raises(InputError, match="impossible voxel size or direction"):
        read_volume(path)


def test_a_zero_for_the_side_of_the_qform_is_read_as_itk_reads_it(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values(), np.eye(4))
    path = written(tmp_path / "ct.nii", image, (CODES, "h", (1, 0)), (PIXDIM, "f", (0.0,)))
    np.testing.assert_allclose(read_volume(path).geometry.affine, image_geometry(sitk.ReadImage(str(path))).affine)


def test_bytes_behind_the_voxels_are_passed_over_but_their_checksum_is_not(tmp_path: Path) -> None:
    path = written(tmp_path / "ct.nii", nibabel.Nifti1Image(values(), np.eye(4)))
    packed = gzip.compress(path.read_bytes() + bytes(1000))
    (tmp_path / "more.nii.gz").write_bytes(packed)
    np.testing.assert_array_equal(read_volume(tmp_path / "more.nii.gz").array.T, values())
    (tmp_path / "more.nii.gz").write_bytes(packed[:-8] + bytes(4) + packed[-4:])
    with pytest.raises(InputError, match="truncated or damaged: copy"):
        read_volume(tmp_path / "more.nii.gz")


def test_a_volume_that_no_memory_holds_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nibabel.save(nibabel.Nifti1Image(values(), np.eye(4)), tmp_path / "ct.nii.gz")
    monkeypatch.setattr(nifti.np, "empty", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(DeviceError, match="not enough memory to read .* has 210 voxels by its header"):
        read_volume(tmp_path / "ct.nii.gz")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("offset", [1e9, 1e19, 1e30])
def test_voxels_that_begin_where_no_file_reaches_end_in_one_sentence(
    offset: float, packed: bool, tmp_path: Path
) -> None:
    path = written(tmp_path / "ct.nii", nibabel.Nifti1Image(values(), np.eye(4)), (OFFSET, "f", (offset,)))
    if packed:
        (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / "ct.nii.gz"
    with pytest.raises(InputError, match="is truncated: copy"):
        read_volume(path)


@pytest.mark.parametrize("packed", [True, False])
def test_a_header_that_asks_for_more_than_any_memory_holds_ends_in_one_sentence(packed: bool, tmp_path: Path) -> None:
    small = nibabel.Nifti1Image(values(), np.diag([0.05, 0.05, 0.05, 1]))
    path = written(tmp_path / "ct.nii", small, (DIM, "h", (32767, 32767, 32767)))
    if packed:
        (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / "ct.nii.gz"
    # Where the system promises more memory than it has, the end of the file comes first.
    with pytest.raises((InputError, DeviceError), match="is truncated: copy|not enough memory to read"):
        read_volume(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("codes", [(0, 1), (1, 0)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_header_with_damaged_bytes_is_read_or_ends_in_one_sentence(
    kind: type[nibabel.Nifti1Image], codes: tuple[int, int], tmp_path: Path
) -> None:
    image = kind(values(), None)
    image.set_qform(grid(20, -15), codes[0])
    image.set_sform(grid(20, -15), codes[1])
    content = written(tmp_path / "ct.nii", image).read_bytes()
    rng = np.random.default_rng(1)
    sound = 0
    for _ in range(150):
        damaged = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(4, image.header.sizeof_hdr, rng.integers(1, 5))
        damaged[places] = rng.choice([0, 1, 127, 128, 255], len(places))
        (tmp_path / "ct.nii").write_bytes(damaged.tobytes())
        try:
            sound += bool(np.isfinite(read_image(tmp_path / "ct.nii").geometry.affine).all())
        except (InputError, DeviceError) as error:
            assert str(error).endswith(".") and "\n" not in str(error)
    assert 0 < sound < 150


@pytest.mark.parametrize("code", [0, 1, 32, 260, 1536])
def test_a_type_of_voxels_that_is_none_of_numbers_is_refused(code: int, tmp_path: Path) -> None:
    path = written(tmp_path / "ct.nii", nibabel.Nifti1Image(values(), np.eye(4)), (TYPE, "h", (code,)))
    with pytest.raises(InputError, match="is not an image that can be read|has colours or vectors"):
        read_volume(path)


@pytest.mark.parametrize(("codes", "used"), [((1, 1), "sform"), ((1, 2), "qform")])
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
@pytest.mark.parametrize("second", [grid(20, -15, mirrored=True), grid(0, 20)])
def test_two_places_that_differ_are_told_and_the_label_map_keeps_both(
    second: np.ndarray, extension: str, codes: tuple[int, int], used: str, tmp_path: Path
) -> None:
    image = nibabel.Nifti1Image(values(), None)
    image.set_qform(grid(0, 0), codes[0])
    image.set_sform(second, codes[1])
    nibabel.save(image, tmp_path / f"ct{extension}")
    volume = read_volume(tmp_path / f"ct{extension}")
    assert f"The {used} was used" in volume.notes[0]
    write_labelmap(tmp_path / f"labels{extension}", (volume.array > 50).astype(np.uint8), volume.geometry, ())
    written, source = (nibabel.load(tmp_path / f"{name}{extension}") for name in ("labels", "ct"))
    for form in ("get_sform", "get_qform"):
        (matrix, code), (expected, source_code) = (getattr(one, form)(coded=True) for one in (written, source))
        np.testing.assert_array_equal(matrix, expected)
        assert code == source_code
    by_itk = [image_geometry(sitk.ReadImage(str(tmp_path / f"{name}{extension}"))) for name in ("labels", "ct")]
    np.testing.assert_allclose(by_itk[0].affine, by_itk[1].affine)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), values() > 50)


def test_two_places_that_agree_are_no_doubt(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values(), None)
    image.set_qform(grid(0, 0), 1)
    image.set_sform(grid(0, 0.1), 1)
    nibabel.save(image, tmp_path / "ct.nii")
    assert read_volume(tmp_path / "ct.nii").notes == ()


def test_labels_of_a_part_of_a_volume_do_not_get_the_places_of_the_whole(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(values(), grid(20, -15)), tmp_path / "ct.nii")
    whole = read_volume(tmp_path / "ct.nii").geometry
    part = replace(whole, size=(3, 4, 5), origin=(1.0, 2.0, 3.0))
    write_labelmap(tmp_path / "part.nii", np.ones((5, 4, 3), np.uint8), part, ())
    np.testing.assert_allclose(read_image(tmp_path / "part.nii").geometry.affine, part.affine, atol=1e-5)


def test_a_file_without_an_orientation_lies_in_the_standards_own_axes_and_says_so(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values(), None)
    image.header.set_zooms(SPACING)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    volume = read_volume(tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ volume.geometry.affine, np.diag([*SPACING, 1]))
    assert "does not say how the patient lies" in volume.notes[0]
    write_labelmap(tmp_path / "labels.nii", (volume.array > 50).astype(np.uint8), volume.geometry, ())
    header = nibabel.load(tmp_path / "labels.nii").header
    assert (header["sform_code"], header["qform_code"]) == (0, 0)
    np.testing.assert_allclose(read_image(tmp_path / "labels.nii").geometry.affine, volume.geometry.affine)


@pytest.mark.parametrize("shear", [1e-4, 2e-4, 5e-4, 9e-4])
def test_rounding_shear_is_read_without_a_word(shear: float, tmp_path: Path) -> None:
    affine = np.diag([1.5, 1, 2, 1.0])
    affine[1, 2] = 2 * shear
    nibabel.save(nibabel.Nifti1Image(values(), affine), tmp_path / "ct.nii")
    volume = read_volume(tmp_path / "ct.nii")
    assert volume.notes == () and volume.stored is None
    np.testing.assert_array_equal(volume.array.T, values())
