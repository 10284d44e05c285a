"""Which cases there are: files and DICOM series, wherever they lie and however they are asked for, each once."""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.dicom_files import write_dataset
from helpers.many_cases import in_two_folders, write_series
from helpers.quick_engine import write_inputs
from pydicom.uid import MediaStorageDirectoryStorage

from segmamba.batch import search
from segmamba.batch.cases import find_cases
from segmamba.batch.datafiles import data_files
from segmamba.batch.label_maps import why_label_map
from segmamba.batch.layout import prepare
from segmamba.errors import InputError
from segmamba.io.dicom_choice import find_files


def test_names_are_readable_unique_and_the_same_in_every_run(tmp_path: Path) -> None:
    for name in ("a/b_ct.nii", "a_b/ct.nii", "p1/ct.nii.gz", "p1/ct.nrrd", "p1/c t.mha", "p2/ct.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [case.name for case in find_cases([str(tmp_path)], tmp_path / "out")]
    assert len(set(names)) == 6
    assert sum(name.startswith("p1_ct-") for name in names) == 2
    assert all(name.isascii() and " " not in name for name in names)
    assert names == [case.name for case in find_cases([str(tmp_path / "a*"), str(tmp_path)], tmp_path / "out")]


def reasons(folder: Path, *inputs: str) -> dict[str, str]:
    """Return why each thing below a folder is left out, by its path; empty for a case."""
    prepare(folder.with_name("out"))
    found = find_cases(list(inputs) or [str(folder)], folder.with_name("out"))
    return {Path(case.path).relative_to(folder).as_posix(): case.skipped for case in found}


def save(path: Path, array: np.ndarray) -> None:
    """Save an array of shape (z, y, x) in the format of a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".hdr", ".img")):
        nibabel.save(nibabel.Nifti1Pair(array.T, np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=not path.name.startswith("raw"))


def some_mr(dtype: Any = np.int16) -> np.ndarray:
    """An image with a black background and few values, the darkest that could be taken for labels."""
    image = np.random.default_rng(1).integers(10, 200, (20, 40, 40))
    image[:, :15] = 0
    return image.astype(dtype)


def some_8_bit_mr() -> np.ndarray:
    """An image whose background is dark and flat, as of many archives of MR: three of four voxels equal the next."""
    random = np.random.default_rng(2)
    image = 1 + (random.random((20, 60, 60)) < 0.13).astype(np.uint8)
    image[:, 25:35] = random.integers(0, 190, (20, 10, 60))
    return image


def some_labels(values: int, dtype: Any = np.uint8) -> np.ndarray:
    """A label map of slabs, the first one background."""
    labels = np.zeros((20, 40, 40))
    labels[:, :, 10:] = np.arange(30) // 5 * 10 % values + 1
    return labels.astype(dtype)


def test_what_is_passed_over_has_a_reason_and_hidden_files_and_the_results_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("ct.nii", "ct.seg.nrrd", ".ct.nii", "notes.txt", "deep/ct.mha", "deep/notes.txt", "deep/a.gipl"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    assert reasons(tmp_path / "in") == {
        "ct.nii": "",
        "ct.seg.nrrd": "It is a segmentation (.seg.nrrd), not an image.",
        "deep/a.gipl": f"It is not an image {search.LOOKED_FOR}",
        "deep/ct.mha": "",
        "deep/notes.txt": f"It and 1 more .txt files are not images {search.LOOKED_FOR}",
    }
    assert find_cases([str(tmp_path / "in")], tmp_path / "in" / "deep")[0].path == str(tmp_path / "in" / "ct.nii")


@pytest.mark.parametrize(
    "names",
    [
        ("imagesTr/s1_0000.nii.gz", "labelsTr/s1.nii.gz"),
        ("s1/ct.nii.gz", "s1/segmentations/liver.nii.gz"),
        ("s1/imaging.nii.gz", "s1/segmentation.nii.gz"),
        ("sub-1/ct.nii", "derivatives/sub-1/ct_seg-vert_msk.nii"),
        ("ct.nrrd", "ct-label.nrrd"),
        ("ct.mha", "reader2.mha"),
        ("raw_ct.nrrd", "raw_second.nrrd"),
        ("raw_ct.mhd", "raw_second.mhd"),
        ("ct.img", "second.img"),
    ],
    ids=lambda names: names[1],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_label_maps_next_to_their_images_are_left_out(tmp_path: Path, names: tuple[str, str], dtype: Any) -> None:
    image, labels = names
    save(tmp_path / "in" / image, some_mr(dtype))
    save(tmp_path / "in" / labels, some_labels(118, dtype))
    found = reasons(tmp_path / "in")
    assert list(filter(None, found.values())) == ["It is a label map (7 whole numbers, 0 to 51), not an image."]
    assert len(found) == 2
    # By a pattern, too.
    assert sorted(reasons(tmp_path / "in", str(tmp_path / "in" / "**" / f"*{Path(labels).suffix}"))) == sorted(found)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (some_labels(2), r"\(2 whole numbers, 0 to 1\)"),
        (some_labels(118) * 0, "value 0 everywhere, and its name"),
        (some_labels(118).astype(np.int16) - 1, r"\(7 whole numbers, -1 to 50\)"),
        (some_labels(118).astype(np.int16) * 100, r"\(7 whole numbers, 0 to 5100\)"),
        (some_mr(), "^$"),
        (some_8_bit_mr(), "^$"),
        (some_mr() * 5 - 1000, "^$"),
        (some_mr() / np.float32(200), "^$"),
    ],
    ids=["binary", "empty", "ignored", "large", "image", "8-bit image", "CT", "fractions"],
)
def test_the_values_and_not_the_name_make_a_label_map(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    save(tmp_path / "in" / "labelsTr" / "s1.nii.gz", array)
    assert re.search(reason, reasons(tmp_path / "in")["labelsTr/s1.nii.gz"])


def test_files_are_looked_at_in_many_threads_without_taking_standard_output_away(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(40):
        save(tmp_path / f"{number}.mha", some_labels(3)[:2])
    paths = [str(tmp_path / f"{number}.mha") for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(why_label_map, paths))
    os.write(1, b"still here")
    assert "still here" in capfd.readouterr().out


def test_an_image_in_flat_regions_is_no_label_map(tmp_path: Path) -> None:
    save(tmp_path / "in" / "phantom.nii.gz", some_labels(118).astype(np.int16) * 30)
    save(tmp_path / "in" / "ct.nii.gz", some_labels(118).astype(np.int16) - 1000)
    assert set(reasons(tmp_path / "in").values()) == {""}


def test_an_image_that_was_segmented_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in" / "ct.nii.gz", some_mr())
    (case,) = find_cases([str(tmp_path / "in")], tmp_path / "out")
    (tmp_path / "out" / "cases" / case.name).mkdir(parents=True)
    (tmp_path / "out" / "cases" / case.name / "case.json").write_text("{}")
    monkeypatch.setattr(search, "why_label_map", lambda path: pytest.fail("read"))
    assert find_cases([str(tmp_path / "in")], tmp_path / "out") == [case]


def test_a_pair_is_one_case_that_has_both_files(tmp_path: Path) -> None:
    save(tmp_path / "in" / "deep" / "ct.img", some_mr())
    (case,) = find_cases([str(tmp_path / "in")], tmp_path / "out")
    assert [Path(file).name for file in case.files()] == ["ct.hdr", "ct.img"]
    assert find_cases([str(tmp_path / "in" / "deep" / "*.img")], tmp_path / "out")[0].name == case.name


def test_dicom_files_that_are_named_as_a_pair_are_dicom(tmp_path: Path) -> None:
    for file in write_series(tmp_path / "in"):
        file.rename(file.with_suffix(".img"))
    prepare(tmp_path / "out")
    for given in ("in", "in/*.img"):
        (case,) = find_cases([str(tmp_path / given)], tmp_path / "out")
        assert len(case.files()) > 8 and not case.skipped


@pytest.mark.parametrize("inputs", [["in"], ["in/*"], ["in/earlier"], ["in/earlier/cases"]])
def test_results_of_an_earlier_batch_are_left_out(tmp_path: Path, inputs: list[str]) -> None:
    save(tmp_path / "in" / "ct.nii.gz", some_mr())
    earlier = tmp_path / "in" / "earlier"
    save(earlier / "cases" / "a" / "segmentation.nii.gz", some_labels(3))
    for file in ("rows.jsonl", "cases/a/case.json", "cases/a/report.json"):
        (earlier / file).write_text("{}")
    found = reasons(tmp_path / "in", *(str(tmp_path / given) for given in inputs))
    found.pop("ct.nii.gz", None)
    assert all("an earlier batch" in reason for reason in found.values()) and len(found) == 1
    found = reasons(tmp_path / "in", str(tmp_path / "in" / "**" / "*.nii.gz"))
    assert found["earlier/cases/a/segmentation.nii.gz"] == "It is a result of an earlier batch."


def test_a_batch_takes_the_dicom_that_a_run_on_the_folder_takes(tmp_path: Path) -> None:
    tags = {"SeriesInstanceUID": None, "SOPInstanceUID": "1.2.3", "Modality": None, "StudyInstanceUID": None}
    slices = write_series(tmp_path / "in" / "study", **tags)
    shutil.copy(slices[0], slices[0].with_name("copy"))
    write_dataset(
        tmp_path / "in" / "DICOMDIR", {"SOPClassUID": MediaStorageDirectoryStorage, "SOPInstanceUID": "1.2.4"}
    )
    prepare(tmp_path / "out")
    (case,) = find_cases([str(tmp_path / "in")], tmp_path / "out")
    assert not case.skipped and len(case.files()) == len(slices) == len(find_files(tmp_path / "in"))
    assert case == find_cases([str(tmp_path / "in" / "DICOMDIR")], tmp_path / "out")[0]


def test_a_file_that_is_named_is_a_case_whatever_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (case,) = find_cases([str(tmp_path / "*.txt")], tmp_path / "out")
    assert case.path == str(tmp_path / "notes.txt")


@pytest.mark.parametrize("given", ["nowhere", "*.nii"])
def test_an_input_without_a_case_is_told(tmp_path: Path, given: str) -> None:
    with pytest.raises(InputError, match=r"does not exist|There is no image"):
        find_cases([str(tmp_path / given)], tmp_path / "out")


def test_a_series_is_a_case_and_what_is_no_scan_is_skipped_with_a_reason(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    prepare(output)
    slices = write_series(source / "study" / "scan")
    write_series(source / "study" / "scout", SeriesDescription="Scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    scan, scout = find_cases([str(source)], output)
    assert sorted(scan.files()) == sorted(map(str, slices))
    assert scan.name.startswith("scan_spine-")
    assert "localizer" in scout.skipped
    # The same by a pattern that names slice by slice.
    assert find_cases([str(source / "study" / "scan" / "*.dcm")], output) == [scan]


@pytest.mark.parametrize("place", [".", "study", "deep/study"])
@pytest.mark.parametrize("patterns", [["in"], ["in/**"], ["in", "in/**/a"], ["in/**/b/*.dcm", "in/**/a/*.dcm"]])
def test_a_series_in_two_folders_is_one_case_however_it_is_asked_for(
    tmp_path: Path, place: str, patterns: list[str]
) -> None:
    slices = write_series(tmp_path / "in" / place / "a")
    in_two_folders(slices, tmp_path / "in" / place)
    prepare(tmp_path / "out")
    (case,) = find_cases([str(tmp_path / pattern) for pattern in patterns], tmp_path / "out")
    assert sorted(Path(file).name for file in case.files()) == sorted(file.name for file in slices)
    assert not case.skipped


def test_a_copy_of_a_series_is_no_second_case_and_halves_of_few_slices_are_a_scan(tmp_path: Path) -> None:
    slices = write_series(tmp_path / "in" / "a")
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "in" / "copy")
    prepare(tmp_path / "out")
    (case,) = find_cases([str(tmp_path / "in")], tmp_path / "out")
    assert case.files() == sorted(map(str, slices))
    for number, file in enumerate(slices):
        part = tmp_path / "parts" / str(number // 5)
        part.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, part)
    (case,) = find_cases([str(tmp_path / "parts")], tmp_path / "out")
    assert len(case.files()) == len(slices)
    assert not case.skipped


def test_what_cannot_be_read_is_a_failed_case_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path / "in" / "open", 1)
    closed = [tmp_path / "in" / "closed", tmp_path / "in" / "open" / "closed"]
    for folder in closed:
        folder.mkdir()
    damaged = tmp_path / "in" / "open" / "slice.dcm"
    damaged.write_bytes(b"\0" * 128 + b"DICM" + b"cut")
    scandir = os.scandir

    def scan(path: str) -> Any:
        if Path(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    cases = find_cases([str(tmp_path / "in")], tmp_path / "out")
    errors = {case.path: case.error for case in cases if case.error}
    assert set(errors) == {str(path) for path in (*closed, damaged)}
    assert "Permission denied" in errors[str(closed[0])]
    # A folder that is given, too.
    (case,) = find_cases([str(closed[0])], tmp_path / "out")
    assert case.error == errors[str(closed[0])]


def test_a_pattern_that_nothing_matches_is_told(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", 1)
    said: list[str] = []
    find_cases([str(tmp_path / "in" / end) for end in ("*.nii", "*.mha")], tmp_path / "out", log=said.append)
    assert len(said) == 1 and "*.mha" in said[0]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("ElementDataFile = LOCAL\n\0", []),
        ("NDims = 3\nElementDataFile = ct.zraw\r\n", ["ct.zraw"]),
        ("ElementDataFile = LIST\na.raw\nb.raw\n", ["a.raw", "b.raw"]),
        ("ElementDataFile = s%03d.raw 8 12 2\n", ["s008.raw", "s010.raw", "s012.raw"]),
    ],
)
def test_the_data_files_of_a_header_are_known(tmp_path: Path, header: str, expected: list[str]) -> None:
    for path, text in (
        (tmp_path / "ct.mhd", header),
        (tmp_path / "ct.nhdr", header.replace("ElementDataFile =", "data file:")),
    ):
        path.write_text(text)
        assert data_files(str(path)) == [str(tmp_path / name) for name in expected]
    assert data_files(str(tmp_path / "ct.nii")) == []
