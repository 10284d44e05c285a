"""Synthetic training samples of the abdomen with colorectal tumours, on the device of the maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmamba.models.manifest import IntensityNormalization
from segmamba.training.colorectal.bowel import Scene, build_tissues
from segmamba.training.colorectal.contents import bowel_tables
from segmamba.training.colorectal.ct import render_ct
from segmamba.training.colorectal.map_format import BowelMap, unpack
from segmamba.training.colorectal.parameters import Tumour, draw_seed, draw_tumours
from segmamba.training.colorectal.seeds import ALONG, INWARD, POSITION, RADIUS, STEP
from segmamba.training.colorectal.tumour import ARM_VOXELS
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.elastic import cut_field_of_view, limit_field_of_view, random_deformation
from segmamba.training.synthesis.synthesizer import SampleSynthesizer, normalize
from segmamba.training.synthesis.tissue_labels import SPACING
from segmamba.training.vertebrae.tissue_maps import Anatomy

# Samples with a tumour have up to this many more than patients have: each is one more example at no cost.
MOST_MORE = 1
# Largest distance of a crop's centre from its seed, as a part of the patch: tumours must be equally likely all over the
# window. Part of the crops at a tumour, and part of the others that are anywhere: most windows of a whole scan show no
# tumour, and many no bowel.
JITTER, AT_TUMOUR_SHARE, ANYWHERE_SHARE = 0.42, 0.4, 0.3
# A crop extends beyond the map by at most this part of itself, as sliding windows do.
BEYOND = 0.1
NARROWED_SHARE = 0.07
# Scans of a spine or a pelvis have square fields of view of this side. Their centres scatter by `OFF_CENTRE_MM`.
SMALL_FIELD_SHARE, SMALL_FIELD_MM, OFF_CENTRE_MM = 0.4, (140.0, 270.0), 15.0
MOST_NODES, NODE_RADII_MM, NODE_GAP_MM = 4, (3.0, 10.0), (2.0, 25.0)
METAL_SHARE = 0.06


@dataclass(frozen=True, eq=False)
class BowelBatch:
    """Samples and their targets.

    Attributes
    ----------
    image : Tensor (batch, channels, z, y, x), float32
    labels : Tensor (batch, z, y, x), int64
        0 background, 1 tumour, 2 colon, 3 rectum.
    """

    image: Tensor
    labels: Tensor


class BowelSynthesizer(SampleSynthesizer[BowelBatch]):
    """Synthesizes samples for a colorectal network.

    Parameters
    ----------
    maps : sequence of BowelMap
        On the device of the samples.
    patch, spacing, seed
        As for `SampleSynthesizer`.
    channels : sequence of IntensityNormalization
        Normalization of the input, of scheme "clip".
    """

    def __init__(
        self,
        maps: Sequence[BowelMap],
        patch: tuple[int, int, int],
        spacing: float,
        channels: Sequence[IntensityNormalization],
        seed: int = 0,
    ) -> None:
        super().__init__(BowelBatch, patch, spacing, maps[0].packed.device, seed)
        self.maps = maps
        self.channels = channels

    def sample(self) -> tuple[Tensor, Tensor]:
        """Return image (channels, z, y, x) and labels (z, y, x)."""
        bowel = self.maps[int(self.context.rng.integers(len(self.maps)))]
        context = self.context
        tumours = draw_tumours(bowel.seeds, context.rng, int(context.rng.integers(MOST_MORE + 1)))
        centre, field = crop_centre(bowel, tumours, context), None
        if context.rng.random() < SMALL_FIELD_SHARE:
            centre, field = small_field(bowel, centre, context)
        image, scene = synthesize_ct(bowel, tumours, centre, context, field=field)
        return normalize(image[None], self.channels), scene.labels


def crop_centre(bowel: BowelMap, tumours: Sequence[Tumour], context: SamplingContext) -> np.ndarray:
    """Return the centre (z, y, x in voxels of the map) of a crop: near a tumour, near the bowel, or anywhere."""
    rng, shape = context.rng, np.array(bowel.packed.shape)
    size = np.array(context.patch) * context.spacing / SPACING
    if tumours and rng.random() < AT_TUMOUR_SHARE:
        centre = bowel.seeds[tumours[0].seed, POSITION] + rng.uniform(-JITTER, JITTER, 3) * size
    elif rng.random() < ANYWHERE_SHARE:
        centre = rng.uniform(0, 1, 3) * shape
    else:
        centre = bowel.seeds[draw_seed(bowel.seeds, rng), POSITION] + rng.uniform(-JITTER, JITTER, 3) * size
    lowest = np.minimum((0.5 - BEYOND) * size, shape / 2)
    return np.clip(centre, lowest, shape - lowest)


def small_field(
    bowel: BowelMap, centre: np.ndarray, context: SamplingContext
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return the centre (z, y, x) of a window of a scan with a small field of view, and that field in the window.

    The scan lies in front of the spine. A scan smaller than the window is in its middle, as `predict` pads it; windows
    of a larger one are anywhere in it, often at its edge. The field's ends are (y, x) in voxels of the sample.
    """
    rng, size = context.rng, np.array(context.patch[1:])
    side = rng.uniform(*SMALL_FIELD_MM) / context.spacing
    free = np.maximum(side - size, 0) / 2
    shift = np.clip(rng.uniform(-1.6, 1.6, 2), -1, 1) * free  # of the window from the field's centre
    middle = bowel.field_centre + rng.normal(0, OFF_CENTRE_MM, 2) / SPACING
    low = np.round(size / 2 - shift - side / 2).astype(int)
    return np.r_[centre[0], middle + shift * context.spacing / SPACING], (low, low + round(side))


def synthesize_ct(
    bowel: BowelMap,
    tumours: Sequence[Tumour],
    centre: np.ndarray,
    context: SamplingContext,
    cut: bool = True,
    field: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[Tensor, Scene]:
    """Return a synthetic CT (z, y, x) in HU of a deformed map with tumours in it, and its scene.

    Parameters
    ----------
    bowel : BowelMap
    tumours : sequence of Tumour
    centre : ndarray (3,)
        Centre of the sample: z, y, x in the map's voxels.
    context : SamplingContext
    cut : bool
        Whether the field of view may be reduced further.
    field : tuple of ndarray (2,), optional
        The first and last rows and columns (y, x) in view, see `small_field`.
    """
    rng = context.rng
    radii = node_radii(rng)
    metal = len(bowel.bones) > 0 and rng.random() < METAL_SHARE
    points = [point for tumour in tumours for point in arms(bowel.seeds[tumour.seed])]
    points += [point_near_bowel(bowel.seeds, tumours, rng) for _ in radii]
    points += [rng.choice(bowel.bones)] * metal
    numbered = {number: tuple(point) for number, point in enumerate(points, start=1)}
    packed, found = random_deformation(Anatomy(bowel.subject, bowel.packed, numbered, SPACING), centre, context)
    if cut:
        packed = cut_field_of_view(packed, context, NARROWED_SHARE)
    if field is not None:
        packed = limit_field_of_view(packed, *field)
    first = 1 + 3 * len(tumours)
    placed = [
        (tumour, float(seed[RADIUS]), int(seed[STEP]), found[1 + 3 * i : 4 + 3 * i])
        for i, tumour in enumerate(tumours)
        for seed in (bowel.seeds[tumour.seed],)
    ]
    nodes = torch.cat([found[first : first + len(radii)], context.upload(radii)], dim=1)
    tables = bowel_tables(bowel.radii, bowel.seeds, tumours, rng)
    scene = build_tissues(unpack(packed), tables, placed, nodes, context)
    first += len(radii)
    return render_ct(scene, found[first : first + metal], context), scene


def arms(seed: np.ndarray) -> list[np.ndarray]:
    """Return three points (z, y, x in voxels) of a seed: itself, one into the bowel and one along it."""
    position = seed[POSITION]
    return [position, position + ARM_VOXELS * seed[INWARD], position + ARM_VOXELS * seed[ALONG]]


def node_radii(rng: np.random.Generator) -> np.ndarray:
    """Return the radii (n, 3) in mm of up to `MOST_NODES` lymph nodes."""
    count = int(rng.integers(0, MOST_NODES + 1))
    return rng.uniform(*NODE_RADII_MM, (count, 1)) * rng.uniform(0.6, 1.0, (count, 3))


def point_near_bowel(seeds: np.ndarray, tumours: Sequence[Tumour], rng: np.random.Generator) -> np.ndarray:
    """Return a point (z, y, x in voxels) outside the bowel, often near a tumour."""
    rows = np.arange(len(seeds))
    if tumours and rng.random() < 0.6:
        rows = np.flatnonzero(np.abs(seeds[:, STEP] - seeds[tumours[0].seed, STEP]) < 6)
    seed = seeds[rng.choice(rows)]
    return seed[POSITION] - (rng.uniform(*NODE_GAP_MM) / SPACING) * seed[INWARD]
