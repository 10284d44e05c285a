"""Columns of unusual kinds, painted as CT and MR scans, for ``segmamba evaluate``.

``python benchmarks/variant_columns.py LABELS_FOLDER OUT [--part K/N] [--kinds five,four,six,...]`` makes columns of the
maps NAME_vertebrae.nii.gz that show L1 to L5, each with its image (_ct or _mr) and its reference (_vertebrae):

- five, four, six: lumbar vertebrae. One is taken out or put in twice, and numbers follow from T12 down.
- thirteen, eleven: ribs. T12 is put in twice, the lower one as T13 with a rib; or it is taken out: L1 follows T11.
  They need T11 and T12, and the former a map that begins below T1.
- block: L2 and L3 are grown together; numbers are the usual ones.
- sacralised: L5 is part of the sacrum, which follows L4.

Pieces are cut across the long axis, between the middles of two neighbours. So the joints and the ribs stay those of a
real column. Surroundings and intensities are generated as in training; label maps that a network was trained on show
nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from segmamba.errors import InputError
from segmamba.io.read import read_volume
from segmamba.io.volume import to_image
from segmamba.spine.levels import C7, L1, L5, L6, SACRUM, T1, T11, T12, T13, level_name
from segmamba.training.synthesis import ct, mr
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.tissue_labels import SPACING, VERTEBRAE
from segmamba.training.vertebrae.label_maps import tissue_label_map

# The vertebrae that are left out, and those that are repeated.
LEFT_OUT, REPEATED = (L1 + 1, L1 + 3), (L1 + 1, L1 + 2)
# The vertebrae that are grown together, across a disc of at most so many mm.
BLOCK, DISC_MM = (L1 + 1, L1 + 2), 15.0
KINDS = ("five", "four", "six", "thirteen", "eleven", "block", "sacralised")
# 8-bit MR as in the usual archives; brightest tissue about this value.
MR_UNIT = 150.0


@dataclass(frozen=True, eq=False)
class Column:
    """A column to paint.

    Attributes
    ----------
    kind : str
        One of `KINDS`, and what was changed.
    labels : ndarray of uint8
        Shape (z, y, x), as it is painted: what is called T1 to T12 gets ribs.
    numbers : mapping of int to int
        The reference's number for each label that has another one.
    """

    kind: str
    labels: np.ndarray
    numbers: Mapping[int, int] = field(default_factory=dict)


def main() -> None:
    """Paint all columns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--part", default="0/1", help="K/N: every N-th map from the K-th on")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which kinds of columns (default: all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    first, step = map(int, options.part.split("/"))
    for number, path in enumerate(sorted(options.labels.glob("*_vertebrae.nii.gz"))):
        if number % step == first:
            name = path.name.removesuffix("_vertebrae.nii.gz")
            for column in columns(path):
                if column.kind.split("-")[0] in options.kinds.split(","):
                    paint(column, options.output, f"{name}-{column.kind}", number, torch.device(options.device))


def columns(path: Path) -> Iterator[Column]:
    """Give the columns of one label map (LPS axes, 1.5 mm)."""
    yield from variants(read_labels(path))


def read_labels(path: Path) -> np.ndarray:
    """Return a label map (z, y, x) along LPS axes at 1.5 mm."""
    volume = read_volume(path)
    image = sitk.DICOMOrient(to_image(volume.array.astype(np.uint8), volume.geometry), "LPS")
    size = [max(1, round(n * s / SPACING)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    where = (image.GetOrigin(), [SPACING] * 3, image.GetDirection())
    copy = sitk.Resample(image, size, sitk.Transform(), sitk.sitkNearestNeighbor, *where)
    labels: np.ndarray = sitk.GetArrayFromImage(copy)
    return labels


def variants(labels: np.ndarray) -> Iterator[Column]:
    """Give the columns that are made of a label map (z, y, x; LPS axes); none where L1 to L5 are not all there."""
    present = set(np.unique(labels).tolist())
    if not set(range(L1, L5 + 1)) <= present or L6 in present:
        return
    yield Column("five", labels)
    heights = {level: np.argwhere(labels == level)[:, 0].mean() for level in present - {0}}

    def ends(level: int) -> list[int]:
        return [round((heights[level] + heights[level + step]) / 2) for step in (-1, 1)]

    for level in LEFT_OUT:
        top, bottom = ends(level)
        yield Column(f"four-without-{level_name(level)}", _joined(labels[:bottom], labels[top:], level, -1))
    for level in REPEATED:
        top, bottom = ends(level)
        yield Column(f"six-with-two-{level_name(level)}", _joined(labels[:top], labels[bottom:], level - 1, 1))
    if {T11, T12} <= present:
        top, bottom = ends(T12)
        if min(present - {0}) > T1:
            numbers = {T12: T13} | {level: level + 1 for level in range(C7, T12)}
            yield Column("thirteen", _with_two_t12(labels[:top], labels[bottom:]), numbers)
        yield Column("eleven", _without_t12(labels[:bottom], labels[top:]))
    yield Column("block", _grown_together(labels, *BLOCK))
    yield Column("sacralised", np.where(labels == L5, SACRUM, labels).astype(np.uint8))


def _joined(lower: np.ndarray, upper: np.ndarray, first: int, change: int) -> np.ndarray:
    """Put one piece of a column on another; numbers from ``first`` down change in the lower one, so that they go on.

    Joints and spinous processes that reach across a cut are then those of the vertebra that is now on the other side.
    """
    numbers = np.arange(256)
    numbers[first : L5 + 1] += change
    return np.concatenate([numbers[lower].astype(np.uint8), upper])


def _with_two_t12(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Put a piece from T12 up on one from T12 down; the upper one's numbers are one less, so that both have a rib."""
    numbers = np.arange(256)
    # What of L1 reaches across the cut is now the lower T12's.
    numbers[C7 + 1 : L1 + 1] -= 1
    return np.concatenate([lower, numbers[upper].astype(np.uint8)])


def _without_t12(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Put a piece from T11 up on one from L1 down; what of T12 reaches across a cut is that of the other side."""
    return np.concatenate([np.where(lower == T12, T11, lower), np.where(upper == T12, L1, upper)])


def _grown_together(labels: np.ndarray, upper: int, lower: int) -> np.ndarray:
    """Fill the disc between two neighbours, half of it for either: a block vertebra."""
    found = labels.copy()
    top, bottom = (np.where((labels == level).any(axis=0), 1, 0) for level in (upper, lower))
    floor = (labels == upper).argmax(axis=0)
    ceiling = len(labels) - 1 - (labels[::-1] == lower).argmax(axis=0)
    gap = floor - ceiling - 1
    for y, x in np.argwhere((top & bottom).astype(bool) & (gap > 0) & (gap * SPACING <= DISC_MM)):
        middle = ceiling[y, x] + 1 + gap[y, x] // 2
        for part, level in ((slice(ceiling[y, x] + 1, middle), lower), (slice(middle, floor[y, x]), upper)):
            place = found[part, y, x]
            place[place == 0] = level
    return found


def paint(column: Column, folder: Path, name: str, seed: int, device: torch.device) -> None:
    """Write a painted scan of a column, every third one an MR, and its labels."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "x_vertebrae.nii.gz"
        sitk.WriteImage(_image(column.labels), str(path))
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
    numbers = np.arange(256)
    numbers[list(column.numbers)] = list(column.numbers.values())
    reference = numbers[np.where(tissues <= VERTEBRAE, tissues, 0)].astype(np.uint8)
    sitk.WriteImage(_image(reference), str(folder / f"{name}_vertebrae.nii.gz"))


def _image(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([SPACING] * 3)
    return image


if __name__ == "__main__":
    main()
