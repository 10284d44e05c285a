"""Finding DICOM series: each one once, and what is left out with the reason."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers.dicom_files import STORAGE, write_dataset, write_frames, write_slices
from helpers.small_series import GEOMETRY, SAGITTAL, only, some_ct
from pydicom.uid import EnhancedSRStorage, MediaStorageDirectoryStorage, generate_uid

from segmamba.errors import InputError, InstallationError
from segmamba.io.dicom_headers import is_dicom
from segmamba.io.dicom_index import find_series, read_series
from segmamba.io.read import read_volume


def test_each_series_below_a_folder_is_found_once_with_its_names(tmp_path: Path) -> None:
    write_slices(tmp_path / "a" / "deep", some_ct(), GEOMETRY)
    write_slices(tmp_path / "b", some_ct(2), SAGITTAL, Modality="MR", SOPClassUID=STORAGE["MR"], SeriesNumber=7)
    (tmp_path / "b" / "notes.txt").write_text("nothing")
    first, second = find_series(tmp_path)
    assert (first.modality, first.number, first.patient, first.study_date) == ("CT", 3, "P1", "20260102")
    assert (second.modality, second.number, second.left_out) == ("MR", 7, None)
    assert first.left_out is None and len(first.files) == 10 and first.uid != second.uid
    assert first.title == f"CT series 'spine' (10 files in {tmp_path / 'a' / 'deep'})"


def test_one_folder_may_hold_several_series_and_one_series_several_folders(tmp_path: Path) -> None:
    files = write_slices(tmp_path, some_ct(), GEOMETRY)
    write_slices(tmp_path, some_ct(2), GEOMETRY, start=100)
    (tmp_path / "more").mkdir()
    for file in files[:3]:
        file.rename(tmp_path / "more" / file.name)
    found = find_series(tmp_path)
    assert sorted(len(series.files) for series in found) == [10, 10]
    arrays = [read_series(series).array for series in found]
    assert any(np.array_equal(array, some_ct()) for array in arrays)
    assert any(np.array_equal(array, some_ct(2)) for array in arrays)


def test_a_file_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    write_slices(tmp_path / "a", some_ct(), GEOMETRY)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    series = only(tmp_path)
    assert len(series.files) == 10
    np.testing.assert_array_equal(read_series(series).array, some_ct())


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
    "scout by its name": ({"SeriesDescription": "Lat Scout 1.0"}, "localizer"),
    "localizer by a part of its name": ({"SeriesDescription": "t2_localizers_3pl"}, "localizer"),
    "survey of MR": ({"SeriesDescription": "Survey_32ch", "Modality": "MR", "SOPClassUID": STORAGE["MR"]}, "localizer"),
    "reformat": ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}, "another series.*reformatted"),
    "projection": ({"ImageType": ["DERIVED", "PRIMARY", "MIP"]}, "another series.*mip"),
    "reformat in two words": ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CSA MPR"]}, "another series.*mpr"),
    "positron": ({"Modality": "PT"}, "It is PT, and CT or MR is needed"),
}


@pytest.mark.parametrize(("tags", "reason"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_is_no_scan_is_left_out_with_the_reason(tmp_path: Path, tags: dict[str, Any], reason: str) -> None:
    write_slices(tmp_path, some_ct(), GEOMETRY, **tags)
    assert re.search(reason, str(only(tmp_path).left_out))


@pytest.mark.parametrize(
    "tags",
    [{"ImageType": ["DERIVED", "SECONDARY"]}, {"SeriesDescription": "Low dose skeletal survey"}],
    ids=["converted or anonymised", "survey of the skeleton"],
)
def test_scans_are_not_left_out_for_words_that_others_have_too(tmp_path: Path, tags: dict[str, Any]) -> None:
    write_slices(tmp_path, some_ct(), GEOMETRY, **tags)
    assert only(tmp_path).left_out is None


def test_one_scout_view_in_a_series_does_not_make_it_a_localizer(tmp_path: Path) -> None:
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_slices(tmp_path, some_ct()[:1], SAGITTAL, SeriesInstanceUID="1.2.3", ImageType=scout)
    write_slices(tmp_path, some_ct(), GEOMETRY, SeriesInstanceUID="1.2.3", start=100)
    series = only(tmp_path)
    assert series.left_out is None
    with pytest.raises(InputError, match="scout view"):
        read_series(series)


def test_a_dose_report_is_left_out(tmp_path: Path) -> None:
    tags = {"SOPClassUID": EnhancedSRStorage, "SOPInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    write_dataset(tmp_path / "dose.dcm", {**tags, "Modality": "SR", "SeriesDescription": "Dose Report"})
    assert only(tmp_path).left_out == "It is SR, and CT or MR is needed."


def test_the_directory_of_a_disc_is_no_series(tmp_path: Path) -> None:
    write_slices(tmp_path, some_ct(), GEOMETRY)
    tags = {"SOPClassUID": MediaStorageDirectoryStorage, "SOPInstanceUID": generate_uid()}
    write_dataset(tmp_path / "DICOMDIR", tags)
    assert len(only(tmp_path).files) == 10


def test_too_few_slices_are_left_out(tmp_path: Path) -> None:
    write_slices(tmp_path, some_ct()[:7], GEOMETRY)
    assert only(tmp_path).left_out == "It has 7 slices, and at least 8 are needed."


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL\x04")
    assert "broken.dcm" in str(only(tmp_path).left_out)


def test_truncated_pixels_are_a_sentence(tmp_path: Path) -> None:
    file = write_slices(tmp_path, some_ct(), GEOMETRY)[4]
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(InputError, match="is damaged, or has no image that can be read: copy or export it again"):
        read_series(only(tmp_path))


@pytest.mark.parametrize("length", [0, 300, -160, -60], ids=["empty", "in the header", "no pixels", "in the pixels"])
@pytest.mark.parametrize("by", ["folder", "file"])
def test_a_damaged_last_slice_is_not_passed_over(tmp_path: Path, length: int, by: str) -> None:
    files = write_slices(tmp_path, some_ct(), GEOMETRY)
    last = files[-1]  # in the order of the places
    last.write_bytes(last.read_bytes()[:length])
    with pytest.raises(InputError, match=f"{last.name} is damaged.*copy or export it again"):
        read_volume(tmp_path if by == "folder" else files[0])


def test_documents_beside_a_scan_do_not_make_it_damaged(tmp_path: Path) -> None:
    write_slices(tmp_path, some_ct(), GEOMETRY)
    directory = {"SOPClassUID": MediaStorageDirectoryStorage, "SOPInstanceUID": generate_uid()}
    write_dataset(tmp_path / "DICOMDIR", directory)
    report = {"SOPClassUID": EnhancedSRStorage, "SOPInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    write_dataset(tmp_path / "dose.dcm", {**report, "Modality": "SR"})
    assert read_volume(tmp_path).array.shape == some_ct().shape


def without_mark(folder: Path, explicit: bool, little: bool = True, meta: bool = False) -> None:
    """Write the files of a folder again without preamble and mark, as old archives and some programs do."""
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        if not little:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        plain = pydicom.Dataset()
        plain.update({element.tag: element for element in dataset})
        if meta:
            data = file.read_bytes()[132:]
            file.write_bytes(data)
        else:
            pydicom.dcmwrite(file, plain, implicit_vr=not explicit, little_endian=little)


@pytest.mark.parametrize(
    "tags",
    [
        {"Modality": None},
        {"Modality": ""},
        {"Modality": "ct"},
        {"Modality": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"SOPInstanceUID": "1.2.3"},
        {"without": "SOPInstanceUID"},
        {"SeriesInstanceUID": None, "StudyInstanceUID": None},
        {"SeriesInstanceUID": "", "SOPInstanceUID": "1.2.3", "PatientID": None, "Modality": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("copied", [False, True])
def test_what_anonymisers_leave_is_read_and_copies_count_once(
    tmp_path: Path, tags: dict[str, Any], copied: bool
) -> None:
    files = write_slices(tmp_path, some_ct(), GEOMETRY, **{name: tags[name] for name in tags if name != "without"})
    if "without" in tags:
        for file in files:
            dataset = pydicom.dcmread(file)
            del dataset[tags["without"]]
            dataset.save_as(file)
    if copied:
        for file in files[:5]:
            shutil.copy(file, file.with_name(f"{file.name} (1)"))
    series = only(tmp_path)
    assert (series.left_out, len(series.files), len(series.copies)) == (None, 10, 5 * copied)
    for path in (tmp_path, files[0], sorted(tmp_path.iterdir())[1]):
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, some_ct())
        assert volume.modality == (None if tags.get("SOPClassUID") else "CT")


@pytest.mark.parametrize("place", ["two series in one folder", "two folders"])
def test_two_series_that_got_the_same_identifiers_stay_two(tmp_path: Path, place: str) -> None:
    for number in (1, 2):
        folder = tmp_path / str(number) if place == "two folders" else tmp_path
        tags = {"SeriesInstanceUID": "1.2", "SOPInstanceUID": "1.2.3", "StudyInstanceUID": "1"}
        write_slices(folder, some_ct(number), GEOMETRY, start=100 * number, SeriesNumber=number, **tags)
    arrays = [read_series(series).array for series in find_series(tmp_path)]
    assert [len(array) for array in arrays] == [10, 10] and not np.array_equal(*arrays)


def test_phases_with_one_identifier_are_not_taken_for_copies(tmp_path: Path) -> None:
    for phase in (1, 2):
        tags = {"SeriesInstanceUID": "1.2", "SOPInstanceUID": "1.2.3", "StudyInstanceUID": "1"}
        files = write_slices(tmp_path / str(phase), some_ct(phase), GEOMETRY, **tags)
    with pytest.raises(InputError, match="10 slices at the position of another one"):
        read_volume(tmp_path)
    assert read_volume(files[0]).array.shape == some_ct().shape


def test_each_multi_frame_file_is_a_series(tmp_path: Path) -> None:
    for number in (1, 2):
        write_frames(tmp_path / f"{number}.dcm", some_ct(number), GEOMETRY, order=range(10))
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.SOPInstanceUID = "1.2", "1", "1.2.3"
        dataset.save_as(file)
    shutil.copy(tmp_path / "1.dcm", tmp_path / "1 (copy).dcm")
    found = find_series(tmp_path)
    assert len({series.identity for series in found}) == len(found) == 2
    np.testing.assert_array_equal(read_volume(tmp_path / "1.dcm").array, some_ct(1))
    np.testing.assert_array_equal(read_volume(tmp_path / "2.dcm").array, some_ct(2))


@pytest.mark.parametrize("explicit", [False, True])
def test_files_without_the_mark_of_dicom_are_found_and_read(tmp_path: Path, explicit: bool) -> None:
    files = write_slices(tmp_path, some_ct(), GEOMETRY)
    without_mark(tmp_path, explicit)
    assert only(tmp_path).left_out is None
    for path in (tmp_path, files[3]):
        np.testing.assert_array_equal(read_volume(path).array, some_ct())


@pytest.mark.parametrize("how", [{"little": False}, {"meta": True}], ids=["big endian", "file meta information"])
def test_files_without_the_mark_that_itk_does_not_read_are_told_as_such(tmp_path: Path, how: dict[str, bool]) -> None:
    files = write_slices(tmp_path, some_ct(), GEOMETRY)
    without_mark(tmp_path, explicit=True, **how)
    assert len(only(tmp_path).files) == 10
    with pytest.raises(InputError, match="is DICOM without its preamble, in a form that is not read: .*dcmconv"):
        read_volume(files[0])


@pytest.mark.parametrize("content", [b"", b"\0" * 600, b"\x08\0some text" * 60, b"\x08\0\x05\0", b"notes\n" * 99])
def test_other_files_are_not_taken_for_dicom(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert not is_dicom(tmp_path / "file")
    assert find_series(tmp_path) == []


def test_documents_of_a_series_do_not_make_its_images_one(tmp_path: Path) -> None:
    write_slices(tmp_path, some_ct(), GEOMETRY, SeriesInstanceUID="1.2")
    raw = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66", "SOPInstanceUID": generate_uid(), "SeriesInstanceUID": "1.2"}
    write_dataset(tmp_path / "0", {**raw, "Modality": "CT", "PatientID": "P1", "SeriesNumber": 3})
    np.testing.assert_array_equal(read_volume(tmp_path).array, some_ct())
    assert [series.left_out for series in find_series(tmp_path)] == ["It holds no image.", None]


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        find_series(tmp_path / "nowhere")


def test_a_missing_package_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slices(tmp_path, some_ct(), GEOMETRY)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InstallationError, match="pip install"):
        find_series(tmp_path)
