"""Training samples of the abdomen with colorectal tumours, painted on whatever device the maps lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmamba.models.manifest import Channel
from segmamba.training.colorectal.bowel import Tissues, shaped
from segmamba.training.colorectal.ct import painted
from segmamba.training.colorectal.map_format import BowelMap, unpacked
from segmamba.training.colorectal.parameters import Tumour, draw_seed, draw_tumours, large_bowel, other_bowel
from segmamba.training.colorectal.seeds import ALONG, INWARD, POSITION, RADIUS, STEP
from segmamba.training.colorectal.tumour import ARM_VOXELS
from segmamba.training.synthesis.context import Canvas
from segmamba.training.synthesis.elastic import cut_field_of_view, deformed
from segmamba.training.synthesis.tissue_labels import SPACING
from segmamba.training.vertebrae.samples import normalised
from segmamba.training.vertebrae.tissue_maps import Anatomy

# Samples with a tumour have up to so many more than patients have: each shows where to look and where not, and costs
# the same.
MOST_MORE = 3
# How far a crop's centre is from its seed at most, as a part of the patch: a tumour may be anywhere in a window, so no
# place in it shall hint at one. Part of the crops that look for a tumour, and of the others that lie anywhere: most
# windows of a whole scan show no tumour, many not even bowel.
JITTER, AT_TUMOUR_SHARE, ANYWHERE_SHARE = 0.42, 0.6, 0.3
# A crop reaches out of the body no further than this part of itself, as the windows that a scan is looked at through.
BEYOND = 0.1
NARROWED_SHARE = 0.07
MOST_NODES, NODE_RADII_MM, NODE_GAP_MM = 4, (3.0, 10.0), (2.0, 25.0)
METAL_SHARE = 0.06


@dataclass(frozen=True, eq=False)
class BowelBatch:
    """Samples and what a network shall answer.

    Attributes
    ----------
    image : Tensor (batch, channels, z, y, x), float32
    labels : Tensor (batch, z, y, x), int64
        0 background, 1 tumour, 2 colon, 3 rectum.
    """

    image: Tensor
    labels: Tensor


class BowelPainter:
    """Paints training samples; two painters with the same seed paint the same ones.

    Parameters
    ----------
    maps : sequence of BowelMap
        On the device where the samples shall be.
    patch : tuple of int
        Voxels of a sample along z, y, x.
    spacing : float
        Their size in mm.
    channels : sequence of Channel
        How the network's input is made from HU, of kind "clip".
    seed : int
    """

    def __init__(
        self,
        maps: Sequence[BowelMap],
        patch: tuple[int, int, int],
        spacing: float,
        channels: Sequence[Channel],
        seed: int = 0,
    ) -> None:
        self.maps = maps
        self.channels = channels
        device = maps[0].packed.device
        generator = torch.Generator(device).manual_seed(seed)
        self.canvas = Canvas(patch, spacing, device, np.random.default_rng(seed), generator)

    def batch(self, size: int) -> BowelBatch:
        """Return ``size`` new samples."""
        image, labels = zip(*(self.sample() for _ in range(size)), strict=True)
        return BowelBatch(torch.stack(image), torch.stack(labels))

    def sample(self) -> tuple[Tensor, Tensor]:
        """Return one image (channels, z, y, x) and its labels (z, y, x)."""
        bowel = self.maps[int(self.canvas.rng.integers(len(self.maps)))]
        tumours = draw_tumours(bowel.seeds, self.canvas.rng, int(self.canvas.rng.integers(MOST_MORE + 1)))
        image, tissues = scan(bowel, tumours, crop_centre(bowel, tumours, self.canvas), self.canvas)
        return normalised(image[None], self.channels), tissues.labels


def crop_centre(bowel: BowelMap, tumours: Sequence[Tumour], canvas: Canvas) -> np.ndarray:
    """Return the centre (z, y, x in voxels of the map) of a crop: near a tumour, near the bowel, or anywhere."""
    rng, shape = canvas.rng, np.array(bowel.packed.shape)
    size = np.array(canvas.patch) * canvas.spacing / SPACING
    if tumours and rng.random() < AT_TUMOUR_SHARE:
        centre = bowel.seeds[tumours[0].seed, POSITION] + rng.uniform(-JITTER, JITTER, 3) * size
    elif rng.random() < ANYWHERE_SHARE:
        centre = rng.uniform(0, 1, 3) * shape
    else:
        centre = bowel.seeds[draw_seed(bowel.seeds, rng), POSITION] + rng.uniform(-JITTER, JITTER, 3) * size
    lowest = np.minimum((0.5 - BEYOND) * size, shape / 2)
    return np.clip(centre, lowest, shape - lowest)


def scan(
    bowel: BowelMap, tumours: Sequence[Tumour], centre: np.ndarray, canvas: Canvas, cut: bool = True
) -> tuple[Tensor, Tissues]:
    """Return a CT (z, y, x) in HU of a bent map with tumours in it, and its tissues.

    Parameters
    ----------
    bowel : BowelMap
    tumours : sequence of Tumour
    centre : ndarray (3,)
        Of the sample, z, y, x in the map's voxels.
    canvas : Canvas
    cut : bool
        Whether the field of view may be cut further.
    """
    rng = canvas.rng
    radii = node_radii(rng)
    metal = len(bowel.bones) > 0 and rng.random() < METAL_SHARE
    places = [point for tumour in tumours for point in arms(bowel.seeds[tumour.seed])]
    places += [beside(bowel.seeds, tumours, rng) for _ in radii]
    places += [rng.choice(bowel.bones)] * metal
    numbered = {number: tuple(place) for number, place in enumerate(places, start=1)}
    packed, found = deformed(Anatomy(bowel.subject, bowel.packed, numbered, SPACING), centre, canvas)
    if cut:
        packed = cut_field_of_view(packed, canvas, NARROWED_SHARE)
    first = 1 + 3 * len(tumours)
    grown = [
        (tumour, float(seed[RADIUS]), int(seed[STEP]), found[1 + 3 * i : 4 + 3 * i])
        for i, tumour in enumerate(tumours)
        for seed in (bowel.seeds[tumour.seed],)
    ]
    nodes = torch.cat([found[first : first + len(radii)], canvas.upload(radii)], dim=1)
    tables = large_bowel(bowel.radii, bowel.seeds, list(tumours), rng), other_bowel(rng)
    tissues = shaped(unpacked(packed), tables, grown, nodes, canvas)
    first += len(radii)
    return painted(tissues, found[first : first + metal], canvas), tissues


def arms(seed: np.ndarray) -> list[np.ndarray]:
    """Return the three points (z, y, x in voxels) that place a seed: itself, one into the bowel, one along it."""
    position = seed[POSITION]
    return [position, position + ARM_VOXELS * seed[INWARD], position + ARM_VOXELS * seed[ALONG]]


def node_radii(rng: np.random.Generator) -> np.ndarray:
    """Return the radii (n, 3) in mm of up to `MOST_NODES` lymph nodes."""
    count = int(rng.integers(0, MOST_NODES + 1))
    return rng.uniform(*NODE_RADII_MM, (count, 1)) * rng.uniform(0.6, 1.0, (count, 3))


def beside(seeds: np.ndarray, tumours: Sequence[Tumour], rng: np.random.Generator) -> np.ndarray:
    """Return a place (z, y, x in voxels) outside the bowel, often near a tumour."""
    rows = np.arange(len(seeds))
    if tumours and rng.random() < 0.6:
        rows = np.flatnonzero(np.abs(seeds[:, STEP] - seeds[tumours[0].seed, STEP]) < 6)
    seed = seeds[rng.choice(rows)]
    return seed[POSITION] - (rng.uniform(*NODE_GAP_MM) / SPACING) * seed[INWARD]
