"""Build the tissues of one sample: walls, folds and lumens of all bowels, tumours, nodes and vessels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmamba.training.colorectal.contents import Row
from segmamba.training.colorectal.labels import (
    COLON_LABEL,
    DIVERTICULUM,
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
from segmamba.training.colorectal.parameters import Tumour
from segmamba.training.colorectal.tumour import grow_tumour
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.scanner import blur
from segmamba.training.synthesis.tissue_labels import FAT, SOFT

# The look-up takes the nearest voxel of the map: this much blur, in voxels, takes its steps off the surfaces.
SMOOTHING = 0.6
# Folds are sheets between haustra of about this size; they are about this thick.
HAUSTRUM_MM, FOLD_WIDTH = 32.0, 0.10
VESSEL_SPACING_MM, VESSEL_WIDTH = 22.0, 0.13
NECROSIS_DEPTH_MM, NECROSIS_MM = 3.5, 12.0
# Diverticula: size, how far they reach, how rare they are, and their wall, the last two in units of the noise.
POUCH_MM, POUCH_DEPTH_MM, POUCH_RARITY, POUCH_WALL = 13.0, 8.0, 1.7, 0.25
PRONE_SHARE = 0.06


@dataclass(frozen=True, eq=False)
class Scene:
    """The tissues of a sample before rendering, all (z, y, x).

    Attributes
    ----------
    tissues : Tensor, int64
    labels : Tensor, int64
        0 background, 1 tumour, 2 colon, 3 rectum.
    table : Tensor (rows, z, y, x), float32
        The rows `segmamba.training.colorectal.contents.Row` at each voxel's centreline index.
    depth : Tensor, float32
        Below the surface of the bowel in the map's mm, negative outside.
    height : Tensor, float32
        Within the run of the bowel that shares its contents, 0 lowest to 1 highest as the patient lies.
    """

    tissues: Tensor
    labels: Tensor
    table: Tensor
    depth: Tensor
    height: Tensor


def build_tissues(
    fields: Fields,
    tables: tuple[np.ndarray, np.ndarray],
    tumours: Sequence[tuple[Tumour, float, int, Tensor]],
    nodes: Tensor,
    context: SamplingContext,
) -> Scene:
    """Return the scene of a sample.

    Parameters
    ----------
    fields : Fields
        Of the map, at the sample's voxels.
    tables : tuple of ndarray
        Parameters of the large bowel and of the others, see `segmamba.training.colorectal.contents`.
    tumours : sequence of tuple
        Each with the bowel's radius in mm and centreline index at its seed, and the seed's points (see
        `tumour.local_axes`).
    nodes : Tensor (n, 6)
        Centres (z, y, x in voxels) and radii in mm of lymph nodes.
    context : SamplingContext
    """
    original, rectum = fields.tissues, fields.tissues == RECTUM
    large, other = context.members(LARGE)[original], context.members(OTHER_BOWEL)[original]
    of_large = large | (~other & (fields.height > 0.5))
    rows = context.upload(np.stack(tables, axis=1))  # (rows, 2, 256)
    table = rows.flatten(1)[:, torch.where(of_large, fields.centreline_index, fields.centreline_index + 256)]
    height = _heights(torch.where(of_large, table[Row.RUN], table[Row.RUN] + 256), large | other, context)
    depth = blur(fields.depth, SMOOTHING) - table[Row.SHRINK]
    bowel = large & (depth > 0)
    fold = table[Row.FOLDS] * torch.exp(-((context.smooth_noise(1, HAUSTRUM_MM)[0] / FOLD_WIDTH) ** 2))
    in_wall = depth < torch.maximum(table[Row.WALL], fold)
    tissues = torch.where(large, torch.where(bowel, torch.where(in_wall, WALL, LUMEN), MESENTERY), original)
    in_other_wall = depth < torch.maximum(table[Row.WALL], fold)
    tissues = torch.where(other, torch.where(in_other_wall, OTHER_WALL, OTHER_LUMEN), tissues)
    tissues = _with_vessels_and_nodes(tissues, nodes, context)
    pouch = _pouches(depth, table[Row.DIVERTICULA] * of_large, context)
    pouch = torch.where(context.members((SOFT, MESENTERY, VESSEL))[tissues], pouch, -1.0)
    tissues = torch.where(pouch > POUCH_WALL, DIVERTICULUM, torch.where(pouch > 0, WALL, tissues))
    free = bowel | context.members((SOFT, MESENTERY, VESSEL, NODE))[tissues]
    centreline_index = torch.where(of_large, fields.centreline_index, -1000)
    labels = torch.where(bowel | (pouch > 0), torch.where(rectum, RECTUM_LABEL, COLON_LABEL), 0)
    for tumour, radius, step, points in tumours:
        field, crater = grow_tumour(tumour, radius, step, (depth, centreline_index), points, context)
        inside = (field > 0) & free
        hollow = inside & bowel & (crater > 0)
        solid = inside & ~hollow
        core = solid & (field > NECROSIS_DEPTH_MM) & _noisy(tumour.necrosis, context)
        tissues = torch.where(solid, torch.where(core, NECROSIS, TUMOUR), torch.where(hollow, LUMEN, tissues))
        labels = torch.where(solid, TUMOUR_LABEL, labels)
    return Scene(tissues, labels, table, depth, height)


def _heights(run: Tensor, inside: Tensor, context: SamplingContext) -> Tensor:
    """Return how high voxels (z, y, x) lie within their run of bowel: levels are horizontal, across its loops.

    ``run`` has numbers below 512; those of voxels not ``inside`` do not count.
    """
    number = torch.where(inside, run.long(), 512)
    rows = torch.arange(context.patch[1], device=context.device)[:, None]
    present = torch.zeros(context.patch[1] * 513, device=context.device)
    present.scatter_(0, (rows * 513 + number).flatten(), 1.0)
    there = present.view(-1, 513) > 0
    front = torch.where(there, rows, context.patch[1]).amin(dim=0)
    back = torch.where(there, rows, -1).amax(dim=0)
    height = (back[number] - rows) / (back - front).clamp(min=1)[number]
    return 1 - height if context.rng.random() < PRONE_SHARE else height


def _pouches(depth: Tensor, amount: Tensor, context: SamplingContext) -> Tensor:
    """Return a field (z, y, x) that is positive in diverticula: round pouches in the fat next to the bowel."""
    noise = context.smooth_noise(1, POUCH_MM)[0]
    near = (depth > -POUCH_DEPTH_MM) & (depth < 0.5) & (amount > 0)
    return torch.where(near, noise - POUCH_RARITY + 0.6 * amount, -1.0)


def _noisy(share: float, context: SamplingContext) -> Tensor:
    """Return a random region that takes about a share of the volume."""
    noise = context.smooth_noise(1, NECROSIS_MM)[0]
    return noise > np.interp(share, (0.0, 0.001, 0.5, 1.0), (100.0, 1.5, 0.0, -1.0))


def _with_vessels_and_nodes(tissues: Tensor, nodes: Tensor, context: SamplingContext) -> Tensor:
    """Put vessels (where two smooth fields vanish together) and lymph nodes into the fat."""
    fat = context.members((FAT, MESENTERY))[tissues]
    first, second = context.smooth_noise(2, VESSEL_SPACING_MM)
    vessel = (tissues == MESENTERY) & (first**2 + second**2 < VESSEL_WIDTH**2)
    tissues = torch.where(vessel, VESSEL, tissues)
    for node in nodes:
        squares = [
            ((torch.arange(n, device=context.device) - node[axis]) * context.spacing / node[3 + axis]) ** 2
            for axis, n in enumerate(context.patch)
        ]
        inside = squares[0][:, None, None] + squares[1][:, None] + squares[2] < 1
        tissues = torch.where(inside & fat, NODE, tissues)
    return tissues
