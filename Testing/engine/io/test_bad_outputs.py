"""Places that cannot be written to, found before the run or in its midst: one sentence, and no half of a result."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.phantoms import OBLIQUE, spine_labels, true_labels
from helpers.users import ordinary_user

from segmamba.errors import OutputError
from segmamba.io.labelmap import LABELMAP_EXTENSIONS, write_labelmap
from segmamba.utils.atomic import check_output

LABELS = true_labels(OBLIQUE)
Disk = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A function that mounts a disk of its own with some options, where the system lets tests do so."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        if shutil.which("mount") is None:
            pytest.skip("there is no mount")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("the system does not let tests mount a disk")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.parametrize("extension", LABELMAP_EXTENSIONS)
def test_on_a_full_disk_nothing_is_left_and_an_earlier_result_stays(extension: str, disk: Disk) -> None:
    folder = disk("size=16k")
    noise = np.random.default_rng(0).integers(20, 23, LABELS.shape).astype(np.uint8)
    path = folder / f"spine{extension}"
    path.write_bytes(b"an earlier result")
    check_output(path, LABELMAP_EXTENSIONS)
    with pytest.raises(OutputError, match="cannot be written: check the folder's permissions and free space"):
        write_labelmap(path, noise, OBLIQUE, spine_labels())
    assert path.read_bytes() == b"an earlier result"
    assert list(folder.iterdir()) == [path]


def test_a_read_only_disk_is_found_before_the_run(disk: Disk) -> None:
    folder = disk("size=64k,ro")
    with pytest.raises(OutputError, match="cannot be written to: choose another one"):
        check_output(folder / "spine.nii.gz", LABELMAP_EXTENSIONS)


def test_a_folder_of_somebody_else_is_found_before_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    folder.chmod(0o555)
    for part in (tmp_path, *tmp_path.parents[:-2]):
        part.chmod(part.stat().st_mode | 0o555)
    with ordinary_user(), pytest.raises(OutputError, match="cannot be written to: choose another one"):
        check_output(folder / "spine.nii.gz", LABELMAP_EXTENSIONS)


def test_a_folder_that_vanishes_during_the_run_ends_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "spine.nrrd"
    with pytest.raises(OutputError, match="cannot be written: check"):
        write_labelmap(path, LABELS, OBLIQUE, spine_labels())


@pytest.mark.parametrize(
    "name", ["\udcff.nii", "a\0b.nii", "a" * 300 + ".nii", "/".join(["folder" * 30] * 30) + "/a.nii"]
)
def test_a_name_that_no_file_can_have_is_found_before_the_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="rename the file or folder|choose another name or folder"):
        check_output(tmp_path / name, LABELMAP_EXTENSIONS)
