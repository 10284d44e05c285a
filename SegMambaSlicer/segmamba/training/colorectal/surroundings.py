"""Tissue label maps of people of whom only the bowel, the skin and a few organs are labelled.

What is not labelled (spine, pelvis, ribs, lungs, vessels, muscles, organs) is that of another person, moved and scaled
slice by slice into the skin; the space between is subcutaneous fat and soft tissue. Our own construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from scipy import ndimage

from segmamba.errors import InputError
from segmamba.training.colorectal.labels import LARGE, MESENTERY, RECTUM
from segmamba.training.synthesis.tissue_labels import (
    AIR,
    BONES,
    COLON,
    FAT,
    KIDNEY,
    LAST_ORGAN,
    LIVER,
    MUSCLE,
    ORGAN_OFFSET,
    OUTSIDE,
    SMALL_BOWEL,
    SOFT,
    SPACING,
    SPLEEN,
    STOMACH,
    VERTEBRA_CLASSES,
    VERTEBRAE,
    organ,
)
from segmamba.training.vertebrae.label_maps import ORGANS_SUFFIX, read_label_map, within

PARTS_SUFFIX, BODY_SUFFIX = "_colonparts.nii.gz", "_body.nii.gz"
RECTUM_PART = 9
SACRUM_CLASS = 25
# Thickness of the subcutaneous fat; scales of another person, and their variation; smoothing of the trunk's outline.
FAT_MM, SCALES, STRETCH, SMOOTH_MM = (6.0, 22.0), (0.8, 1.25), (0.93, 1.07), 20.0
# Thickness of the abdominal wall, and of what lies behind the cavity.
WALL_MM, BEHIND_CAVITY_MM = 14.0, 75.0
# Another person keeps this distance from the bowel, and is moved by as little of these as it takes so that less than
# this part of what is so near to the bowel lies in bone. The lowest bowel that is labelled may be the anus or not.
FROM_BOWEL_MM, IN_BONE, EVERY = 3.0, 0.001, 7
UP_MM, BACK_MM = (-24.0, -12.0, 0.0, 12.0, 24.0, 36.0, 48.0), (0.0, 7.0, 14.0, 21.0, 28.0)
# A lent organ that meets the bowel gives way on the side where bowel lies: axis, and whether the axis grows there.
GIVES_WAY = {
    (organ(21), organ(22)): (0, True),  # loops lie on bladder and prostate,
    (LIVER, SPLEEN, STOMACH): (0, False),  # flexures and transverse colon below liver, spleen and stomach,
    (KIDNEY, KIDNEY + 1): (1, False),  # ascending and descending colon before the kidneys
}
# With less small bowel than this, the other person's is taken, too.
LEAST_SMALL_BOWEL_ML = 150.0
# What is more than this above or below the bowel ends where the other person ends.
BEYOND_BOWEL_MM = 20.0


def partial_tissue_map(folder: Path, name: str, donors: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return the tissue labels (z, y, x), uint8, of a person without vertebrae, on a grid of ``SPACING`` (LPS axes).

    Parameters
    ----------
    folder : Path
        Holds ``NAME_organs.nii.gz`` (TotalSegmentator v2 classes), ``NAME_colonparts.nii.gz`` (8 sigmoid, 9 rectum) and
        ``NAME_body.nii.gz`` (1 within the skin), on one grid.
    name : str
    donors : sequence of ndarray
        Tissue labels of whole people, one of whom lends what is not labelled: drawn at random from those who reach as
        far up as the bowel, or else who reaches highest. With none there is only fat and soft tissue.
    rng : numpy.random.Generator
        Draws the donor, the thickness of the fat and the scales.

    Returns
    -------
    ndarray of uint8 (z, y, x)
        The rectum is `segmamba.training.colorectal.labels.RECTUM` if it is one of the parts, otherwise it is colon and
        still to be divided.

    Raises
    ------
    InputError
        A file is missing or damaged, lies on another grid, or there is no colon.
    """
    organs = read_label_map(folder / f"{name}{ORGANS_SUFFIX}", LAST_ORGAN)
    parts = read_label_map(folder / f"{name}{PARTS_SUFFIX}", RECTUM_PART)
    body = read_label_map(folder / f"{name}{BODY_SUFFIX}", 1) > 0
    if organs.shape != parts.shape or organs.shape != body.shape:
        raise InputError(f"{folder / name}: the organs, the colon's parts and the body lie on different grids.")
    own = _own_tissues(organs, parts)
    if not np.isin(own, LARGE).any():
        raise InputError(f"{folder / name}{ORGANS_SUFFIX} has no colon: leave it out.")
    body = ndimage.binary_fill_holes(body | (own > 0))
    tissues = _filled(own, body, rng.uniform(*FAT_MM))
    if donors:
        tall = _tall_enough(own, donors)
        lent = _lent(own, body, tall[int(rng.integers(len(tall)))], rng)
        bowel = np.flatnonzero(np.isin(own, LARGE).any(axis=(1, 2)))
        margin = round(BEYOND_BOWEL_MM / SPACING)
        beyond = np.ones(len(own), bool)
        beyond[max(0, bowel[0] - margin) : bowel[-1] + margin + 1] = False
        tissues[beyond & (lent == OUTSIDE).all(axis=(1, 2))] = OUTSIDE
        taken = (lent != OUTSIDE) & (lent != AIR) & body & (tissues != OUTSIDE)
        tissues[taken] = lent[taken]
    labelled = (own > 0) & (tissues != OUTSIDE)
    tissues[labelled] = own[labelled]
    return tissues


def _filled(own: np.ndarray, body: np.ndarray, fat_mm: float) -> np.ndarray:
    """Return subcutaneous fat, soft tissue, and the fat of the cavity around the bowel, within the skin."""
    from_skin = ndimage.distance_transform_edt(np.pad(body, ((0, 0), (1, 1), (1, 1))), sampling=SPACING)[:, 1:-1, 1:-1]
    tissues = np.where(body, np.where(from_skin <= fat_mm, FAT, SOFT), AIR).astype(np.uint8)
    bowel = np.flatnonzero(np.isin(own, LARGE).any(axis=(1, 2)))
    back = _outline(body)[1][bowel[0] : bowel[-1] + 1]
    rows = np.arange(own.shape[1])
    front = (rows < back[:, None] - BEHIND_CAVITY_MM / SPACING)[:, :, None]
    inner = slice(bowel[0], bowel[-1] + 1)
    tissues[inner][(from_skin[inner] > fat_mm + WALL_MM) & front] = MESENTERY
    return tissues


def _own_tissues(organs: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Return the tissue labels (z, y, x) of the labelled organs, 0 elsewhere; hollow surfaces are filled."""
    own = np.where(organs > 0, organs + ORGAN_OFFSET, 0).astype(np.uint8)
    own[np.isin(organs, VERTEBRA_CLASSES)] = 0
    own[organs == SACRUM_CLASS] = VERTEBRAE
    for label in np.setdiff1d(own, (0, COLON, VERTEBRAE)):
        inside = np.stack([ndimage.binary_fill_holes(plane) for plane in own == label])
        own[inside & (own == 0)] = label
    own[(own == COLON) & (parts == RECTUM_PART)] = RECTUM
    return own


def _lent(own: np.ndarray, body: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the donor's tissues on the own grid: `AIR` where there is nothing to take, `OUTSIDE` beyond the donor."""
    here, there, scale, by_sacrum = _anchor(own, donor)
    scale *= rng.uniform(*STRETCH)
    centre, back, depth, width = _outline(body)
    theirs = _outline((donor != AIR) & (donor != OUTSIDE))
    known = (donor != OUTSIDE).any(axis=(1, 2))

    def taken(place: Sequence[np.ndarray], up_mm: float, back_mm: float) -> np.ndarray:
        z, y, x = place
        source = np.round(there + (z - here - up_mm / SPACING) / scale).astype(int)
        k = np.clip(source, 0, len(donor) - 1)
        their_centre, their_back, their_depth, their_width = (values[k] for values in theirs)
        behind = (back[z] + back_mm / SPACING - y) / np.clip(depth[z] / their_depth, *SCALES)
        j = np.round(their_back - behind).astype(int)
        i = np.round(their_centre + (x - centre[z]) / np.clip(width[z] / their_width, *SCALES)).astype(int)
        inside = (j >= 0) & (j < donor.shape[1]) & (i >= 0) & (i < donor.shape[2])
        values = donor[k, np.clip(j, 0, donor.shape[1] - 1), np.clip(i, 0, donor.shape[2] - 1)]
        result: np.ndarray = np.where((source == k) & known[k], np.where(inside, values, AIR), OUTSIDE)
        return result

    near_bowel = within(np.isin(own, LARGE), FROM_BOWEL_MM, SPACING)
    shifts = sorted(product((0.0,) if by_sacrum else UP_MM, BACK_MM), key=lambda shift: float(np.hypot(*shift)))
    points = tuple(np.argwhere(near_bowel)[::EVERY].T)
    in_bone = [float(np.isin(taken(points, *shift), BONES).mean()) for shift in shifts]
    few = [shift for shift, share in zip(shifts, in_bone, strict=True) if share < IN_BONE]
    shift = few[0] if few else shifts[int(np.argmin(in_bone))]
    result = taken(np.ogrid[tuple(slice(size) for size in own.shape)], *shift).astype(np.uint8)
    _give_way(result, near_bowel)
    # Their bowel is another one, and what is labelled here is not there a second time; muscle and fat are as here.
    unwanted = {*LARGE, SMALL_BOWEL, FAT, SOFT, MUSCLE, AIR, *np.unique(own).tolist()}
    if (own == SMALL_BOWEL).sum() * SPACING**3 / 1000 < LEAST_SMALL_BOWEL_ML:  # only a part of it was labelled
        unwanted.discard(SMALL_BOWEL)
    result[np.isin(result, list(unwanted))] = AIR
    return result


def _give_way(lent: np.ndarray, near_bowel: np.ndarray) -> None:
    """Take away, in place, what is near the bowel, and what of an organ lies beyond that: no bowel within an organ."""
    for labels, (axis, grows) in GIVES_WAY.items():
        organs = np.isin(lent, labels)
        met = organs & near_bowel
        if not grows:
            met = np.flip(met, axis)
        beyond = np.logical_or.accumulate(met, axis=axis)
        lent[organs & (beyond if grows else np.flip(beyond, axis))] = AIR
    lent[near_bowel & (lent != OUTSIDE)] = AIR


def _tall_enough(own: np.ndarray, donors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the donors who reach to the bowel's upper end, or the one who reaches highest."""
    top = np.flatnonzero(np.isin(own, LARGE).any(axis=(1, 2)))[-1]
    room = []
    for donor in donors:
        here, there, scale, _ = _anchor(own, donor)
        known = np.flatnonzero((donor != OUTSIDE).any(axis=(1, 2)))
        room.append((known[-1] - there) * scale - (top - here))
    enough = [donor for donor, slices in zip(donors, room, strict=True) if slices >= 0]
    return enough or [donors[int(np.argmax(room))]]


def _anchor(own: np.ndarray, donor: np.ndarray) -> tuple[int, int, float, bool]:
    """Return matching slices of own grid and donor, the donor's scale, and whether it is the sacra that match."""
    (sacrum, bowel), (their_sacrum, their_bowel) = (
        [np.flatnonzero(np.isin(tissues, labels).any(axis=(1, 2))) for labels in ((VERTEBRAE,), LARGE)]
        for tissues in (own, donor)
    )
    if len(sacrum) and len(their_sacrum):
        scale = float(np.clip(len(sacrum) / len(their_sacrum), *SCALES))
        return int(sacrum[-1]), int(their_sacrum[-1]), scale, True
    return int(bowel[0]), int(their_bowel[0]), 1.0, False


def _outline(body: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return, in voxels, for each slice (z,): middle x and back y of the trunk, its depth and its width.

    The trunk is the largest piece of a slice, so that arms beside it do not count.
    """
    rows = []
    last = (body.shape[2] / 2, body.shape[1] - 1.0, body.shape[1] / 1.0, body.shape[2] / 1.0)
    for plane in body:
        pieces, count = ndimage.label(plane)
        if count:
            trunk = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
            y, x = (np.flatnonzero(trunk.any(axis=axis)) for axis in (1, 0))
            middle = (x[0] + x[-1]) / 2
            column = np.flatnonzero(trunk[:, max(0, int(middle) - 4) : int(middle) + 5].any(axis=1))
            if len(column):
                last = (middle, float(column[-1]), float(column[-1] - column[0] + 1), float(x[-1] - x[0] + 1))
        rows.append(last)
    smooth = ndimage.gaussian_filter1d(np.array(rows), SMOOTH_MM / SPACING, axis=0, mode="nearest")
    return smooth[:, 0], smooth[:, 1], smooth[:, 2], smooth[:, 3]
