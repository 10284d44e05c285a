"""A CT with a tiny model beside it, and the command line's way through both, in this process."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

from helpers import tiny
from helpers.phantoms import phantom
from segmamba.cli.main import main
from segmamba.io.volume import to_image


def write(folder: Path) -> Path:
    """Write a CT and the manifest of a tiny model, and return their folder."""
    volume = phantom()
    sitk.WriteImage(to_image(volume.array, volume.geometry), str(folder / "ct.nii.gz"))
    tiny.write_model(folder)
    return folder


def segment(folder: Path, output: str, *more: str) -> int:
    """Segment the CT into a file of this name in the folder, and return the exit status."""
    manifest = ("--manifest", str(folder / "manifest.json"))
    paths = (str(folder / "ct.nii.gz"), "--output", str(folder / output))
    return main(["segment", *paths, "--in-process", "--device", "cpu", "--task", "vertebrae", *manifest, *more])
