"""Columns with five, four or six lumbar vertebrae, painted as CT and MR scans, for ``segmamba evaluate``.

``python benchmarks/variant_columns.py LABELS_FOLDER OUT [--part K/N]`` makes NAME-five, two NAME-four and two NAME-six,
each with its image (_ct or _mr) and its reference (_vertebrae), of the maps NAME_vertebrae.nii.gz that show L1 to L5.

A vertebra is taken out or put in twice along the long axis, between the middles of two neighbours; numbers follow from
T12 down. So the joints and the ribs stay those of a real column, and only the count changes. Surroundings and
intensities are generated as in training; label maps that a network was trained on show nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from segmamba.errors import InputError
from segmamba.io.read import read_volume
from segmamba.io.volume import to_image
from segmamba.spine.levels import L1, L5, L6, level_name
from segmamba.training.synthesis import ct, mr
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.tissue_labels import SPACING, VERTEBRAE
from segmamba.training.vertebrae.label_maps import tissue_label_map

# The vertebrae that are left out, and those that are repeated.
LEFT_OUT, REPEATED = (L1 + 1, L1 + 3), (L1 + 1, L1 + 2)
# 8-bit MR as in the usual archives; brightest tissue about this value.
MR_UNIT = 150.0


def main() -> None:
    """Paint all columns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--part", default="0/1", help="K/N: every N-th map from the K-th on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    first, step = map(int, options.part.split("/"))
    for number, path in enumerate(sorted(options.labels.glob("*_vertebrae.nii.gz"))):
        if number % step == first:
            name = path.name.removesuffix("_vertebrae.nii.gz")
            for kind, labels in columns(path):
                paint(labels, options.output, f"{name}-{kind}", number, torch.device(options.device))


def columns(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Give the columns of one label map (z, y, x; LPS axes, 1.5 mm), and how many lumbar vertebrae each has."""
    volume = read_volume(path)
    image = sitk.DICOMOrient(to_image(volume.array.astype(np.uint8), volume.geometry), "LPS")
    size = [max(1, round(n * s / SPACING)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    where = (image.GetOrigin(), [SPACING] * 3, image.GetDirection())
    labels = sitk.GetArrayFromImage(sitk.Resample(image, size, sitk.Transform(), sitk.sitkNearestNeighbor, *where))
    present = set(np.unique(labels).tolist())
    if not set(range(L1, L5 + 1)) <= present or L6 in present:
        return
    yield "five", labels
    heights = {level: np.argwhere(labels == level)[:, 0].mean() for level in range(L1, L5 + 1)}

    def ends(level: int) -> list[int]:
        return [round((heights[level] + heights[level + step]) / 2) for step in (-1, 1)]

    for level in LEFT_OUT:
        top, bottom = ends(level)
        yield f"four-without-{level_name(level)}", _joined(labels[:bottom], labels[top:], level, -1)
    for level in REPEATED:
        top, bottom = ends(level)
        yield f"six-with-two-{level_name(level)}", _joined(labels[:top], labels[bottom:], level - 1, 1)


def _joined(lower: np.ndarray, upper: np.ndarray, first: int, change: int) -> np.ndarray:
    """Put one piece of a column on another; numbers from ``first`` down change in the lower one, so that they go on.

    Joints and spinous processes that reach across a cut are then those of the vertebra that is now on the other side.
    """
    numbers = np.arange(256)
    numbers[first : L5 + 1] += change
    return np.concatenate([numbers[lower].astype(np.uint8), upper])


def paint(labels: np.ndarray, folder: Path, name: str, seed: int, device: torch.device) -> None:
    """Write a painted scan of a column, every third one an MR, and its labels."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "x_vertebrae.nii.gz"
        sitk.WriteImage(_image(labels), str(path))
        try:
            tissues = tissue_label_map(path, None, np.random.default_rng(seed))
        except InputError:
            return
    context = SamplingContext(
        tissues.shape, SPACING, device, np.random.default_rng([seed, 1]), torch.Generator(device).manual_seed(seed)
    )
    where = torch.from_numpy(tissues).to(device)
    with torch.no_grad():
        if seed % 3 == 2:
            image, suffix = (mr.relative(mr.synthesize(where, context)) * MR_UNIT).clamp(0, 255), "mr"
        else:
            image, suffix = ct.synthesize(where, context), "ct"
    kind = np.uint8 if suffix == "mr" else np.int16
    sitk.WriteImage(_image(image.round().cpu().numpy().astype(kind)), str(folder / f"{name}_{suffix}.nii.gz"))
    reference = np.where(tissues <= VERTEBRAE, tissues, 0).astype(np.uint8)
    sitk.WriteImage(_image(reference), str(folder / f"{name}_vertebrae.nii.gz"))


def _image(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([SPACING] * 3)
    return image


if __name__ == "__main__":
    main()
