"""Label maps to tissue label maps, the input of the synthesis.

``python -m segmamba.training.vertebrae.label_maps LABELS_FOLDER OUT_FOLDER`` converts a folder.

The tissue labels are those of `segmamba.training.synthesis.tissue_labels`. Unlabelled tissues (fat, muscle, discs,
spinal canal and, for maps of a spine alone, ribs, lungs, skull, vessels and organs) are generated procedurally: rough
anatomy, so that a network sees realistic surroundings. Vertebrae are never generated: where the labels end, the field
of view ends. Our own construction.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from segmamba.errors import InputError, OutputError, SegMambaError
from segmamba.io.read import read_volume
from segmamba.io.volume import to_image
from segmamba.training.synthesis.tissue_labels import (
    CORD,
    DISC,
    FAT,
    FIRST_THORACIC,
    LAST_ORGAN,
    LAST_THORACIC,
    MUSCLE,
    ORGAN_OFFSET,
    OUTSIDE,
    RIBS,
    SOFT,
    SPACING,
    VERTEBRA_CLASSES,
    VERTEBRAE,
    rib_level,
)
from segmamba.training.vertebrae.body import procedural_body
from segmamba.utils.arrays import as_labels
from segmamba.utils.atomic import atomic_write
from segmamba.utils.words import counted

VERTEBRAE_SUFFIX, ORGANS_SUFFIX = "_vertebrae.nii.gz", "_organs.nii.gz"
# Gaps between vertebrae that are narrower than twice this are discs and ligaments.
SOFT_SPINE_MM = 6.0
# Cores of vertebrae deeper than this are bodies; joints of ribs are about this wide; ribs whose label ends farther away
# than this are not lengthened; and necks of ribs are about this thick.
BODY_DEPTH_MM, JOINT_MM, LONGEST_NECK_MM, RIB_RADIUS_MM = 6.0, 1.5, 15.0, 5.0
# Hollows of a body's outline up to twice this wide belong to the body.
BODY_CLOSING_MM = 45.0


def tissue_label_map(vertebrae_path: Path, organs_path: Path | None, rng: np.random.Generator) -> np.ndarray:
    """Return the tissue labels (z, y, x), uint8, of one subject on a grid of ``SPACING`` (LPS axes).

    Parameters
    ----------
    vertebrae_path : Path
        Label map in VerSe numbering.
    organs_path : Path or None
        TotalSegmentator v2 classes on the same grid; None for a spine alone, whose surroundings are then generated.
    rng : numpy.random.Generator
        Decides the proportions of generated tissues.

    Raises
    ------
    InputError
        A file is not such a label map, or the two lie on different grids.
    """
    vertebrae = read_label_map(vertebrae_path, VERTEBRAE)
    if not vertebrae.any():
        raise InputError(f"{vertebrae_path} holds no vertebra of {SPACING} mm or more: leave it out.")
    if organs_path is None:
        tissues = procedural_body(vertebrae, rng)
        free = np.isin(tissues, (SOFT, FAT, MUSCLE))
        fill_soft_spine(tissues, free)
        add_rib_heads(tissues, free)
        return tissues
    organs = read_label_map(organs_path, LAST_ORGAN)
    if organs.shape != vertebrae.shape:
        raise InputError(f"{organs_path} lies on another grid than {vertebrae_path}: resample one of them.")
    kept = (organs > 0) & ~np.isin(organs, VERTEBRA_CLASSES)
    tissues = np.where(kept, organs + ORGAN_OFFSET, 0).astype(np.uint8)
    tissues[vertebrae > 0] = vertebrae[vertebrae > 0]
    unlabelled = tissues == 0
    _fill_body(tissues, rng)
    fill_soft_spine(tissues, unlabelled)
    add_rib_heads(tissues, unlabelled)
    if 1 not in vertebrae:
        top = int(np.flatnonzero((vertebrae > 0).any(axis=(1, 2))).max())
        tissues[top + 1 :] = OUTSIDE  # vertebrae above are in the scan but not in the labels
    return tissues


def prepare(folder: Path, output: Path, variants: int = 3, seed: int = 0) -> list[str]:
    """Write one compressed ``.npz`` of tissue labels per subject (several for a bare spine) and return their names.

    Parameters
    ----------
    folder : Path
        Holds ``NAME_vertebrae.nii.gz`` and, for some, ``NAME_organs.nii.gz``.
    output : Path
        Folder for the ``NAME_K.npz`` files, made where missing.
    variants : int
        Number of different surroundings of a bare spine.
    seed : int
        Of generated tissues.

    Raises
    ------
    InputError
        There is no such label map in the folder, or one is not as it should be.
    OutputError
        The result cannot be written.
    """
    paths = sorted(folder.glob(f"*{VERTEBRAE_SUFFIX}"))
    if not paths:
        raise InputError(f"{folder} holds no file named *{VERTEBRAE_SUFFIX}: give the folder with the label maps.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {output} cannot be created: choose another one.") from error
    names: list[str] = []
    for path in paths:
        name = path.name.removesuffix(VERTEBRAE_SUFFIX)
        organs = folder / f"{name}{ORGANS_SUFFIX}"
        organs_path = organs if organs.is_file() else None
        for variant in range(variants if organs_path is None else 1):
            tissues = tissue_label_map(path, organs_path, np.random.default_rng([seed, variant, len(names)]))
            with atomic_write(output / f"{name}_{variant}.npz", (".npz",)) as file:
                np.savez_compressed(file, tissues=tissues)
            names.append(f"{name}_{variant}")
    return names


def fill_soft_spine(tissues: np.ndarray, free: np.ndarray) -> None:
    """Fill discs, ligaments and the spinal canal in place, (z, y, x), in voxels that are ``free``."""
    vertebrae = (tissues > 0) & (tissues <= VERTEBRAE)
    box = ndimage.find_objects(vertebrae.astype(np.uint8))[0]
    closed = closing(vertebrae[box], SOFT_SPINE_MM, SPACING)
    canal = np.stack([ndimage.binary_fill_holes(plane) for plane in closed]) & ~closed
    view = tissues[box]
    view[free[box] & closed] = DISC
    view[free[box] & canal] = CORD


def add_rib_heads(tissues: np.ndarray, free: np.ndarray) -> None:
    """Lengthen each rib in place, (z, y, x), to the body of the vertebra that bears it, in voxels that are ``free``.

    TotalSegmentator's rib labels end up to a centimetre from the column: without heads and necks, a network takes
    those of real ribs for vertebra. A narrow gap, the joint, is left.
    """
    thorax = (tissues >= FIRST_THORACIC) & (tissues <= LAST_THORACIC)
    if not thorax.any():
        return
    box = _grown_box(thorax, LONGEST_NECK_MM + RIB_RADIUS_MM)
    view, thorax = tissues[box], thorax[box]
    depth = ndimage.distance_transform_edt(thorax, sampling=SPACING)
    open_space = free[box] & ~within((view > 0) & (view <= VERTEBRAE), JOINT_MM, SPACING) & (view != CORD)
    for rib in RIBS:
        own = view == rib_level(rib)
        # What is left of a vertebra after erosion is its body.
        core, place = np.argwhere(own & (depth > BODY_DEPTH_MM)), np.argwhere(view == rib)
        if not len(core) or not len(place):
            continue
        gaps = ndimage.distance_transform_edt(~own, sampling=SPACING)[tuple(place.T)]
        if gaps.min() > LONGEST_NECK_MM:
            continue
        end, body = place[gaps <= gaps.min() + 2 * SPACING].mean(axis=0), core.mean(axis=0)
        line = np.zeros_like(thorax)
        steps = np.linspace(end, body, 2 + int(np.linalg.norm(body - end)))
        line[tuple(np.round(steps).astype(int).T)] = True
        neck = _grown_box(line, RIB_RADIUS_MM)
        view[neck][within(line[neck], RIB_RADIUS_MM, SPACING) & open_space[neck]] = rib


def _grown_box(mask: np.ndarray, margin_mm: float) -> tuple[slice, ...]:
    margin = int(np.ceil(margin_mm / SPACING))
    place = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, part.start - margin), part.stop + margin) for part in place)


def within(mask: np.ndarray, distance_mm: float, spacing: float) -> np.ndarray:
    """Return the voxels at most ``distance_mm`` from a mask; ``spacing`` in mm."""
    if not mask.any():
        return mask.copy()
    return ndimage.distance_transform_edt(~mask, sampling=spacing) <= distance_mm


def closing(mask: np.ndarray, radius_mm: float, spacing: float) -> np.ndarray:
    """Return the morphological closing by a ball; ``spacing`` in mm."""
    pad = int(np.ceil(radius_mm / spacing)) + 1
    grown = within(np.pad(mask, pad), radius_mm, spacing)
    closed = ndimage.distance_transform_edt(grown, sampling=spacing) > radius_mm
    inner = tuple(slice(pad, -pad) for _ in range(3))
    return closed[inner] | mask


def read_label_map(path: Path, highest: int) -> np.ndarray:
    """Return a label map on a grid of ``SPACING``, axes to left, posterior and superior, as (z, y, x) uint8."""
    volume = read_volume(path)
    labels = as_labels(volume.array, highest, str(path))
    image = sitk.DICOMOrient(to_image(labels, volume.geometry), "LPS")
    size = [max(1, round(n * s / SPACING)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    resampled = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkNearestNeighbor, image.GetOrigin(), [SPACING] * 3, image.GetDirection()
    )
    return sitk.GetArrayFromImage(resampled)


def _fill_body(tissues: np.ndarray, rng: np.random.Generator) -> None:
    """Fill skin, fat and unlabelled soft tissue around labelled organs in place."""
    step = 3  # a 4.5 mm grid is fine enough for an outline, and 27 times faster
    coarse = ndimage.maximum_filter(tissues, step)[::step, ::step, ::step] > 0
    hull = closing(coarse, BODY_CLOSING_MM, SPACING * step)
    skin = within(hull, rng.uniform(8.0, 30.0), SPACING * step)
    zoom = [n / m for n, m in zip(tissues.shape, hull.shape, strict=True)]
    empty = tissues == 0
    tissues[empty & (ndimage.zoom(skin.astype(np.float32), zoom, order=1) > 0.5)] = FAT
    tissues[empty & (ndimage.zoom(hull.astype(np.float32), zoom, order=1) > 0.5)] = SOFT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segmamba.training.vertebrae.label_maps", description="Make tissue label maps from label maps."
    )
    help_text = f"holds NAME{VERTEBRAE_SUFFIX} (VerSe numbering) and perhaps NAME{ORGANS_SUFFIX} (TotalSegmentator v2)"
    parser.add_argument("labels", metavar="LABELS_FOLDER", type=Path, help=help_text)
    parser.add_argument("output", metavar="OUT_FOLDER", type=Path, help="for NAME_K.npz, made where missing")
    options = parser.parse_args(arguments)
    try:
        names = prepare(options.labels, options.output)
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"In {options.output}: {counted(len(names), 'tissue label map')}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
