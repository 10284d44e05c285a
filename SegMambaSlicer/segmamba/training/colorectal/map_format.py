"""Maps of the bowel in memory, packed so that one look-up brings everything that a sample needs of a voxel."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segmamba.errors import InputError
from segmamba.training.colorectal.label_maps import DEPTH_STEP_MM, HEIGHTS, OUTERMOST_MM
from segmamba.training.colorectal.seeds import RADIUS, STEP

FIELDS = ("codes", "depth", "place", "height", "seeds", "bones")
BITS = 8


@dataclass(frozen=True, eq=False)
class BowelMap:
    """One map of the bowel.

    Attributes
    ----------
    subject : str
    packed : Tensor (z, y, x), int32
        A byte each from below: tissue code, depth, place, height; see `segmamba.training.colorectal.label_maps`.
    seeds : ndarray (n, columns)
        See `segmamba.training.colorectal.seeds`.
    bones : ndarray (n, 3)
        Places in bones, z, y, x in voxels.
    radii : ndarray (256,)
        Radius of the large bowel at each step along it, in mm.
    """

    subject: str
    packed: Tensor
    seeds: np.ndarray
    bones: np.ndarray
    radii: np.ndarray


@dataclass(frozen=True, eq=False)
class Fields:
    """What a look-up brings, each (z, y, x).

    Attributes
    ----------
    codes, place : Tensor, int64
    depth : Tensor, float32
        In mm of the map.
    height : Tensor, float32
        0 posterior to 1 anterior; outside the bowel 1 where the nearest bowel is the large one, else 0.
    """

    codes: Tensor
    depth: Tensor
    place: Tensor
    height: Tensor


def load_bowel_maps(files: Sequence[Path], device: torch.device) -> list[BowelMap]:
    """Read the files that `segmamba.training.colorectal.label_maps.prepare` wrote.

    Raises
    ------
    InputError
        There are none, or one is damaged.
    """
    command = "'python -m segmamba.training.colorectal.label_maps'"
    if not files:
        raise InputError(f"There is no map of the bowel to train on: make some with {command}.")
    maps = []
    for file in files:
        try:
            with np.load(file) as content:
                codes, depth, place, height, seeds, bones = (content[name] for name in FIELDS)
            maps.append(bowel_map(file.stem.rsplit("_", 1)[0], codes, depth, place, height, seeds, bones, device))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{file} is no map of the bowel: make it again with {command}.") from error
    return maps


def bowel_map(
    subject: str,
    codes: np.ndarray,
    depth: np.ndarray,
    place: np.ndarray,
    height: np.ndarray,
    seeds: np.ndarray,
    bones: np.ndarray,
    device: torch.device,
) -> BowelMap:
    """Pack the arrays of a map, see `segmamba.training.colorectal.label_maps.BowelArrays`."""
    packed = np.zeros(codes.shape, np.int32)
    for number, values in enumerate((codes, depth, place, height)):
        packed |= values.astype(np.int32) << (BITS * number)
    order = np.argsort(seeds[:, STEP], kind="stable")
    radii = np.interp(np.arange(256), seeds[order, STEP], seeds[order, RADIUS])
    return BowelMap(subject, torch.from_numpy(packed).to(device), seeds, bones, radii)


def unpacked(packed: Tensor) -> Fields:
    """Return the fields of packed values (z, y, x), int32."""
    codes, depth, place, height = ((packed >> (BITS * number)) & 255 for number in range(4))
    return Fields(codes.long(), depth.float() * DEPTH_STEP_MM + OUTERMOST_MM, place.long(), height.float() / HEIGHTS)
