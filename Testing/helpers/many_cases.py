"""A folder of many small cases, some broken in different ways, and what the results of two runs on it share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import SimpleITK as sitk

from helpers.dicom_files import write_slices
from helpers.phantoms import grid_around_patient, phantom, rotation
from helpers.repository import PACKAGES
from segmamba.batch.layout import CASES, RECORD, ROWS
from segmamba.io.read import read_volume
from segmamba.io.volume import Volume, to_image

FORMATS = ("nii.gz", "nii", "nrrd", "mha")
BROKEN = 6
CROP = 40
# Seconds that a run may take to come on.
LIMIT = 600


def write_cases(folder: Path, count: int, real: Path | None = None) -> None:
    """Write cases: phantoms in all formats and as DICOM, crops of the CTs in ``real``, and `BROKEN` broken ones."""
    folder.mkdir(parents=True)
    sources = crops(real, count // 4) if real is not None else []
    for number in range(count - BROKEN - len(sources)):
        turned = grid_around_patient((4.0, 4.0, 5.0), rotation(number % 7, -number % 5))
        sources.append(changed(phantom(turned), number))
    for number, volume in enumerate(sources):
        if number % 9 == 8:
            write_slices(folder / f"study{number:02d}" / "series", volume.array, volume.geometry)
        else:
            write(volume, folder / f"patient{number:02d}" / f"ct.{FORMATS[number % len(FORMATS)]}")
    write_broken(folder)


def changed(volume: Volume, number: int) -> Volume:
    """Return a volume that no other number gives."""
    return replace(volume, array=(volume.array + number).astype(np.int16))


def crops(folder: Path, count: int) -> list[Volume]:
    """Return small parts of the CTs in a folder, from all over them."""
    found: list[Volume] = []
    files = sorted(folder.glob("*_ct.nii.gz"))
    for number in range(count):
        volume = read_volume(files[number % len(files)])
        image = to_image(volume.array, volume.geometry)
        step = number // len(files) + 1
        start = [max(0, (size - CROP) * step // (count // len(files) + 2)) for size in image.GetSize()]
        size = [min(CROP, whole - first) for whole, first in zip(image.GetSize(), start, strict=True)]
        part = sitk.RegionOfInterest(image, size, start)
        geometry = replace(volume.geometry, size=part.GetSize(), origin=part.GetOrigin())
        found.append(Volume(sitk.GetArrayFromImage(part), geometry))
    return found


def write(volume: Volume, path: Path) -> Path:
    """Write a volume in the format of the path's extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(to_image(volume.array, volume.geometry), str(path))
    return path


def write_broken(folder: Path) -> None:
    """Write `BROKEN` cases that cannot be segmented, each for another reason."""
    volume = phantom(grid_around_patient((5.0, 5.0, 5.0), rotation(0, 0)))
    place = folder / "broken"
    place.mkdir()
    (place / "empty.nii").write_bytes(b"")
    (place / "text.mha").write_text("not an image")
    whole = write(volume, place / "cut.nii.gz")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    array = volume.array.astype(np.float32)
    array[1, 2, 3] = np.nan
    write(replace(volume, array=array), place / "nan.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 8, 8, 8), np.int16), isVector=False), str(place / "four.nii"))
    files = write_slices(folder / "study_gap" / "series", volume.array, volume.geometry)
    position = sorted(files, key=lambda file: float(slice_height(file)))
    position[len(files) // 2].unlink()


def write_series(folder: Path, **tags: Any) -> list[Path]:
    """Write a small phantom as a DICOM series; tags as for `write_slices`."""
    small = grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0))
    return write_slices(folder, phantom(small).array, small, **tags)


def in_two_folders(slices: list[Path], place: Path) -> None:
    """Move every other slice of a series in a folder "a" of a place to "b"."""
    (place / "b").mkdir()
    for file in slices[::2]:
        file.rename(place / "b" / file.name)


def slice_height(file: Path) -> float:
    """Return where a slice lies along the patient."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return float(reader.GetMetaData("0020|0032").split("\\")[2])


def command(source: Path, output: Path, manifest: Path, *more: str) -> list[str]:
    """Return a call of ``segmamba batch`` with a tiny model."""
    run = ["batch", str(source), str(output), "--task", "vertebrae", "--manifest", str(manifest), "--device", "cpu"]
    return [sys.executable, "-m", "segmamba", *run, "--quiet", *more]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a call with this source tree."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, env=environment)


def results(output: Path) -> dict[str, str]:
    """Return the SHA-256 of every result by its path; of records, without how the run went."""
    found = {}
    for path in sorted(output.joinpath(CASES).rglob("*")):
        if path.is_dir():
            continue
        content = path.read_bytes()
        if path.name == RECORD:
            record = json.loads(content)
            del record["run"]
            content = json.dumps(record).encode()
        found[path.relative_to(output).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def rows(output: Path) -> list[dict[str, Any]]:
    """Return what a run said of its cases."""
    return [json.loads(line) for line in (output / ROWS).read_text(encoding="utf-8").splitlines()]


def outcomes(output: Path) -> dict[str, tuple[str, str]]:
    """Return status and error by case, after making sure that no case has two rows."""
    said = rows(output)
    found = {row["case"]: (row["status"], row["error"]) for row in said}
    assert len(found) == len(said)
    return found


def wait_for_records(output: Path, count: int) -> None:
    """Return when a run into a folder has done some cases."""
    deadline = time.monotonic() + LIMIT
    while len(list((output / CASES).glob("*/" + RECORD))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Killer(threading.Thread):
    """Kills one of the processes that ``victims`` gives, at random, every few seconds, with SIGKILL."""

    def __init__(self, victims: Callable[[], list[psutil.Process]], seconds: float) -> None:
        super().__init__(daemon=True)
        self._victims = victims
        self._seconds = seconds
        self._over = threading.Event()
        self._random = random.Random(1)
        self.killed = 0

    def run(self) -> None:
        while not self._over.wait(self._seconds):
            victims = self._victims()
            if victims:
                self.killed += kill([self._random.choice(victims)])

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()


def engines_below(pid: int) -> list[psutil.Process]:
    """Return the engine processes that a process or its children have started; none if it is gone."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "segmamba.worker" in process.cmdline():
                    found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> int:
    """Kill processes with SIGKILL and return how many were still there: a run may end while one looks for them."""
    count = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
            count += 1
    return count
