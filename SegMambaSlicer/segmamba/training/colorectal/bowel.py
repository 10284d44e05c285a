"""The tissues of one sample: walls, folds and lumens of all bowels, tumours, nodes and vessels beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmamba.training.colorectal.labels import (
    COLON_LABEL,
    LARGE,
    LUMEN,
    MESENTERY,
    NECROSIS,
    NODE,
    OTHER_BOWEL,
    OTHER_LUMEN,
    OTHER_WALL,
    RECTUM,
    RECTUM_LABEL,
    TUMOUR,
    TUMOUR_LABEL,
    VESSEL,
    WALL,
)
from segmamba.training.colorectal.map_format import Fields
from segmamba.training.colorectal.parameters import FOLDS, SHRINK, Tumour
from segmamba.training.colorectal.parameters import WALL as WALL_ROW
from segmamba.training.colorectal.tumour import grown
from segmamba.training.synthesis.context import Canvas
from segmamba.training.synthesis.scanner import blur
from segmamba.training.synthesis.tissue_labels import FAT, SOFT

# The look-up takes the nearest voxel of the map: this much blur, in voxels, takes its steps off the surfaces.
SMOOTHING = 0.6
# Folds are sheets between haustra of about this size; they are about this thick.
HAUSTRUM_MM, FOLD_WIDTH = 32.0, 0.10
VESSEL_SPACING_MM, VESSEL_WIDTH = 22.0, 0.13
NECROSIS_DEPTH_MM, NECROSIS_MM = 3.5, 12.0


@dataclass(frozen=True, eq=False)
class Tissues:
    """A sample before it is painted, all (z, y, x).

    Attributes
    ----------
    codes : Tensor, int64
    labels : Tensor, int64
        0 background, 1 tumour, 2 colon, 3 rectum.
    table : Tensor (rows, z, y, x), float32
        The rows of `segmamba.training.colorectal.parameters` for each voxel's place.
    depth : Tensor, float32
        Below the surface of the bowel in the map's mm, negative outside.
    height : Tensor, float32
        Within a piece of bowel, 0 posterior to 1 anterior.
    """

    codes: Tensor
    labels: Tensor
    table: Tensor
    depth: Tensor
    height: Tensor


def shaped(
    fields: Fields,
    tables: tuple[np.ndarray, np.ndarray],
    tumours: Sequence[tuple[Tumour, float, int, Tensor]],
    nodes: Tensor,
    canvas: Canvas,
) -> Tissues:
    """Return the tissues of a sample.

    Parameters
    ----------
    fields : Fields
        Of the map, looked up at the sample's voxels.
    tables : tuple of ndarray
        What the large bowel and the others are like, see `segmamba.training.colorectal.parameters`.
    tumours : sequence of tuple
        Each with the bowel's radius in mm and step at its seed, and the seed's points (see `tumour.local_axes`).
    nodes : Tensor (n, 6)
        Centres (z, y, x in voxels) and radii in mm of lymph nodes.
    canvas : Canvas
    """
    original, rectum = fields.codes, fields.codes == RECTUM
    large, other = canvas.members(LARGE)[original], canvas.members(OTHER_BOWEL)[original]
    of_large = large | (~other & (fields.height > 0.5))
    rows = canvas.upload(np.stack(tables, axis=1))  # (rows, 2, 256)
    table = rows.flatten(1)[:, torch.where(of_large, fields.place, fields.place + 256)]
    depth = blur(fields.depth, SMOOTHING) - table[SHRINK]
    bowel = large & (depth > 0)
    fold = table[FOLDS] * torch.exp(-((canvas.smooth_noise(1, HAUSTRUM_MM)[0] / FOLD_WIDTH) ** 2))
    in_wall = depth < torch.maximum(table[WALL_ROW], fold)
    codes = torch.where(large, torch.where(bowel, torch.where(in_wall, WALL, LUMEN), MESENTERY), original)
    codes = torch.where(other, torch.where(depth < table[WALL_ROW], OTHER_WALL, OTHER_LUMEN), codes)
    codes = _with_vessels_and_nodes(codes, nodes, canvas)
    free = bowel | canvas.members((SOFT, MESENTERY, VESSEL, NODE))[codes]
    place = torch.where(of_large, fields.place, -1000)
    labels = torch.where(bowel, torch.where(rectum, RECTUM_LABEL, COLON_LABEL), 0)
    for tumour, radius, step, points in tumours:
        field, crater = grown(tumour, radius, step, (depth, place), points, canvas)
        inside = (field > 0) & free
        hollow = inside & bowel & (crater > 0)
        solid = inside & ~hollow
        core = solid & (field > NECROSIS_DEPTH_MM) & _noisy(tumour.necrosis, canvas)
        codes = torch.where(solid, torch.where(core, NECROSIS, TUMOUR), torch.where(hollow, LUMEN, codes))
        labels = torch.where(solid, TUMOUR_LABEL, labels)
    return Tissues(codes, labels, table, depth, fields.height)


def _noisy(share: float, canvas: Canvas) -> Tensor:
    """Return a random region that takes about a share of the volume."""
    noise = canvas.smooth_noise(1, NECROSIS_MM)[0]
    return noise > np.interp(share, (0.0, 0.001, 0.5, 1.0), (100.0, 1.5, 0.0, -1.0))


def _with_vessels_and_nodes(codes: Tensor, nodes: Tensor, canvas: Canvas) -> Tensor:
    """Put vessels (where two smooth fields vanish together) and lymph nodes into the fat."""
    fat = canvas.members((FAT, MESENTERY))[codes]
    first, second = canvas.smooth_noise(2, VESSEL_SPACING_MM)
    vessel = (codes == MESENTERY) & (first**2 + second**2 < VESSEL_WIDTH**2)
    codes = torch.where(vessel, VESSEL, codes)
    for node in nodes:
        squares = [
            ((torch.arange(n, device=canvas.device) - node[axis]) * canvas.spacing / node[3 + axis]) ** 2
            for axis, n in enumerate(canvas.patch)
        ]
        inside = squares[0][:, None, None] + squares[1][:, None] + squares[2] < 1
        codes = torch.where(inside & fat, NODE, codes)
    return codes
