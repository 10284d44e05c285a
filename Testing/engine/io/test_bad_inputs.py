"""Whatever is wrong with an input ends in one sentence that says what to do."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.phantoms import phantom, spine_model
from helpers.saved_images import STRAIGHT, noise, saved

from segmamba.errors import DeviceError, InputError
from segmamba.io.modality import modality_warning
from segmamba.io.read import check_values, quiet, read_volume
from segmamba.io.volume import Geometry, Volume, check_geometry, to_image


def missing(folder: Path) -> Path:
    return folder / "nothing.nii.gz"


def no_image(folder: Path) -> Path:
    path = folder / "letter.nii.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(b"Dear colleague, " * 100)
    return path


def text(folder: Path) -> Path:
    path = folder / "notes.txt"
    path.write_text("no image at all")
    return path


def two_dimensions(folder: Path) -> Path:
    return saved(folder / "slice.nrrd", sitk.GetImageFromArray(noise(9, 9)))


def picture(folder: Path) -> Path:
    return saved(folder / "photo.png", sitk.GetImageFromArray(np.zeros((9, 9, 3), np.uint8), isVector=True))


def four_dimensions(folder: Path) -> Path:
    frames = [sitk.GetImageFromArray(noise(5, 6, 7)) for _ in range(3)]
    return saved(folder / "cine.nii.gz", sitk.JoinSeries(frames))


def vectors(folder: Path) -> Path:
    return saved(folder / "field.mha", sitk.GetImageFromArray(noise(5, 6, 7, 3), isVector=True))


def empty(folder: Path) -> Path:
    path = folder / "empty.nii.gz"
    path.touch()
    return path


def truncated(name: str) -> Callable[[Path], Path]:
    def cut(folder: Path) -> Path:
        path = saved(folder / name, sitk.GetImageFromArray(noise(20, 20, 20)))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return path

    return cut


def damaged_inside(folder: Path) -> Path:
    path = saved(folder / "ct.nii.gz", sitk.GetImageFromArray(noise(20, 20, 20)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    return path


def damaged_at_once(folder: Path) -> Path:
    path = damaged_inside(folder)
    content = path.read_bytes()
    path.write_bytes(content[:10] + b"\x07" + content[11:])  # a block of a type that deflate does not have
    return path


def unpacked_too_short(folder: Path) -> Path:
    path = saved(folder / "short.nii", sitk.GetImageFromArray(noise(20, 20, 20)))
    with gzip.open(folder / "short.nii.gz", "wb") as stream:
        stream.write(path.read_bytes()[:20000])
    return folder / "short.nii.gz"


def without_its_data(folder: Path) -> Path:
    path = saved(folder / "header.mhd", sitk.GetImageFromArray(noise(5, 6, 7)))
    (folder / "header.raw").unlink()
    return path


def nhdr_without_its_data(folder: Path) -> Path:
    path = saved(folder / "header.nhdr", sitk.GetImageFromArray(noise(5, 6, 7)))
    (folder / "header.raw").unlink()
    return path


def nrrd_fields(*more: str, encoding: str = "raw") -> Callable[[Path], Path]:
    """Return what writes an NRRD file as a program would that knows of voxels alone, and these fields."""

    def write(folder: Path) -> Path:
        lines = ("NRRD0004", "type: short", "dimension: 3", "sizes: 7 6 5", "endian: little", f"encoding: {encoding}")
        header = "\n".join([*lines, *filter(None, more)]) + "\n\n"
        (folder / "bare.nrrd").write_bytes(header.encode() + noise(5, 6, 7).astype("<i2").tobytes())
        return folder / "bare.nrrd"

    return write


packed_with_bzip2 = nrrd_fields("spacings: 1 1 1", encoding="bzip2")


def tiff(folder: Path) -> Path:
    return saved(folder / "stack.tif", sitk.GetImageFromArray(noise(5, 6, 7)))


def with_values(name: str, *values: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        array = noise(5, 6, 7)
        array.flat[: len(values)] = values
        return saved(folder / name, sitk.GetImageFromArray(array))

    return write


def all_nan(folder: Path) -> Path:
    return saved(folder / "nan.nii", sitk.GetImageFromArray(np.full((5, 6, 7), np.nan, np.float32)))


def constant(folder: Path) -> Path:
    return saved(folder / "flat.mha", sitk.GetImageFromArray(np.full((5, 6, 7), -1000, np.int16)))


def single_slice(folder: Path) -> Path:
    return saved(folder / "thin.nrrd", sitk.GetImageFromArray(noise(1, 6, 7)))


def huge_voxels(folder: Path) -> Path:
    image = sitk.GetImageFromArray(noise(5, 6, 7))
    image.SetSpacing((1.0, 1.0, 2500.0))
    return saved(folder / "huge.nrrd", image)


def no_spacing(folder: Path) -> Path:
    path = saved(folder / "zero.nrrd", sitk.GetImageFromArray(noise(5, 6, 7)))
    path.write_bytes(path.read_bytes().replace(b"(0,0,1)", b"(0,0,0)"))
    return path


def sheared(folder: Path) -> Path:
    image = sitk.GetImageFromArray(noise(5, 6, 7))
    image.SetDirection((1, 0, 0, 0, 1, 2.0, 0, 0, 1))
    return saved(folder / "tilt.nrrd", image)


def sheared_sform(qform_code: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = saved(folder / "tilt.nii", sitk.GetImageFromArray(noise(5, 6, 7)))
        header = bytearray(path.read_bytes())
        struct.pack_into("<2h", header, 252, qform_code, 1)
        struct.pack_into("<12f", header, 280, *(-1, 0, 0, 0), *(0, -1, -2.0, 0), *(0, 0, 1, 0))
        path.write_bytes(header)
        return path

    return write


def with_spacing(*spacing: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = sitk.GetImageFromArray(noise(5, 6, 7))
        image.SetSpacing(spacing)
        return saved(folder / "sized.nrrd", image)

    return write


def long(folder: Path) -> Path:
    image = sitk.GetImageFromArray(noise(52, 4, 4))
    image.SetSpacing((1.0, 1.0, 50.0))
    return saved(folder / "long.nrrd", image)


def far_away(folder: Path) -> Path:
    image = sitk.GetImageFromArray(noise(5, 6, 7))
    image.SetOrigin((0.0, 1e7, 0.0))
    return saved(folder / "far.nrrd", image)


def with_header(name: str, old: bytes, new: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = saved(folder / name, sitk.GetImageFromArray(noise(5, 6, 7)))
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))
        return path

    return write


def with_nifti_field(offset: int, kind: str, *values: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = sitk.GetImageFromArray(noise(5, 6, 7))
        image.SetSpacing((1.5, 1.5, 1.5))
        path = saved(folder / "field.nii", image)
        content = bytearray(path.read_bytes())
        struct.pack_into(kind, content, offset, *values)
        path.write_bytes(content)
        return path

    return write


def under_another_name(name: str, wrong: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        return saved(folder / f"right{name}", sitk.GetImageFromArray(noise(5, 6, 7))).rename(folder / f"ct{wrong}")

    return write


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "ct.nii")
    return folder / "ct.nii"


def loop(folder: Path) -> Path:
    (folder / "ct.nii").symlink_to(folder / "ct.nii")
    return folder / "ct.nii"


def below_a_file(folder: Path) -> Path:
    return text(folder) / "ct.nii"


IMPOSSIBLE = "impossible voxel size or direction: correct the header"
PIXDIM, SROW, VOX_OFFSET, UNITS = 80, 280, 108, 123
CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing file": (missing, "does not exist: check the path"),
    "gzip of something else": (no_image, "is not an image that can be read: give NIfTI"),
    "text": (text, "is not an image that can be read: give NIfTI"),
    "2-D": (two_dimensions, "2-D image: give a 3-D volume"),
    "photo": (picture, "colours or vectors"),
    "4-D": (four_dimensions, r"holds 3 volumes \(4-D\): extract one"),
    "vectors": (vectors, "colours or vectors"),
    "empty": (empty, r"is empty \(0 bytes\)"),
    "truncated gzip": (truncated("ct.nii.gz"), "truncated or damaged: copy"),
    "damaged gzip that ends as it should": (damaged_inside, "truncated or damaged: copy"),
    "gzip that is damaged at its beginning": (damaged_at_once, "truncated or damaged: copy"),
    "truncated NIfTI": (truncated("ct.nii"), "is truncated: copy"),
    "truncated NRRD": (truncated("ct.nrrd"), "incomplete or damaged, copy"),
    "truncated MetaImage": (truncated("ct.mha"), "incomplete or damaged, copy"),
    "whole gzip of half a NIfTI": (unpacked_too_short, "is truncated: copy"),
    "header alone": (without_its_data, "belongs to header.raw, which is missing: copy both"),
    "NRRD header alone": (nhdr_without_its_data, "belongs to header.raw, which is missing: copy both"),
    "NRRD packed with bzip2": (packed_with_bzip2, "packed with bzip2, which cannot be read: save it with gzip"),
    "NRRD without a voxel size": (nrrd_fields(""), "does not say how large its voxels are: give"),
    "MetaImage without a voxel size": (
        with_header("a.mha", b"ElementSpacing = 1 1 1\n", b""),
        "does not say how large its voxels are: give",
    ),
    "TIFF": (tiff, "does not say how large its voxels are: give"),
    "all NaN": (all_nan, "no valid value"),
    "NaN in NRRD": (with_values("odd.nrrd", np.nan, np.inf, -np.inf), "has NaN or infinity in 3 voxels: repair"),
    "NaN in NIfTI": (with_values("odd.nii.gz", np.nan, np.inf), "has NaN or infinity in 2 voxels: repair"),
    "constant": (constant, "the value -1000 everywhere"),
    "single slice": (single_slice, "single slice"),
    "absurd spacing": (huge_voxels, "voxel size of 1 x 1 x 2500 mm"),
    "no spacing": (no_spacing, "impossible voxel size"),
    "NRRD sheared beyond any gantry": (sheared, "far from right angles"),
    "NIfTI sheared beyond any gantry": (sheared_sform(0), "far from right angles"),
    "NIfTI sheared beyond any gantry with a sound qform": (sheared_sform(1), "far from right angles"),
    "tiny voxels": (with_spacing(0.001, 0.001, 0.001), "voxel size of 0.001 x 0.001 x 0.001 mm"),
    "longer than a patient": (long, "is 2.6 m long, more than any patient: correct the voxel size"),
    "metres for millimetres in NIfTI": (with_nifti_field(UNITS, "<b", 1), "voxel size of 1500 x 1500 x 1500 mm"),
    "origin far away": (far_away, "an origin far outside any scanner: correct it"),
    "zero spacing in MetaImage": (with_header("a.mha", b"Spacing = 1 1 1", b"Spacing = 0 1 1"), IMPOSSIBLE),
    "NaN for spacing in MetaImage": (with_header("a.mha", b"Spacing = 1 1 1", b"Spacing = nan 1 1"), IMPOSSIBLE),
    "zero spacing in NIfTI": (with_nifti_field(PIXDIM, "<f", 0.0), IMPOSSIBLE),
    "another spacing in NIfTI's other place": (
        with_nifti_field(PIXDIM, "<f", 2.0),
        "gives two voxel sizes .2 x 1.5 x 1.5 and 1.5",
    ),
    "negative spacing in NIfTI": (with_nifti_field(PIXDIM, "<f", -1.0), IMPOSSIBLE),
    "NaN in NIfTI's directions": (with_nifti_field(SROW, "<f", np.nan), IMPOSSIBLE),
    "voxels within NIfTI's header": (with_nifti_field(VOX_OFFSET, "<f", 348.0), "damaged header .*: export it again"),
    "no slices": (with_header("a.mha", b"DimSize = 7 6 5", b"DimSize = 7 6 0"), "holds no voxel"),
    "more slices than voxels": (with_header("a.mha", b"DimSize = 7 6 5", b"DimSize = 7 6 9"), "incomplete or damaged"),
    "NRRD called .nii.gz": (under_another_name(".nrrd", ".nii.gz"), "change its extension to .nrrd"),
    "NIfTI called .nii.gz": (under_another_name(".nii", ".nii.gz"), "change its extension to .nii"),
    "packed NIfTI called .nii": (under_another_name(".nii.gz", ".nii"), "change its extension to .nii.gz"),
    "NIfTI called .mha": (under_another_name(".nii", ".mha"), "change its extension to .nii"),
    "MetaImage called .dcm": (under_another_name(".mha", ".dcm"), "change its extension to .mha"),
    "a pipe": (pipe, "neither a file nor a folder"),
    "a link to itself": (loop, "cannot be opened"),
    "below a file": (below_a_file, "does not exist: check the path"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_ends_in_one_sentence(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, reason = CASES[case]
    path = make(tmp_path)
    capfd.readouterr()
    with pytest.raises(InputError, match=reason) as caught:
        read_volume(path)
    message = str(caught.value)
    assert str(path) in message and message.endswith(".") and "\n" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bad", ["size", "spacing", "origin", "direction"])
def test_a_bad_geometry_is_named(bad: str) -> None:
    parts: dict[str, tuple] = {"size": (9, 9, 9), "spacing": (1.0,) * 3, "origin": (0.0,) * 3, "direction": STRAIGHT}
    wrong = {
        "size": (9, 9, 1),
        "spacing": (0.0, 1.0, 1.0),
        "origin": (np.nan, 0.0, 0.0),
        "direction": (1.0, 0, 0, 0, 1.0, 0.01, 0, 0, 1.0),
    }
    check_geometry(Geometry(**parts), "it")
    with pytest.raises(InputError, match="^it has"):
        check_geometry(Geometry(**(parts | {bad: wrong[bad]})), "it")


@pytest.mark.parametrize(("old", "new"), [(b"DimSize = 7 6 5", b"DimSize = 99999 99999 99999")])
def test_a_volume_that_no_memory_holds_ends_in_one_sentence(old: bytes, new: bytes, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="not enough memory to read .* has 999,970,000,299,999 voxels by its header"):
        read_volume(with_header("a.mha", old, new)(tmp_path))


@pytest.mark.parametrize(
    ("offset", "filler", "sentence"),
    [
        (0, None, None),
        (1024, None, "as bright as dense bone"),
        (1024, -2000, "as bright as dense bone"),
        (-1024, None, "Hardly anything in the volume is between"),
    ],
)
def test_a_ct_with_a_wrong_offset_is_told(offset: int, filler: int | None, sentence: str | None) -> None:
    volume = phantom()
    array = volume.array + offset
    if filler is not None:
        array[:, :2] = filler
    said = modality_warning(Volume(array, volume.geometry, "CT"), spine_model())
    assert (said is None) if sentence is None else (said is not None and sentence in said and said.endswith("."))


def test_a_header_that_asks_for_more_than_its_file_holds_is_refused_before_voxels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = truncated("ct.nii")(tmp_path)
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("allocates what the header asks for"))
    with pytest.raises(InputError, match="is truncated: copy"):
        read_volume(path)


def test_a_sound_volume_passes() -> None:
    volume = phantom()
    check_geometry(volume.geometry, "it")
    check_values(volume.array, "it")
    assert to_image(volume.array, volume.geometry).GetSize() == volume.geometry.size


@pytest.mark.parametrize("name", ["spaced.nrrd", "spaced.mha", "volume.vtk"])
def test_a_file_that_does_not_say_how_the_patient_lies_is_told(name: str, tmp_path: Path) -> None:
    if name.endswith(".nrrd"):
        path = nrrd_fields("spacings: 1 1 2")(tmp_path)
    else:
        path = saved(tmp_path / name, sitk.GetImageFromArray(noise(5, 6, 7)))
        path.write_bytes(path.read_bytes().replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b""))
    assert "does not say how the patient lies" in read_volume(path).notes[0]


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.nhdr", "ct.mha", "ct.mhd", "ct.nii.gz"])
def test_a_file_with_directions_is_read_without_a_word(name: str, tmp_path: Path) -> None:
    assert read_volume(saved(tmp_path / name, sitk.GetImageFromArray(noise(5, 6, 7)))).notes == ()


def test_readers_at_the_same_time_give_the_terminal_back_when_the_last_one_ends(
    capfd: pytest.CaptureFixture[str],
) -> None:
    one, other = quiet(), quiet()
    one.__enter__()
    other.__enter__()
    os.write(1, b"of a library")
    one.__exit__(None, None, None)
    os.write(2, b"of a library")
    other.__exit__(None, None, None)
    os.write(1, b"said")
    os.write(2, b"warned")
    assert capfd.readouterr() == ("said", "warned")
