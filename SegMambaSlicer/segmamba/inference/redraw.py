"""Vertebrae that the image shows badly are drawn again, each in its own frame, by a network that knows their shapes.

Where the image shows the bone nothing is done: a shape prior has nothing to add there (Docs/experiments/degraded.md).
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segmamba.errors import ModelError
from segmamba.io.modality import CT
from segmamba.io.volume import Geometry, Volume
from segmamba.models.model import IntensityNormalization
from segmamba.networks.quantization import dequantize
from segmamba.networks.vertebra_refiner import VertebraRefiner
from segmamba.spine.fit_together import fits_on
from segmamba.spine.frames import column_frames
from segmamba.spine.levels import level_name
from segmamba.spine.refine import LEAST_DICE, differences, fit_column
from segmamba.spine.shape_model import FURTHEST, Fit, ShapeModel, grid_points
from segmamba.spine.vertebra_patch import (
    CHANNELS,
    as_modelled,
    canal_patch,
    changed,
    channels,
    half_extent,
    large_vertebrae,
    patch_of,
    share,
    widths_along,
)
from segmamba.utils.arrays import grown_box, label_boxes

# The step's name in a model's list.
REDRAW = "redraw"
# What makes an image show bone badly: slices as thick as this, metal, contrast medium in the canal.
THICK_MM = 4.0
METAL_HU, METAL_ML, METAL_MM = 2500.0, 0.1, 10.0
# Canals of vertebrae on CT have some 0 to 60 HU. They are looked at in the middle of a vertebra, this deep in the mean
# canal, where this part of the places is no bone.
CONTRAST_HU, MIDDLE_MM, DEEP_MM, FREE = 150.0, 8.0, 2.0, 0.5
# Masks are left alone that are not shaped like a vertebra, and those with which the new one would have less than this
# Dice: the network refines, it does not find.
LEAST_OVERLAP = 0.7
# Vertebrae at a time: PyTorch takes its slow convolution for a single one on a processor.
AT_A_TIME = 2
CANALS = "canals"
# More vertebrae than this are counted and not named.
NAMED = 4


@dataclass(frozen=True, eq=False)
class Redrawing:
    """What draws vertebrae again.

    Attributes
    ----------
    network : Module
    canals : Tensor of float32
        Shape ``(25, *GRID)``: signed distance in local mm to the canal that each level's mean shape encloses.
    shapes : ShapeModel
        That it was trained with.
    """

    network: VertebraRefiner
    canals: Tensor
    shapes: ShapeModel


@dataclass(frozen=True, eq=False)
class Seen:
    """What the network for whole images saw, and what was made of its answer.

    Attributes
    ----------
    labels : ndarray of uint8
        Shape (z, y, x): levels.
    image : Tensor
        Shape (2, z, y, x): its input.
    volume : Volume
        As it was read.
    geometry : Geometry
        Of the input: an isotropic grid.
    normalization : sequence of IntensityNormalization
        Of the input's channels.
    fits : mapping of int to Fit
        Of the levels whose shapes are fitted already.
    """

    labels: np.ndarray
    image: Tensor
    volume: Volume
    geometry: Geometry
    normalization: Sequence[IntensityNormalization]
    fits: Mapping[int, Fit] = field(default_factory=dict)


def load_redrawing(path: str | os.PathLike[str], shapes: ShapeModel) -> Redrawing:
    """Read what ``python -m segmamba.training.vertebrae.redraw export`` has written.

    Raises
    ------
    ModelError
        The file is missing or something else.
    """
    try:
        stored = load_file(path)
        canals = (stored.pop(CANALS).float() - 128) * (FURTHEST / 127)
        network = VertebraRefiner(CHANNELS)
        network.load_state_dict(dequantize(stored))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path} does not draw vertebrae ({error}): install the software again.") from error
    return Redrawing(network.eval().requires_grad_(False), canals, shapes)


def badly_shown(seen: Seen, redrawing: Redrawing) -> dict[int, str]:
    """Return the vertebrae that an image shows badly, and why, in words for a report."""
    labels, volume, spacing = seen.labels, seen.volume, seen.geometry.spacing[0]
    large = large_vertebrae(labels, spacing)
    # Of real MR it draws the bodies worse than the network that was trained on some.
    if volume.modality != CT or not large:
        return {}
    thickest = max(volume.geometry.spacing)
    if thickest >= THICK_MM:
        return dict.fromkeys(large, f"slices of {thickest:.1f} mm")
    found = dict.fromkeys(_beside_metal(large, volume, seen.geometry), "metal")
    first = seen.normalization[0]
    assert first.mean is not None and first.std is not None
    threshold = (CONTRAST_HU - first.mean) / first.std
    for level, frame in column_frames(labels, spacing).items():
        if level in large and level not in found:
            points = grid_points(half_extent(level, redrawing.shapes))
            deep = (redrawing.canals[as_modelled(level) - 1] < -DEEP_MM).numpy() & (np.abs(points[..., 0]) < MIDDLE_MM)
            places = np.rint(frame.to_world(points[deep]) / spacing).astype(int)
            places = places[((places >= 0) & (places < labels.shape)).all(axis=1)]
            free = places[labels[tuple(places.T)] == 0]
            if len(free) > FREE * len(places):
                values = seen.image[0][tuple(torch.from_numpy(free.T).to(seen.image.device))]
                if float(values.median()) > threshold:
                    found[level] = "contrast medium in the canal"
    return found


def _beside_metal(boxes: Mapping[int, Sequence[slice]], volume: Volume, geometry: Geometry) -> list[int]:
    """Return the vertebrae with enough metal in their boxes, or near to these."""
    margin = METAL_MM / geometry.spacing[0]
    ends = {
        level: np.array([[part.start - margin for part in box], [part.stop + margin for part in box]])
        for level, box in boxes.items()
    }
    to_volume = np.linalg.inv(volume.geometry.affine) @ geometry.affine
    around = np.array(
        [np.min([each[0] for each in ends.values()], axis=0), np.max([each[1] for each in ends.values()], axis=0)]
    )
    corners = np.array(list(itertools.product(*around.T)))[:, ::-1] @ to_volume[:3, :3].T + to_volume[:3, 3]
    low = np.maximum(0, np.floor(corners.min(axis=0)).astype(int))
    x, y, z = (slice(a, max(a, int(b) + 1)) for a, b in zip(low.tolist(), np.ceil(corners.max(axis=0)), strict=True))
    metal = np.argwhere(volume.array[z, y, x] > METAL_HU)[:, ::-1] + low
    least = METAL_ML * 1000 / float(np.prod(volume.geometry.spacing))
    if len(metal) < least:
        return []
    to_grid = np.linalg.inv(to_volume)
    places = (metal @ to_grid[:3, :3].T + to_grid[:3, 3])[:, ::-1]
    return [
        level
        for level, (first, last) in ends.items()
        if np.count_nonzero(((places >= first) & (places < last)).all(axis=1)) >= least
    ]


def note(reasons: Mapping[int, str]) -> str:
    """Return a sentence about vertebrae that were drawn again."""
    parts = []
    for reason in dict.fromkeys(reasons.values()):
        names = [level_name(level) for level, own in reasons.items() if own == reason]
        parts.append(f"{', '.join(names) if len(names) <= NAMED else f'{len(names)} vertebrae'} ({reason})")
    shown = "; ".join(parts)
    return f"The image shows bone badly: {shown}. There, masks were drawn with the shapes of vertebrae: check them."


def redraw(
    redrawing: Redrawing,
    reasons: Mapping[int, str],
    values: Sequence[int],
    seen: Seen,
    check: Callable[[], None],
    probabilities: Tensor,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Draw vertebrae again.

    Parameters
    ----------
    redrawing : Redrawing
    reasons : mapping of int to str
        Of each vertebra to draw why, see `badly_shown`.
    values : sequence of int
        Label value of each class.
    seen : Seen
    check : callable
        Called between pairs of vertebrae; an exception that it raises ends the work.
    probabilities : Tensor
        Shape (classes, z, y, x), the background first; changed in place once all vertebrae are drawn. The work is done
        where it is.

    Returns
    -------
    tuple
        The class probabilities, and what changed, as `segmamba.spine.refine.differences` tells it, with the ``reason``.
    """
    device, spacing, labels = probabilities.device, seen.geometry.spacing[0], seen.labels
    image, shapes = seen.image.to(device), redrawing.shapes
    classes = {value: number for number, value in enumerate(values) if value in reasons}
    fits = {level: fit for level, fit in seen.fits.items() if level in classes}
    missing = set(classes) - set(fits)
    if missing:
        fits |= fit_column(labels, spacing, shapes, check, fits_on(device), missing)
    fits = {level: fit for level, fit in fits.items() if fit.dice >= LEAST_DICE}
    levels = list(fits)
    # A copy: the network stays for the next volume, and would keep memory of the GPU.
    network = copy.deepcopy(redrawing.network).to(device)

    def given(level: int) -> tuple[Tensor, ...]:
        """Return the arguments of `channels` for a vertebra."""
        fit, source = fits[level], seen.volume.geometry
        own, distance = patch_of(image, probabilities, classes[level], fit, half_extent(level, shapes), spacing)
        canal = canal_patch(redrawing.canals[as_modelled(level) - 1].to(device))
        widths = torch.from_numpy(widths_along(fit.frame, source.spacing, source.direction)).float()
        return own, distance, canal, widths.to(device)

    drawn = {}
    for first in range(0, len(levels), AT_A_TIME):
        check()
        some = levels[first : first + AT_A_TIME]
        patches = channels(*(torch.stack(part) for part in zip(*map(given, some), strict=True)))
        with torch.no_grad():
            changes = network(patches)
        for level, change in zip(some, changes, strict=True):
            number, fit = classes[level], fits[level]
            own = changed(probabilities, number, change, fit, half_extent(level, shapes), spacing)
            if _overlap(own > 0.5, probabilities[number][fit.box] > 0.5) >= LEAST_OVERLAP:
                drawn[level] = own
    for level, own in drawn.items():
        probabilities[classes[level]][fits[level].box] = own
    after, table, boxes = labels.copy(), np.array(values, np.uint8), label_boxes(labels)
    for level in drawn:
        box = fits[level].box
        # Others have nothing there: bone belongs to a label that it touches, or was drawn near to it.
        around = grown_box(box, labels.shape)
        there = {other for other, own in boxes.items() if _meet(own, around)}
        there |= {other for other in drawn if _meet(fits[other].box, box)}
        numbers = [0, *(number for number, value in enumerate(values) if value in there)]
        after[box] = table[share(probabilities, box, numbers).cpu().numpy()]
    named = {level_name(level): reason for level, reason in reasons.items()}
    found = differences(REDRAW, labels, after, spacing)
    return probabilities, [
        change | ({"reason": named[change["level"]]} if change["level"] in named else {}) for change in found
    ]


def _meet(one: Sequence[slice], other: Sequence[slice]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _overlap(one: Tensor, other: Tensor) -> float:
    """Return the Dice coefficient of two masks."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()).clamp(min=1))
