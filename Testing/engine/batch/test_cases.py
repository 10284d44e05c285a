"""Which cases there are: files and DICOM series, wherever they lie and however they are asked for, each once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.many_cases import in_two_folders, write_series
from helpers.quick_engine import write_inputs

from segmamba.batch.cases import find_cases
from segmamba.batch.datafiles import data_files
from segmamba.batch.layout import prepare
from segmamba.errors import InputError


def test_names_are_readable_unique_and_the_same_in_every_run(tmp_path: Path) -> None:
    for name in ("a/b_ct.nii", "a_b/ct.nii", "p1/ct.nii.gz", "p1/ct.nrrd", "p1/c t.mha", "p2/ct.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [case.name for case in find_cases([str(tmp_path)], tmp_path / "out")]
    assert len(set(names)) == 6
    assert sum(name.startswith("p1_ct-") for name in names) == 2
    assert all(name.isascii() and " " not in name for name in names)
    assert names == [case.name for case in find_cases([str(tmp_path / "a*"), str(tmp_path)], tmp_path / "out")]


def test_segmentations_hidden_files_other_files_and_the_results_are_no_cases(tmp_path: Path) -> None:
    for name in ("ct.nii", "ct.seg.nrrd", ".ct.nii", "notes.txt", "deep/ct.mha", "deep/notes.txt", "out/cases/x/s.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_cases([str(tmp_path)], tmp_path / "out")
    assert [Path(case.path).relative_to(tmp_path).as_posix() for case in found] == ["ct.nii", "deep/ct.mha"]


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
