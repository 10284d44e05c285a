"""Label maps to maps of the bowel: ``python -m segmamba.training.colorectal.label_maps LABELS_FOLDER OUT_FOLDER``.

A map holds what a sample needs at each voxel, so that a wall, a lumen and a tumour can be made on the GPU at every
step: the tissue code, the distance to the bowel's surface, how far along the bowel it lies, and how high within its
piece of the bowel (gas is above fluid). A table of seeds says where tumours can start. Our own construction.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from segmamba.errors import InputError, SegMambaError
from segmamba.training.colorectal.centreline import depth_within, lengths_along, step_numbers
from segmamba.training.colorectal.course import reinvented
from segmamba.training.colorectal.labels import LARGE, MESENTERY, OTHER_BOWEL, RECTUM
from segmamba.training.colorectal.seeds import bone_places, seed_table
from segmamba.training.synthesis.tissue_labels import (
    AIR,
    COLON,
    FAT,
    KIDNEY,
    LIVER,
    MUSCLE,
    OUTSIDE,
    SMALL_BOWEL,
    SOFT,
    SPACING,
    SPLEEN,
    VERTEBRAE,
    organ,
)
from segmamba.training.vertebrae.label_maps import ORGANS_SUFFIX, VERTEBRAE_SUFFIX, closing, tissue_codes, within
from segmamba.utils.atomic import atomic_write

# The rectum: the last 15 cm of the bowel, below the promontory.
RECTUM_MM = 150.0
# Depths are kept in steps of 0.2 mm from this far outside the bowel.
DEPTH_STEP_MM, OUTERMOST_MM = 0.2, -20.0
HEIGHTS = 127
# Levels of fluid are even over this many steps of the large bowel to either side, and over a loop of the small one.
LEVEL_STEPS = 6
LOOP_ML = 20.0
CAVITY_CLOSING_MM, ABDOMINAL_WALL_MM, LEAST_FAT_MM = 30.0, 12.0, 6.0
# Slices farther than this below and above the bowel are left out.
MARGIN_MM = 250.0
CAVITY_ORGANS = (LIVER, SPLEEN, KIDNEY, KIDNEY + 1, organ(21), organ(52), organ(63), *LARGE, *OTHER_BOWEL)


@dataclass(frozen=True, eq=False)
class BowelArrays:
    """What a file holds.

    Attributes
    ----------
    codes : ndarray of uint8 (z, y, x)
        Of `segmamba.training.synthesis.tissue_labels` and `segmamba.training.colorectal.labels`; axes to left,
        posterior, superior.
    depth : ndarray of uint8 (z, y, x)
        Distance to the surface of the own bowel, inside, or of the nearest one, outside (negative), as
        ``(mm - OUTERMOST_MM) / DEPTH_STEP_MM``.
    place : ndarray of uint8 (z, y, x)
        Number of the step along the large bowel, or of the loop of another one; outside, that of the nearest bowel.
    height : ndarray of uint8 (z, y, x)
        From 0, where a piece of bowel is most posterior, to `HEIGHTS`, most anterior. Outside the bowel, `HEIGHTS`
        where the nearest bowel is the large one, else 0.
    seeds, bones : ndarray of float32
        See `segmamba.training.colorectal.seeds`.
    """

    codes: np.ndarray
    depth: np.ndarray
    place: np.ndarray
    height: np.ndarray
    seeds: np.ndarray
    bones: np.ndarray


def bowel_arrays(codes: np.ndarray, rng: np.random.Generator, invented: bool = False) -> BowelArrays:
    """Return the map of the bowel of a map of tissues (z, y, x), uint8, on a grid of `SPACING`.

    With ``invented`` the large bowel first takes another course, see `segmamba.training.colorectal.course`.

    Raises
    ------
    InputError
        It holds no colon, or too little of it.
    """
    codes = _cropped(codes)
    if invented:
        codes = reinvented(codes, _cavity(codes), rng)
    large = codes == COLON
    depth = depth_within(large, SPACING)
    length = lengths_along(large, depth, SPACING)
    codes[large & ~np.isfinite(length)] = SOFT
    large &= np.isfinite(length)
    if not large.any():
        raise InputError("There is no piece of colon of 1 ml or more.")
    promontory = np.flatnonzero((codes == VERTEBRAE).any(axis=(1, 2))).max(initial=-1)
    below = np.arange(len(codes))[:, None, None] < promontory
    codes[large & (length <= RECTUM_MM) & below] = RECTUM
    fill_cavity(codes)
    place = step_numbers(length)
    _number_loops(codes, place, rng)
    height = _heights(codes, place)
    signed = _depths(codes, place, height)
    seeds = seed_table(codes, signed, place, rng)
    if not len(seeds):
        raise InputError("Too little of the colon is in view for a tumour: leave this subject out.")
    steps = np.round((np.clip(signed, OUTERMOST_MM, None) - OUTERMOST_MM) / DEPTH_STEP_MM)
    return BowelArrays(codes, np.minimum(steps, 255).astype(np.uint8), place, height, seeds, bone_places(codes, rng))


def _cropped(codes: np.ndarray) -> np.ndarray:
    slices = np.flatnonzero((codes == COLON).any(axis=(1, 2)))
    if not slices.size:
        raise InputError("There is no colon in the label map: leave it out.")
    margin = round(MARGIN_MM / SPACING)
    codes = codes[max(0, slices[0] - margin) : slices[-1] + margin + 1].copy()
    rows, columns = (np.flatnonzero(((codes != AIR) & (codes != OUTSIDE)).any(axis=axes)) for axes in ((0, 2), (0, 1)))
    return codes[:, max(0, rows[0] - 4) : rows[-1] + 5, max(0, columns[0] - 4) : columns[-1] + 5].copy()


def fill_cavity(codes: np.ndarray) -> None:
    """Make of the soft tissue between organs, in place, what it is: fat within the cavity, muscle around it, fat."""
    cavity = _cavity(codes)
    wall = within(cavity, ABDOMINAL_WALL_MM, SPACING)
    skin = within(codes == AIR, LEAST_FAT_MM, SPACING)
    soft, muscle = codes == SOFT, codes == MUSCLE
    codes[np.isin(codes, (SOFT, FAT)) & wall & ~skin] = MUSCLE
    codes[(soft | (codes == MUSCLE)) & cavity & ~muscle & ~skin] = MESENTERY
    codes[soft & skin] = FAT


def _cavity(codes: np.ndarray) -> np.ndarray:
    """Return the abdominal cavity (z, y, x), bool: the organs in it and what lies between them."""
    coarse = codes[::2, ::2, ::2]
    cavity = closing(np.isin(coarse, CAVITY_ORGANS), CAVITY_CLOSING_MM, 2 * SPACING)
    zoom = [n / m for n, m in zip(codes.shape, coarse.shape, strict=True)]
    return ndimage.zoom(cavity.astype(np.float32), zoom, order=1) > 0.5


def _number_loops(codes: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> None:
    """Cut the other bowels into loops, in place: the voxels nearest to one of some random centres."""
    number = 0
    for code in OTHER_BOWEL:
        voxels = np.argwhere(codes == code)
        if not len(voxels):
            continue
        loops = 1 if code != SMALL_BOWEL else max(1, round(len(voxels) * SPACING**3 / 1000 / LOOP_ML))
        centres = voxels[rng.choice(len(voxels), loops, replace=False)].astype(float)
        for _ in range(3):  # Lloyd's iteration: loops of similar size
            nearest = np.linalg.norm(voxels[:, None, :] - centres[None], axis=2).argmin(axis=1) if loops > 1 else 0
            nearest = np.broadcast_to(nearest, len(voxels))
            centres = np.stack([voxels[nearest == loop].mean(axis=0) for loop in range(loops)])
        place[tuple(voxels.T)] = np.minimum(number + nearest, 255)
        number += loops


def _heights(codes: np.ndarray, place: np.ndarray) -> np.ndarray:
    rows = np.broadcast_to(np.arange(codes.shape[1])[:, None], codes.shape)
    height = np.zeros_like(codes)
    for group, around in ((LARGE, LEVEL_STEPS), (OTHER_BOWEL, 0)):
        mask = np.isin(codes, group)
        number, row = place[mask].astype(int), rows[mask]
        front, back = np.full(256, codes.shape[1]), np.full(256, -1)
        np.minimum.at(front, number, row)
        np.maximum.at(back, number, row)
        if around:
            front = ndimage.minimum_filter1d(front, 2 * around + 1)
            back = ndimage.maximum_filter1d(back, 2 * around + 1)
        height[mask] = np.round(HEIGHTS * (back[number] - row) / np.maximum(back - front, 1)[number]).astype(np.uint8)
    return height


def _depths(codes: np.ndarray, place: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Return signed distances in mm; give the voxels outside the number of the nearest bowel, and which bowel it is."""
    signed = np.zeros(codes.shape, np.float32)
    large, other = np.isin(codes, LARGE), np.isin(codes, OTHER_BOWEL)
    # A voxel's own half counts: the surface lies between voxels.
    half = SPACING / 2
    signed[large] = ndimage.distance_transform_edt(large, sampling=SPACING)[large] - half
    same = other.copy()
    for axis in range(3):
        for step in (1, -1):
            same &= np.roll(place, step, axis) == place
    signed[other] = ndimage.distance_transform_edt(same, sampling=SPACING)[other] + half
    outside = ~(large | other)
    gap, nearest = ndimage.distance_transform_edt(outside, sampling=SPACING, return_indices=True)
    signed[outside] = half - gap[outside]
    source = tuple(axis[outside] for axis in nearest)
    place[outside] = place[source]
    height[outside] = np.where(large[source], HEIGHTS, 0)
    return signed


def prepare(folder: Path, output: Path, without: Sequence[str] = (), seed: int = 0, invented: int = 0) -> list[str]:
    """Write one compressed ``NAME_0.npz`` for each subject with a colon and return their names.

    Parameters
    ----------
    folder : Path
        Holds ``NAME_vertebrae.nii.gz`` and ``NAME_organs.nii.gz``, see
        `segmamba.training.vertebrae.label_maps.prepare`.
    output : Path
        Made where missing.
    without : sequence of str
        Subjects to leave out.
    seed : int
    invented : int
        How many more maps, ``NAME_1.npz`` and so on, each subject gets, with invented courses of the large bowel and
        another layer of fat under the skin.

    Raises
    ------
    InputError
        There is no such pair, or a label map is not as it should be; a subject with too little colon is named.
    """
    output.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for path in sorted(folder.glob(f"*{ORGANS_SUFFIX}")):
        name = path.name.removesuffix(ORGANS_SUFFIX)
        vertebrae = folder / f"{name}{VERTEBRAE_SUFFIX}"
        if name in without or not vertebrae.is_file():
            continue
        rng = np.random.default_rng([seed, len(names)])
        codes = tissue_codes(vertebrae, path, rng)
        if not (codes == COLON).any():
            continue
        for number in range(invented + 1):
            if number:  # its own layer of fat under the skin, too
                codes = tissue_codes(vertebrae, path, rng)
            try:
                arrays = bowel_arrays(codes, rng, invented=number > 0)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
            with atomic_write(output / f"{name}_{number}.npz", (".npz",)) as file:
                np.savez_compressed(file, **vars(arrays))
        names.append(name)
    if not names:
        raise InputError(f"{folder} holds no pair of NAME{VERTEBRAE_SUFFIX} and NAME{ORGANS_SUFFIX} with a colon.")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segmamba.training.colorectal.label_maps", description="Make maps of the bowel from label maps."
    )
    parser.add_argument("labels", metavar="LABELS_FOLDER", type=Path)
    parser.add_argument("output", metavar="OUT_FOLDER", type=Path, help="for NAME_K.npz, made where missing")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="subjects to leave out")
    parser.add_argument("--invented", type=int, default=0, metavar="N", help="maps with invented bowels a subject")
    options = parser.parse_args(arguments)
    try:
        names = prepare(options.labels, options.output, options.without, invented=options.invented)
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Maps of the bowel of {', '.join(names)} are in {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
