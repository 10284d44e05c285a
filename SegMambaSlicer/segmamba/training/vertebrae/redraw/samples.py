"""Samples: painted vertebrae, many of them degraded, as the fine network draws them, each in its own frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from segmamba.inference.two_stage import label_probabilities
from segmamba.models.manifest import Model
from segmamba.networks.spine_mamba import MASK, OFFSET, OFFSET_UNIT_MM
from segmamba.spine.decode import SACRUM_CHANNEL
from segmamba.spine.fine import cast_votes
from segmamba.spine.fit_together import fits_on
from segmamba.spine.instances import assign
from segmamba.spine.levels import ORDER, SACRUM, from_top
from segmamba.spine.refine import fit_column
from segmamba.spine.shape_model import FURTHEST, Fit, ShapeModel
from segmamba.spine.vertebra_patch import (
    OTHERS,
    OWN,
    SEEN,
    SMALLEST_ML,
    as_modelled,
    half_extent,
    in_frame,
    large_vertebrae,
    patch_of,
)
from segmamba.training.synthesis import ct, mr
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.elastic import choose_crop, cut_field_of_view, random_deformation
from segmamba.training.synthesis.synthesizer import normalize
from segmamba.training.synthesis.tissue_labels import CORD, VERTEBRAE
from segmamba.training.vertebrae.tissue_maps import Anatomy

# Samples: voxels and their size as the fine network sees them; parts that are MR, and degraded.
PATCH, SPACING, MR_SHARE, DEGRADED_SHARE = (128, 96, 96), 1.25, 0.2, 0.75
# Known centres of vertebrae are off by so much along each axis: those of the coarse pass are.
CENTRE_MM = 1.5
# Patches are stored in 8 bits: steps in one unit of the image, of a logit and of a distance in mm.
STEPS = {"image": 100.0, "logit": 25.0, "mm": 12.0}
# What a voxel's code adds up from.
BONE, CANAL, IN_IMAGE = 1, 2, 4
PATCHES_A_FILE = 50


def make(one_sample: Callable[[], list[dict[str, Tensor]]], folder: Path, name: str, seconds: float, most: int) -> int:
    """Make patches for some time and write them to files NAME-NUMBER.pt; return how many.

    ``one_sample`` gives those of a sample, see `patches_of_sample`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start, done = time.perf_counter(), 0
    waiting: list[dict[str, Tensor]] = []
    while time.perf_counter() - start < seconds and done + len(waiting) < most:
        waiting += one_sample()
        if len(waiting) >= PATCHES_A_FILE:
            done += _store(waiting, folder / f"{name}-{done:06}.pt")
            waiting = []
    if waiting:
        done += _store(waiting, folder / f"{name}-{done:06}.pt")
    return done


def _store(patches: list[dict[str, Tensor]], path: Path) -> int:
    temporary = path.with_suffix(".part")
    torch.save({name: torch.stack([patch[name] for patch in patches]) for name in patches[0]}, temporary)
    temporary.rename(path)
    return len(patches)


@torch.no_grad()
def patches_of_sample(
    network: nn.Module, anatomies: list[Anatomy], context: SamplingContext, model: Model, shapes: ShapeModel
) -> list[dict[str, Tensor]]:
    """Paint a sample, segment it by a fine network, and return its vertebrae's patches in 8 bits.

    Each has ``values`` ``(6, *SIZE)``: image (2), both logits, distance to the fitted shape, and a code (`BONE`,
    `CANAL`, `IN_IMAGE`); ``widths`` (3,) of slices in mm along the frame's axes, and ``level``.
    """
    image, tissues, centres = painted(anatomies, context, model)
    device = context.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        output = network(image[None])[0].float()
    mask, offsets = output[MASK].softmax(dim=0), output[OFFSET] * OFFSET_UNIT_MM
    labels = segmented(mask, offsets, centres, context)
    probabilities, values = label_probabilities(labels, 1 - mask[0])
    truth = tissues.masked_fill(tissues > VERTEBRAE, 0)
    classes = vertebrae_in(values)
    found = []
    for level, fit in fits_of(labels, SPACING, shapes, device).items():
        if int((truth == level).sum()) * SPACING**3 / 1000 < SMALLEST_ML:
            continue
        half = half_extent(level, shapes)
        given, distance = patch_of(image, probabilities, classes[level], fit, half, SPACING)
        places = torch.stack([truth == level, tissues == CORD]).float()
        bone, canal = in_frame(places, fit.frame, half, SPACING) > 0.5
        code = BONE * bone + CANAL * canal + IN_IMAGE * (given[SEEN] > 0.5)
        parts = [given[:2] * STEPS["image"], given[OWN : OTHERS + 1] * STEPS["logit"]]
        parts.append(distance.clamp(-FURTHEST, FURTHEST)[None] * STEPS["mm"])
        stored = torch.cat([torch.cat(parts).round().clamp(-127, 127), code[None]]).to(torch.int8)
        widths = np.sqrt(fit.frame.axes**2 @ np.square(context.slices_mm))
        found.append(
            {
                "values": stored.cpu(),
                "widths": torch.tensor(widths, dtype=torch.float32),
                "level": torch.tensor(as_modelled(level)),
            }
        )
    return found


def painted(
    anatomies: list[Anatomy], context: SamplingContext, model: Model
) -> tuple[Tensor, Tensor, dict[int, np.ndarray]]:
    """Paint a sample as those are that the fine network was trained on.

    Returns
    -------
    image : Tensor (2, z, y, x)
    tissues : Tensor (z, y, x), uint8
    centres : dict
        By level, (z, y, x) in mm; the sacrum's, too.
    """
    anatomy, centre = choose_crop(anatomies, context)
    tissues, places = random_deformation(anatomy, centre, context)
    tissues = cut_field_of_view(tissues, context)
    is_mr, degraded = (context.rng.random(2) < (MR_SHARE, DEGRADED_SHARE)).tolist()
    context.slices_mm[:] = context.spacing
    if is_mr:
        assert model.mr_preprocessing is not None
        tissues = mr.cut_to_slab(tissues, context)
        image = mr.relative(mr.synthesize(tissues, context, degraded))[None]
        image = normalize(image, model.mr_preprocessing.normalization)
    else:
        image = normalize(ct.synthesize(tissues, context, degraded)[None], model.preprocessing.normalization)
    return image, tissues, {level: places[level].cpu().numpy() * context.spacing for level in anatomy.centres}


def segmented(mask: Tensor, offsets: Tensor, centres: Mapping[int, np.ndarray], context: SamplingContext) -> np.ndarray:
    """Return the levels (z, y, x), uint8, that inference would give a sample whose coarse pass found all vertebrae."""
    levels = [*from_top(list(centres)), *([SACRUM] if SACRUM in centres else [])]
    places = np.array([centres[level] for level in levels]) + context.rng.normal(0, CENTRE_MM, (len(levels), 3))
    given = [values if values.is_cuda else values.numpy() for values in (mask, offsets)]
    cast = cast_votes(given[0], given[1], context.spacing)
    numbers = assign(cast.mask, cast.votes, np.zeros(3), places)
    labels = np.r_[0, levels].astype(np.uint8)[numbers]
    sacrum = (mask[SACRUM_CHANNEL] == mask.amax(dim=0)).cpu().numpy()
    labels[sacrum & (labels == 0)] = SACRUM
    return labels


def fits_of(labels: np.ndarray, spacing_mm: float, model: ShapeModel, device: torch.device) -> dict[int, Fit]:
    """Return the fits of the shape model to all vertebrae of a label map (z, y, x) that are large enough."""
    large = large_vertebrae(labels, spacing_mm)
    return fit_column(labels, spacing_mm, model, lambda: None, fits_on(device), large)


def vertebrae_in(values: tuple[int, ...]) -> dict[int, int]:
    """Return the class of each vertebra (not of the sacrum) among label values, the background's first."""
    return {value: number for number, value in enumerate(values) if value in ORDER}
