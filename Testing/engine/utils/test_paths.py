"""Files that cannot be opened, are not what their path says, or change meanwhile."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.dicom_files import write_slices
from helpers.saved_images import STRAIGHT, noise, saved
from helpers.users import ordinary_user

from segmamba.errors import InputError
from segmamba.io import nifti
from segmamba.io.dicom import read_files
from segmamba.io.read import read_volume
from segmamba.io.volume import Geometry


def test_a_path_that_is_too_long_ends_in_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / ("a" * 300 + ".nii"), tmp_path.joinpath(*["folder" * 30] * 30)):
        with pytest.raises(InputError, match="cannot be opened .*: check its name"):
            read_volume(path)


@pytest.mark.parametrize("name", ["\udcff.nii", "a\0b.nii"])
def test_a_path_that_is_no_text_ends_in_one_sentence_and_not_the_process(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="characters that are not valid text: rename") as caught:
        read_volume(tmp_path / name)
    str(caught.value).encode("utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_dicom_file_whose_name_is_no_text_ends_in_one_sentence_and_not_the_process(tmp_path: Path) -> None:
    geometry = Geometry((4, 4, 3), (1.0,) * 3, (0.0,) * 3, STRAIGHT)
    file = write_slices(tmp_path / "series", np.arange(48, dtype=np.int16).reshape(3, 4, 4), geometry)[1]
    odd = file.rename(file.with_name("\udcff.dcm"))
    for path in (odd, tmp_path / "series"):
        with pytest.raises(InputError, match="characters that are not valid text: rename"):
            read_volume(path)
    with pytest.raises(InputError, match="characters that are not valid text: rename"):
        read_files("it", [str(file) for file in (tmp_path / "series").iterdir()])


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_what_may_not_be_read_ends_in_one_sentence(tmp_path: Path) -> None:
    file, folder = saved(tmp_path / "ct.nii", sitk.GetImageFromArray(noise(5, 6, 7))), tmp_path / "series"
    folder.mkdir()
    file.chmod(0)
    folder.chmod(0)
    for part in (tmp_path, *tmp_path.parents[:-2]):
        part.chmod(part.stat().st_mode | 0o555)
    with ordinary_user():
        for path in (file, folder, folder / "slice.dcm"):
            with pytest.raises(
                InputError, match="cannot be opened .Permission denied.: check its name and permissions"
            ):
                read_volume(path)
    folder.chmod(0o700)


def test_the_voxels_of_a_packed_file_do_not_come_from_the_unpacked_one_beside_it(tmp_path: Path) -> None:
    for name, value in (("ct.nii", 1), ("ct.nii.gz", 2)):
        saved(tmp_path / name, sitk.GetImageFromArray(noise(5, 6, 7) + 100 * value))
    for name, value in (("ct.nii", 1), ("ct.nii.gz", 2)):
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, noise(5, 6, 7) + 100 * value)


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "cut"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    replaced: bool, dtype: type, extension: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / f"ct{extension}", sitk.GetImageFromArray(noise(20, 20, 20).astype(dtype)))
    geometry_of = nifti._geometry

    def change(*arguments: Any) -> Geometry:
        if replaced:
            path.unlink()
            saved(path, sitk.GetImageFromArray(noise(20, 20, 20).astype(dtype)))
            os.utime(path, (0, 0))
        else:
            os.truncate(path, path.stat().st_size // 2)
        return geometry_of(*arguments)

    monkeypatch.setattr(nifti, "_geometry", change)
    with pytest.raises(InputError, match="changed while it was read: wait"):
        read_volume(path)
