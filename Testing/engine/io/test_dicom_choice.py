"""Which series a folder, a file or the directory of a disc stands for, in one sentence where it is none or many."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.dicom_files import STORAGE, write_dataset, write_slices
from helpers.small_series import GEOMETRY, some_ct
from pydicom.uid import MediaStorageDirectoryStorage, generate_uid

from segmamba.errors import InputError
from segmamba.io import dicom_index
from segmamba.io.dicom_choice import find_files
from segmamba.io.dicom_headers import headers
from segmamba.io.read import read_volume


def test_a_folder_stands_for_the_only_scan_below_it(tmp_path: Path) -> None:
    write_slices(tmp_path / "DICOM" / "A" / "1", some_ct(), GEOMETRY)
    write_slices(tmp_path / "DICOM" / "A" / "2", some_ct()[:2], GEOMETRY, SeriesDescription="Scout")
    (tmp_path / "README.TXT").write_text("This disc holds images.")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, some_ct())
    (note,) = volume.notes
    assert re.search(
        r"this is the only scan; not segmented: CT 'Scout', 2 files, for example DICOM.A.2.IM\d+.dcm.$", note
    )
    assert read_volume(tmp_path / "DICOM" / "A" / "1").notes == ()
    # A series that a batch leaves out is read where it is the only one.
    np.testing.assert_array_equal(read_volume(tmp_path / "DICOM" / "A" / "2").array, some_ct()[:2])


def test_the_directory_of_a_disc_stands_for_its_folder(tmp_path: Path) -> None:
    write_slices(tmp_path / "DICOM", some_ct(), GEOMETRY)
    for name in ("DICOMDIR", "index"):
        write_dataset(tmp_path / name, {"SOPClassUID": MediaStorageDirectoryStorage, "SOPInstanceUID": generate_uid()})
    np.testing.assert_array_equal(read_volume(tmp_path / "DICOMDIR").array, some_ct())
    with pytest.raises(InputError, match="index lists the files of a disc and is not an image: give the folder"):
        read_volume(tmp_path / "index")


def test_headers_are_read_again_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_slices(tmp_path, some_ct(), GEOMETRY)
    read: list[Path] = []
    monkeypatch.setattr(dicom_index, "headers", lambda paths: headers(read.append(path) or path for path in paths))
    for path in (tmp_path, files[0], tmp_path, files[0]):
        assert len(find_files(path)) == 10
    assert len(read) == 20
    shutil.copy(files[0], tmp_path / "copy")
    files[1].unlink()
    assert len(find_files(tmp_path)) == 9
    assert len(read) == 30


def test_hidden_files_of_other_systems_beside_slices_are_not_damaged_slices(tmp_path: Path) -> None:
    files = write_slices(tmp_path, some_ct(), GEOMETRY)
    for file in files:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    for path in (tmp_path, files[0]):
        np.testing.assert_array_equal(read_volume(path).array, some_ct())


def test_eighty_series_are_told_in_a_sentence_that_can_be_read(tmp_path: Path) -> None:
    for number in range(80):
        tags = {"Modality": "CT", "SOPClassUID": STORAGE["CT"], "SeriesInstanceUID": f"1.{number}", "Rows": 8}
        frames = {"NumberOfFrames": 20, "SOPInstanceUID": generate_uid(), "SeriesDescription": f"phase {number}"}
        write_dataset(tmp_path / f"{number:02}", tags | frames)
    with pytest.raises(
        InputError, match=r"holds 80 DICOM series: give one file .*; and 75 more.*segmamba batch"
    ) as told:
        find_files(tmp_path)
    assert len(str(told.value)) < 600 and "CT 'phase 0', 1 file, for example 00" in str(told.value)
