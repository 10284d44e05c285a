"""Label maps to maps of tissue codes: what the synthesis paints, one code a voxel.

The codes are those of `segmamba.training.tissues`. What no label covers (fat, muscle, discs, spinal canal and, for maps
that hold nothing but a spine, ribs, lungs, skull, vessels and organs) is filled in by procedure: rough anatomy, so that
a network meets realistic surroundings. No vertebra is ever invented: where the labels end, the field of view ends.
Our own construction.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from segmamba.training.procedural import procedural_body
from segmamba.training.tissues import CORD, DISC, FAT, ORGAN_OFFSET, OUTSIDE, SOFT, SPACING, VERTEBRAE

_CLOSING_MM = 6.0


def _read(path: Path) -> np.ndarray:
    """Return a label map on a grid of ``SPACING``, axes to left, posterior and superior, as (z, y, x)."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    size = [max(1, round(n * s / SPACING)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    resampled = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkNearestNeighbor, image.GetOrigin(), [SPACING] * 3, image.GetDirection()
    )
    return sitk.GetArrayFromImage(resampled).astype(np.uint8)


def within(mask: np.ndarray, distance_mm: float, spacing: float = SPACING) -> np.ndarray:
    """Return the voxels at most ``distance_mm`` from a mask."""
    if not mask.any():
        return mask.copy()
    return ndimage.distance_transform_edt(~mask, sampling=spacing) <= distance_mm


def closing(mask: np.ndarray, radius_mm: float, spacing: float = SPACING) -> np.ndarray:
    """Return the morphological closing by a ball."""
    pad = int(np.ceil(radius_mm / spacing)) + 1
    grown = within(np.pad(mask, pad), radius_mm, spacing)
    closed = ndimage.distance_transform_edt(grown, sampling=spacing) > radius_mm
    inner = tuple(slice(pad, -pad) for _ in range(3))
    return closed[inner] | mask


def _soft_spine(codes: np.ndarray, empty: np.ndarray) -> None:
    """Fill discs, ligaments and the spinal canal in place, where ``empty``."""
    vertebrae = (codes > 0) & (codes <= VERTEBRAE)
    box = ndimage.find_objects(vertebrae.astype(np.uint8))[0]
    closed = closing(vertebrae[box], _CLOSING_MM)
    canal = np.stack([ndimage.binary_fill_holes(slice_) for slice_ in closed]) & ~closed
    view, free = codes[box], empty[box]
    view[free & closed] = DISC
    view[free & canal] = CORD


def _organ_body(codes: np.ndarray, rng: np.random.Generator) -> None:
    """Fill skin, fat and unlabelled soft tissue around labelled organs in place."""
    step = 3  # a 4.5 mm grid is fine enough for an outline, and 27 times faster
    coarse = ndimage.maximum_filter(codes, step)[::step, ::step, ::step] > 0
    hull = closing(coarse, 45.0, SPACING * step)
    skin = within(hull, rng.uniform(8.0, 30.0), SPACING * step)
    zoom = [n / m for n, m in zip(codes.shape, hull.shape, strict=True)]
    empty = codes == 0
    codes[empty & (ndimage.zoom(skin.astype(np.float32), zoom, order=1) > 0.5)] = FAT
    codes[empty & (ndimage.zoom(hull.astype(np.float32), zoom, order=1) > 0.5)] = SOFT


def tissue_codes(vertebrae_path: Path, organs_path: Path | None, rng: np.random.Generator) -> np.ndarray:
    """Return the tissue codes (z, y, x), uint8, of one subject on a grid of ``SPACING`` (LPS axes).

    Parameters
    ----------
    vertebrae_path : Path
        Label map in VerSe numbering.
    organs_path : Path or None
        TotalSegmentator v2 classes on the same grid; None for a spine alone, whose surroundings are then invented.
    rng : numpy.random.Generator
        Decides the proportions of what is invented.
    """
    vertebrae = _read(vertebrae_path)
    if organs_path is None:
        return procedural_body(vertebrae, rng, _soft_spine)
    organs = _read(organs_path)
    keep = (organs > 0) & ~((organs >= 25) & (organs <= 50))
    codes = np.where(keep, organs + ORGAN_OFFSET, 0).astype(np.uint8)
    codes[vertebrae > 0] = vertebrae[vertebrae > 0]
    unlabelled = codes == 0
    _organ_body(codes, rng)
    _soft_spine(codes, unlabelled)
    top = int(np.flatnonzero((vertebrae > 0).any(axis=(1, 2))).max())
    if 1 not in vertebrae:
        codes[top + 1 :] = OUTSIDE  # vertebrae above are in the scan but not in the labels
    return codes


def prepare(folder: Path, output: Path, variants: int = 3, seed: int = 0) -> list[str]:
    """Write one compressed ``.npz`` of tissue codes a subject (several for a bare spine) and return their names.

    Parameters
    ----------
    folder : Path
        Holds ``NAME_vertebrae.nii.gz`` and, for some, ``NAME_organs.nii.gz``.
    output : Path
        Folder for the ``NAME_K.npz`` files, made where missing.
    variants : int
        How many different surroundings a bare spine gets.
    """
    output.mkdir(parents=True, exist_ok=True)
    names = []
    for path in sorted(folder.glob("*_vertebrae.nii.gz")):
        name = path.name.removesuffix("_vertebrae.nii.gz")
        organs = folder / f"{name}_organs.nii.gz"
        for variant in range(1 if organs.is_file() else variants):
            rng = np.random.default_rng([seed, variant, len(names)])
            codes = tissue_codes(path, organs if organs.is_file() else None, rng)
            np.savez_compressed(output / f"{name}_{variant}.npz", codes=codes)
            names.append(f"{name}_{variant}")
    return names
