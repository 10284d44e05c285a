"""A piece of trunk that is known at every voxel: a bowel like an upright U, with an organ and a bone beside it."""

from __future__ import annotations

import numpy as np
import torch

from segmamba.training.colorectal.label_maps import bowel_arrays
from segmamba.training.colorectal.map_format import BowelMap, pack_bowel_map
from segmamba.training.synthesis.tissue_labels import AIR, COLON, LIVER, SMALL_BOWEL, SOFT, SPACING, VERTEBRAE

SHAPE = (96, 76, 100)
# Voxels: the two legs' axes (y, x), their radius, and where the arch that joins them has its centre.
LEGS, RADIUS, TOP = ((36, 28), (36, 72)), 9, 52
LOWEST, SECOND_LOWEST, PROMONTORY = 6, 26, 40


def tissues() -> np.ndarray:
    """Return a tissue label map (z, y, x), uint8, before the bowel is looked at."""
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    result = np.full(SHAPE, SOFT, np.uint8)
    result[(y < 4) | (y > 71) | (x < 4) | (x > 95)] = AIR
    result[50:70, 56:68, 10:30] = LIVER
    result[8:PROMONTORY, 58:68, 44:56] = VERTEBRAE
    result[10:34, 10:20, 40:60] = SMALL_BOWEL
    result[bowel(z, y, x)] = COLON
    return result


def bowel(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return whether voxels are in the bowel: two legs and half a ring."""
    half = (LEGS[1][1] - LEGS[0][1]) / 2
    middle = LEGS[0][1] + half
    legs = np.minimum(*(np.hypot(y - leg[0], x - leg[1]) for leg in LEGS))
    ring = np.hypot(np.hypot(z - TOP, x - middle) - half, y - LEGS[0][0])
    ring = np.where(z >= TOP, ring, np.inf)
    lowest = np.where(x < middle, LOWEST, SECOND_LOWEST)
    return (np.where(z < TOP, legs, ring) <= RADIUS) & (z >= lowest)


def length_mm() -> float:
    """Return the length of the bowel's axis."""
    return (2 * TOP - LOWEST - SECOND_LOWEST + np.pi * (LEGS[1][1] - LEGS[0][1]) / 2) * SPACING


def small_map() -> BowelMap:
    """Return the bowel map, on the CPU."""
    return pack_bowel_map("small", bowel_arrays(tissues(), np.random.default_rng(0)), torch.device("cpu"))
