"""Bowel maps in memory, packed so that one look-up returns all values of a voxel."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segmamba.errors import InputError
from segmamba.training.colorectal.label_maps import DEPTH_STEP_MM, HEIGHTS, OUTERMOST_MM, BowelArrays
from segmamba.training.colorectal.seeds import RADIUS, STEP
from segmamba.training.synthesis.tissue_labels import SPACING, VERTEBRAE

BITS = 8
# Narrow fields of view are centred this far in front of the vertebrae.
IN_FRONT_MM = 20.0


@dataclass(frozen=True, eq=False)
class BowelMap:
    """One bowel map.

    Attributes
    ----------
    subject : str
    packed : Tensor (z, y, x), int32
        A byte each from the lowest: tissue label, depth, centreline index, height; see `BowelArrays`.
    seeds : ndarray (n, columns)
        See `segmamba.training.colorectal.seeds`.
    bones : ndarray (n, 3)
        Points in bones, z, y, x in voxels.
    radii : ndarray (256,)
        Radius of the large bowel at each centreline index, in mm.
    field_centre : ndarray (2,)
        Of narrow fields of view, y, x in voxels: see the function of this name.
    """

    subject: str
    packed: Tensor
    seeds: np.ndarray
    bones: np.ndarray
    radii: np.ndarray
    field_centre: np.ndarray


@dataclass(frozen=True, eq=False)
class Fields:
    """The result of a look-up, each (z, y, x).

    Attributes
    ----------
    tissues, centreline_index : Tensor, int64
    depth : Tensor, float32
        In mm of the map.
    height : Tensor, float32
        0 posterior to 1 anterior; outside the bowel 1 where the nearest bowel is the large one, else 0.
    """

    tissues: Tensor
    depth: Tensor
    centreline_index: Tensor
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
        raise InputError(f"There is no bowel map to train on: make some with {command}.")
    maps = []
    for file in files:
        try:
            with np.load(file) as content:
                arrays = BowelArrays(**{field.name: content[field.name] for field in fields(BowelArrays)})
            maps.append(pack_bowel_map(file.stem.rsplit("_", 1)[0], arrays, device))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{file} is not a bowel map: make it again with {command}.") from error
    return maps


def pack_bowel_map(subject: str, arrays: BowelArrays, device: torch.device) -> BowelMap:
    """Return the map of a subject from its arrays, packed, on a device."""
    packed = np.zeros(arrays.tissues.shape, np.int32)
    for number, values in enumerate((arrays.tissues, arrays.depth, arrays.centreline_index, arrays.height)):
        packed |= values.astype(np.int32) << (BITS * number)
    seeds = arrays.seeds
    order = np.argsort(seeds[:, STEP], kind="stable")
    radii = np.interp(np.arange(256), seeds[order, STEP], seeds[order, RADIUS])
    centre = field_centre(arrays.tissues, SPACING)
    return BowelMap(subject, torch.from_numpy(packed).to(device), seeds, arrays.bones, radii, centre)


def field_centre(tissues: np.ndarray, spacing: float) -> np.ndarray:
    """Return the centre (y, x in voxels) of narrow fields of view: `IN_FRONT_MM` before the vertebrae's mean.

    ``tissues`` is (z, y, x); without vertebrae it is their middle.
    """
    places = np.nonzero((tissues > 0) & (tissues <= VERTEBRAE))
    if not places[0].size:
        return (np.array(tissues.shape[1:]) - 1) / 2
    return np.array([places[1].mean() - IN_FRONT_MM / spacing, places[2].mean()])


def unpack(packed: Tensor) -> Fields:
    """Return the fields of packed values (z, y, x), int32."""
    tissues, depth, centreline_index, height = ((packed >> (BITS * number)) & 255 for number in range(4))
    return Fields(
        tissues.long(),
        depth.float() * DEPTH_STEP_MM + OUTERMOST_MM,
        centreline_index.long(),
        height.float() / HEIGHTS,
    )
