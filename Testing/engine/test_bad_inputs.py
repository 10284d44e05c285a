"""Whatever is wrong with an input ends in one sentence that says what to do."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import phantom

from segmamba.errors import InputError
from segmamba.volume import Geometry, check_geometry, check_values, read_volume, to_image

STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def saved(path: Path, image: sitk.Image) -> Path:
    sitk.WriteImage(image, str(path))
    return path


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


def unpacked_too_short(folder: Path) -> Path:
    path = saved(folder / "short.nii", sitk.GetImageFromArray(noise(20, 20, 20)))
    with gzip.open(folder / "short.nii.gz", "wb") as stream:
        stream.write(path.read_bytes()[:20000])
    return folder / "short.nii.gz"


def without_its_data(folder: Path) -> Path:
    path = saved(folder / "header.mhd", sitk.GetImageFromArray(noise(5, 6, 7)))
    (folder / "header.raw").unlink()
    return path


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
    image.SetDirection((1, 0, 0, 0, 1, 0.2, 0, 0, 1))
    return saved(folder / "tilt.nrrd", image)


def sheared_sform(qform_code: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = saved(folder / "tilt.nii", sitk.GetImageFromArray(noise(5, 6, 7)))
        header = bytearray(path.read_bytes())
        struct.pack_into("<2h", header, 252, qform_code, 1)
        struct.pack_into("<12f", header, 280, *(-1, 0, 0, 0), *(0, -1, -0.2, 0), *(0, 0, 1, 0))
        path.write_bytes(header)
        return path

    return write


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
    "truncated NIfTI": (truncated("ct.nii"), "is truncated: copy"),
    "truncated NRRD": (truncated("ct.nrrd"), "incomplete or damaged, copy"),
    "truncated MetaImage": (truncated("ct.mha"), "incomplete or damaged, copy"),
    "whole gzip of half a NIfTI": (unpacked_too_short, "is truncated: copy"),
    "header alone": (without_its_data, "incomplete or damaged, copy"),
    "all NaN": (all_nan, "no number at all"),
    "NaN in NRRD": (with_values("odd.nrrd", np.nan, np.inf, -np.inf), "has 3 voxels that are NaN or infinite: repair"),
    "NaN in NIfTI": (with_values("odd.nii.gz", np.nan, np.inf), "has 2 voxels that are NaN or infinite: repair"),
    "constant": (constant, "the value -1000 everywhere"),
    "single slice": (single_slice, "single slice"),
    "absurd spacing": (huge_voxels, "voxel size of 1 x 1 x 2500 mm"),
    "no spacing": (no_spacing, "impossible voxel size"),
    "sheared NRRD": (sheared, "not at right angles"),
    "sheared NIfTI": (sheared_sform(0), "not at right angles"),
    "sheared NIfTI with a sound qform": (sheared_sform(1), "not at right angles"),
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


def test_a_sound_volume_passes() -> None:
    volume = phantom()
    check_geometry(volume.geometry, "it")
    check_values(volume.array, "it")
    assert to_image(volume.array, volume.geometry).GetSize() == volume.geometry.size
