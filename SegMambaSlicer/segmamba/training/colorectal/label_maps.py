"""Label maps to bowel maps: ``python -m segmamba.training.colorectal.label_maps LABELS_FOLDER OUT_FOLDER``.

A map holds for each voxel what is needed to build a wall, a lumen and a tumour on the GPU at every step of the
training: the tissue label, the distance to the bowel's surface, the position along the bowel, and the height within
its piece of bowel (gas is above fluid). A table of seeds lists where tumours can start. Our own construction.
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
from segmamba.training.colorectal.centreline import centreline_indices, depth_within, lengths_along
from segmamba.training.colorectal.course import random_course
from segmamba.training.colorectal.labels import LARGE, MESENTERY, OTHER_BOWEL, RECTUM
from segmamba.training.colorectal.seeds import bone_points, seed_table
from segmamba.training.colorectal.surroundings import BODY_SUFFIX, partial_tissue_map
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
    STOMACH,
    VERTEBRAE,
    organ,
)
from segmamba.training.vertebrae.label_maps import ORGANS_SUFFIX, VERTEBRAE_SUFFIX, closing, tissue_label_map, within
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
    """The content of a bowel map file.

    Attributes
    ----------
    tissues : ndarray of uint8 (z, y, x)
        Of `segmamba.training.synthesis.tissue_labels` and `segmamba.training.colorectal.labels`; axes to left,
        posterior, superior.
    depth : ndarray of uint8 (z, y, x)
        Distance to the surface of the own bowel, inside, or of the nearest one, outside (negative), as
        ``(mm - OUTERMOST_MM) / DEPTH_STEP_MM``.
    centreline_index : ndarray of uint8 (z, y, x)
        Index of the step along the large bowel, or of the loop of another one; outside, that of the nearest bowel.
    height : ndarray of uint8 (z, y, x)
        From 0, where a piece of bowel is most posterior, to `HEIGHTS`, most anterior. Outside the bowel, `HEIGHTS`
        where the nearest bowel is the large one, else 0.
    seeds, bones : ndarray of float32
        See `segmamba.training.colorectal.seeds`.
    """

    tissues: np.ndarray
    depth: np.ndarray
    centreline_index: np.ndarray
    height: np.ndarray
    seeds: np.ndarray
    bones: np.ndarray


def bowel_arrays(tissues: np.ndarray, rng: np.random.Generator, new_course: bool = False) -> BowelArrays:
    """Return the bowel map of a tissue label map (z, y, x), uint8, on a grid of `SPACING`.

    With ``new_course`` the large bowel first gets a random course, see `segmamba.training.colorectal.course`. A rectum
    that is labelled is kept; otherwise, and in a random course, it is the last `RECTUM_MM` below the promontory.

    Raises
    ------
    InputError
        There is no colon, or too little of it.
    """
    tissues = _cropped(tissues)
    known_rectum = tissues == RECTUM
    tissues[known_rectum] = COLON
    cavity = _cavity(tissues) | (tissues == COLON)  # of a new course, too: where the bowel was is fat then
    if new_course:
        tissues = random_course(tissues, cavity, rng)
        known_rectum[:] = False
    large = tissues == COLON
    depth = depth_within(large, SPACING)
    length = lengths_along(large, depth, SPACING)
    tissues[large & ~np.isfinite(length)] = SOFT
    large &= np.isfinite(length)
    if not large.any():
        raise InputError("There is no piece of colon of 1 ml or more.")
    if known_rectum.any():
        tissues[large & known_rectum] = RECTUM
    else:
        promontory = np.flatnonzero((tissues == VERTEBRAE).any(axis=(1, 2))).max(initial=-1)
        below = np.arange(len(tissues))[:, None, None] < promontory
        tissues[large & (length <= RECTUM_MM) & below] = RECTUM
    fill_cavity(tissues, cavity | _cavity(tissues) if new_course else cavity)
    centreline_index = centreline_indices(length)
    _number_loops(tissues, centreline_index, rng)
    height = _heights(tissues, centreline_index)
    signed = _depths(tissues, centreline_index, height)
    seeds = seed_table(tissues, signed, centreline_index, rng)
    if not len(seeds):
        raise InputError("Too little of the colon is in view for a tumour: leave this subject out.")
    steps = np.round((np.clip(signed, OUTERMOST_MM, None) - OUTERMOST_MM) / DEPTH_STEP_MM)
    return BowelArrays(
        tissues,
        np.minimum(steps, 255).astype(np.uint8),
        centreline_index,
        height,
        seeds,
        bone_points(tissues, rng),
    )


def _cropped(tissues: np.ndarray) -> np.ndarray:
    slices = np.flatnonzero(np.isin(tissues, LARGE).any(axis=(1, 2)))
    if not slices.size:
        raise InputError("There is no colon in the label map: leave it out.")
    margin = round(MARGIN_MM / SPACING)
    tissues = tissues[max(0, slices[0] - margin) : slices[-1] + margin + 1].copy()
    rows, columns = (
        np.flatnonzero(((tissues != AIR) & (tissues != OUTSIDE)).any(axis=axes)) for axes in ((0, 2), (0, 1))
    )
    return tissues[:, max(0, rows[0] - 4) : rows[-1] + 5, max(0, columns[0] - 4) : columns[-1] + 5].copy()


def fill_cavity(tissues: np.ndarray, cavity: np.ndarray) -> None:
    """Divide the soft tissue between organs, in place, into fat within the cavity, muscle around it, and skin fat."""
    wall = within(cavity, ABDOMINAL_WALL_MM, SPACING)
    skin = within(tissues == AIR, LEAST_FAT_MM, SPACING)
    soft, muscle = tissues == SOFT, tissues == MUSCLE
    tissues[np.isin(tissues, (SOFT, FAT)) & wall & ~skin] = MUSCLE
    tissues[(soft | (tissues == MUSCLE)) & cavity & ~muscle & ~skin] = MESENTERY
    tissues[soft & skin] = FAT


def _cavity(tissues: np.ndarray) -> np.ndarray:
    """Return the abdominal cavity (z, y, x), bool: the organs in it and what lies between them."""
    coarse = tissues[::2, ::2, ::2]
    cavity = closing(np.isin(coarse, CAVITY_ORGANS), CAVITY_CLOSING_MM, 2 * SPACING)
    zoom = [n / m for n, m in zip(tissues.shape, coarse.shape, strict=True)]
    return ndimage.zoom(cavity.astype(np.float32), zoom, order=1) > 0.5


def _number_loops(tissues: np.ndarray, centreline_index: np.ndarray, rng: np.random.Generator) -> None:
    """Divide the other bowels into loops, in place: the voxels nearest to each of some random centres."""
    number = 0
    for label in OTHER_BOWEL:
        voxels = np.argwhere(tissues == label)
        number = max(number, int(label != STOMACH))  # 0 is the stomach, and nothing else
        if not len(voxels):
            continue
        loops = 1 if label != SMALL_BOWEL else max(1, round(len(voxels) * SPACING**3 / 1000 / LOOP_ML))
        centres = voxels[rng.choice(len(voxels), loops, replace=False)].astype(float)
        for _ in range(3):  # Lloyd's iteration: loops of similar size
            nearest = np.linalg.norm(voxels[:, None, :] - centres[None], axis=2).argmin(axis=1) if loops > 1 else 0
            nearest = np.broadcast_to(nearest, len(voxels))
            centres = np.stack([voxels[nearest == loop].mean(axis=0) for loop in range(loops)])
        centreline_index[tuple(voxels.T)] = np.minimum(number + nearest, 255)
        number += loops


def _heights(tissues: np.ndarray, centreline_index: np.ndarray) -> np.ndarray:
    rows = np.broadcast_to(np.arange(tissues.shape[1])[:, None], tissues.shape)
    height = np.zeros_like(tissues)
    for group, around in ((LARGE, LEVEL_STEPS), (OTHER_BOWEL, 0)):
        mask = np.isin(tissues, group)
        number, row = centreline_index[mask].astype(int), rows[mask]
        front, back = np.full(256, tissues.shape[1]), np.full(256, -1)
        np.minimum.at(front, number, row)
        np.maximum.at(back, number, row)
        if around:
            front = ndimage.minimum_filter1d(front, 2 * around + 1)
            back = ndimage.maximum_filter1d(back, 2 * around + 1)
        height[mask] = np.round(HEIGHTS * (back[number] - row) / np.maximum(back - front, 1)[number]).astype(np.uint8)
    return height


def _depths(tissues: np.ndarray, centreline_index: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Return signed distances in mm; fill in, outside the bowel, the index of the nearest one and which it is."""
    signed = np.zeros(tissues.shape, np.float32)
    large, other = np.isin(tissues, LARGE), np.isin(tissues, OTHER_BOWEL)
    # A voxel's own half counts: the surface lies between voxels.
    half = SPACING / 2
    signed[large] = ndimage.distance_transform_edt(large, sampling=SPACING)[large] - half
    same = other.copy()
    for axis in range(3):
        for step in (1, -1):
            same &= np.roll(centreline_index, step, axis) == centreline_index
    signed[other] = ndimage.distance_transform_edt(same, sampling=SPACING)[other] + half
    outside = ~(large | other)
    gap, nearest = ndimage.distance_transform_edt(outside, sampling=SPACING, return_indices=True)
    signed[outside] = half - gap[outside]
    source = tuple(axis[outside] for axis in nearest)
    centreline_index[outside] = centreline_index[source]
    height[outside] = np.where(large[source], HEIGHTS, 0)
    return signed


def prepare(
    folder: Path,
    output: Path,
    without: Sequence[str] = (),
    only: Sequence[str] = (),
    seed: int = 0,
    random_courses: int = 0,
) -> list[str]:
    """Write one compressed ``NAME_0.npz`` for each subject with a colon and return their names.

    Parameters
    ----------
    folder : Path
        Holds ``NAME_vertebrae.nii.gz`` and ``NAME_organs.nii.gz``, see
        `segmamba.training.vertebrae.label_maps.prepare`. Or, of a person without vertebrae, ``NAME_organs``,
        ``NAME_colonparts`` and ``NAME_body``, see `segmamba.training.colorectal.surroundings`; what is missing is then
        taken from the others.
    output : Path
        Made where missing.
    without : sequence of str
        Subjects to leave out altogether: they do not lend their surroundings either.
    only : sequence of str
        If there are any, only these are written, as they would be with all others: to share the work.
    seed : int
    random_courses : int
        Number of additional maps of each subject, ``NAME_1.npz`` and so on, with random courses of the large bowel and
        another layer of subcutaneous fat.

    Raises
    ------
    InputError
        There is no such pair, or a label map is not as it should be; a subject with too little colon is named.
    """
    output.mkdir(parents=True, exist_ok=True)
    names = _subjects(folder, without)
    if not names:
        raise InputError(f"{folder} holds no pair of NAME{VERTEBRAE_SUFFIX} and NAME{ORGANS_SUFFIX} with a colon.")
    whole = [name for name in names if not _is_partial(folder, name)]
    needed = any(name not in whole and (not only or name in only) for name in names)
    donors = _donors(folder, whole, seed) if needed else []
    done = []
    for subject, name in enumerate(names):
        if only and name not in only:
            continue
        rng = np.random.default_rng([seed, subject])
        for number in range(random_courses + 1):  # each with another layer of subcutaneous fat
            tissues = _tissues_of(folder, name, donors, rng)
            if not np.isin(tissues, LARGE).any():
                break
            try:
                arrays = bowel_arrays(tissues, rng, new_course=number > 0)
            except InputError as error:
                raise InputError(f"{folder / name}{ORGANS_SUFFIX}: {error}") from error
            with atomic_write(output / f"{name}_{number}.npz", (".npz",)) as file:
                np.savez_compressed(file, **vars(arrays))
        else:
            done.append(name)
    if not done:
        raise InputError(f"{folder} holds no pair of NAME{VERTEBRAE_SUFFIX} and NAME{ORGANS_SUFFIX} with a colon.")
    return done


def _subjects(folder: Path, without: Sequence[str]) -> list[str]:
    names = [path.name.removesuffix(ORGANS_SUFFIX) for path in sorted(folder.glob(f"*{ORGANS_SUFFIX}"))]
    whole = [name for name in names if (folder / f"{name}{VERTEBRAE_SUFFIX}").is_file() or _is_partial(folder, name)]
    return [name for name in whole if name not in without]


def _is_partial(folder: Path, name: str) -> bool:
    """Return whether a person's labels are those of the bowel and the skin, without vertebrae."""
    vertebrae, body = (folder / f"{name}{suffix}" for suffix in (VERTEBRAE_SUFFIX, BODY_SUFFIX))
    return body.is_file() and not vertebrae.is_file()


def _donors(folder: Path, names: Sequence[str], seed: int) -> list[np.ndarray]:
    """Return the tissues of the whole people with a colon, for those of whom little is labelled."""
    rng = np.random.default_rng(seed)
    tissues = [tissue_label_map(*_pair(folder, name), rng) for name in names]
    return [labels for labels in tissues if (labels == COLON).any()]


def _pair(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}{VERTEBRAE_SUFFIX}", folder / f"{name}{ORGANS_SUFFIX}"


def _tissues_of(folder: Path, name: str, donors: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    if _is_partial(folder, name):
        return partial_tissue_map(folder, name, donors, rng)
    return tissue_label_map(*_pair(folder, name), rng)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segmamba.training.colorectal.label_maps", description="Make bowel maps from label maps."
    )
    parser.add_argument("labels", metavar="LABELS_FOLDER", type=Path)
    parser.add_argument("output", metavar="OUT_FOLDER", type=Path, help="for NAME_K.npz, made where missing")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="subjects to leave out")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="write only these of the others")
    parser.add_argument("--random-courses", type=int, default=0, metavar="N", help="additional maps per subject")
    options = parser.parse_args(arguments)
    try:
        names = prepare(
            options.labels, options.output, options.without, options.only, random_courses=options.random_courses
        )
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Bowel maps of {', '.join(names)} are in {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
