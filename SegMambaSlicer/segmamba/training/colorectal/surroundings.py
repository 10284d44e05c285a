"""Tissue label maps of people of whom only the bowel, the skin and a few organs are labelled.

What is not labelled (spine, pelvis, ribs, lungs, vessels, muscles, organs) is that of another person, moved and scaled
slice by slice into the skin; the space between is subcutaneous fat and soft tissue. Our own construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from segmamba.errors import InputError
from segmamba.training.colorectal.labels import LARGE, MESENTERY, OTHER_BOWEL, RECTUM
from segmamba.training.synthesis.tissue_labels import (
    AIR,
    BONES,
    COLON,
    FAT,
    LAST_ORGAN,
    MUSCLE,
    ORGAN_OFFSET,
    OUTSIDE,
    SMALL_BOWEL,
    SOFT,
    SPACING,
    VERTEBRA_CLASSES,
    VERTEBRAE,
)
from segmamba.training.vertebrae.label_maps import ORGANS_SUFFIX, read_label_map, within

PARTS_SUFFIX, BODY_SUFFIX = "_colonparts.nii.gz", "_body.nii.gz"
RECTUM_PART = 9
SACRUM_CLASS = 25
# Thickness of the subcutaneous fat; scales of another person; smoothing along z of the trunk's outline.
FAT_MM, SCALES, SMOOTH_MM = (6.0, 22.0), (0.8, 1.25), 20.0
# Thickness of the abdominal wall, and of what lies behind the cavity.
WALL_MM, BEHIND_CAVITY_MM = 14.0, 75.0
# Bone of another person is moved back by one of these, and keeps this distance from the bowel.
BACK_MM, FROM_BONE_MM = (0.0, 7.0, 14.0, 21.0), 3.0
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
        Tissue labels of whole people, one of whom, drawn at random, lends what is not labelled. With none there is only
        fat and soft tissue.
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
        lent = _lent(own, body, donors[int(rng.integers(len(donors)))], rng)
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
    for label in OTHER_BOWEL:
        inside = np.stack([ndimage.binary_fill_holes(plane) for plane in own == label])
        own[inside & (own == 0)] = label
    own[(own == COLON) & (parts == RECTUM_PART)] = RECTUM
    return own


def _lent(own: np.ndarray, body: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the donor's tissues on the own grid: `AIR` where there is nothing to take, `OUTSIDE` beyond the donor.

    They are moved back as far as it takes so that least of the bowel lies in bone; what still does is no bone.
    """
    slices, sources = _matching_slices(own, donor, rng)
    centre, back, depth, width = _outline(body)
    donor_body = (donor != AIR) & (donor != OUTSIDE)
    their_centre, their_back, their_depth, their_width = (values[sources] for values in _outline(donor_body))
    scale_y = np.clip(depth[slices] / their_depth, *SCALES)
    scale_x = np.clip(width[slices] / their_width, *SCALES)
    rows, columns = np.arange(own.shape[1]), np.arange(own.shape[2])
    near_bowel = within(np.isin(own, LARGE), FROM_BONE_MM, SPACING)

    def moved(back_mm: float) -> np.ndarray:
        result = np.full(own.shape, OUTSIDE, np.uint8)
        for n, (here, there) in enumerate(zip(slices, sources, strict=True)):
            y = np.round(their_back[n] - (back[here] + back_mm / SPACING - rows) / scale_y[n]).astype(int)
            x = np.round(their_centre[n] + (columns - centre[here]) / scale_x[n]).astype(int)
            plane = donor[there][np.clip(y, 0, donor.shape[1] - 1)][:, np.clip(x, 0, donor.shape[2] - 1)]
            inside = ((y >= 0) & (y < donor.shape[1]))[:, None] & ((x >= 0) & (x < donor.shape[2]))
            result[here] = np.where(inside, plane, AIR)
        return result

    candidates = [moved(back_mm) for back_mm in BACK_MM]
    in_bone = [int(np.isin(candidate[near_bowel], BONES).sum()) for candidate in candidates]
    result = candidates[int(np.argmin(in_bone))]
    result[near_bowel & np.isin(result, BONES)] = AIR
    # Their bowel is another one, and what is labelled here is not there a second time; muscle and fat are as here.
    unwanted = {*LARGE, SMALL_BOWEL, FAT, SOFT, MUSCLE, AIR, *np.unique(own).tolist()}
    if (own == SMALL_BOWEL).sum() * SPACING**3 / 1000 < LEAST_SMALL_BOWEL_ML:  # only a part of it was labelled
        unwanted.discard(SMALL_BOWEL)
    result[np.isin(result, list(unwanted))] = AIR
    return result


def _matching_slices(own: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return slices of the own grid and the donor's slices for them: the sacra match, otherwise the bowels' ends."""
    ends = []
    for tissues in (own, donor):
        sacrum = np.flatnonzero((tissues == VERTEBRAE).any(axis=(1, 2)))
        bowel = np.flatnonzero(np.isin(tissues, LARGE).any(axis=(1, 2)))
        ends.append((sacrum, bowel))
    (sacrum, bowel), (their_sacrum, their_bowel) = ends
    if len(sacrum) and len(their_sacrum):
        scale = np.clip(len(sacrum) / len(their_sacrum), *SCALES)
        here, there = sacrum[-1], their_sacrum[-1]
    else:
        scale = rng.uniform(0.93, 1.07)
        here, there = bowel[0], their_bowel[0]
    source = np.round(there + (np.arange(len(own)) - here) / scale).astype(int)
    known = (donor != OUTSIDE).any(axis=(1, 2))
    slices = np.flatnonzero((source >= 0) & (source < len(donor)))
    slices = slices[known[source[slices]]]
    return slices, source[slices]


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
