"""Label maps of a piece of spine that is known at every voxel: cylinders in front, rings around a canal behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from segmamba.training.vertebrae.tissue_maps import Anatomy

SPACING = 1.5
SHAPE = (60, 56, 52)
# Voxels: the body's and the canal's centre (y, x), and the slices that a vertebra and the disc under it take.
BODY, CANAL = (24, 27), (37, 27)
HEIGHT, GAP, LOWEST = 12, 4, 4
LIVER, MUSCLE, RIB, L1 = 5, 80, 92, 31  # classes of TotalSegmentator v2


def slices_of(number: int) -> slice:
    """Return the slices of a vertebra, counted from below."""
    start = LOWEST + number * (HEIGHT + GAP)
    return slice(start, start + HEIGHT)


def vertebrae(top: int = 20, count: int = 3) -> np.ndarray:
    """Return a label map (z, y, x) of ``count`` vertebrae; ``top`` is the uppermost one's VerSe number."""
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    body = np.hypot(y - BODY[0], x - BODY[1]) <= 8
    from_canal = np.hypot(y - CANAL[0], x - CANAL[1])
    plane = body | ((from_canal > 6) & (from_canal <= 9))
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for number in range(count):
        labels[slices_of(number)][:, plane] = top + count - 1 - number
    return labels


def organs() -> np.ndarray:
    """Return a label map (z, y, x) of a liver, muscles, a rib, and a vertebra that has to be taken from elsewhere."""
    classes = np.zeros(SHAPE, dtype=np.uint8)
    classes[:, 3:12, 8:44] = LIVER
    classes[:, 48:52, 8:44] = MUSCLE
    classes[10:14, 10:40, 4:7] = RIB
    classes[slices_of(0), 20:28, 23:31] = L1
    return classes


def write(path: Path, labels: np.ndarray) -> Path:
    """Write a label map whose axes run to left, posterior and superior; the file's own axes are others (RAS)."""
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing([SPACING] * 3)
    sitk.WriteImage(sitk.DICOMOrient(image, "RAS"), str(path))
    return path


def write_subjects(folder: Path) -> Path:
    """Write a bare spine and one with organs, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "bare_vertebrae.nii.gz", vertebrae())
    write(folder / "whole_vertebrae.nii.gz", vertebrae())
    write(folder / "whole_organs.nii.gz", organs())
    return folder


def block(tissues: np.ndarray, spacing: float = SPACING, **centres: tuple[float, float, float]) -> Anatomy:
    """Return an anatomy of given tissue labels; keywords like ``v20`` give the vertebrae's centres."""
    places = {int(name[1:]): place for name, place in centres.items()}
    return Anatomy("block", torch.from_numpy(tissues), places, spacing)
