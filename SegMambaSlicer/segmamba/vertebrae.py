"""Vertebrae in two stages: a coarse pass over the whole volume finds and numbers them, a fine one draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from segmamba.device import cpu_precision
from segmamba.errors import ModelError
from segmamba.grid import Box, ModelGrid
from segmamba.manifest import FineStage, Model, Preprocessing
from segmamba.networks.spine_mamba import LEVELS, MASK, OFFSET, OFFSET_UNIT_MM
from segmamba.networks.two_stage import TwoStageSpineMamba
from segmamba.preprocess import outside_values, to_model_grid
from segmamba.resources import SHAPES, resource_root
from segmamba.sliding_window import predict
from segmamba.spine.decode import Column, decode, decode_fine
from segmamba.spine.levels import level_name
from segmamba.spine.refine import refine
from segmamba.spine.shape_model import load_shapes
from segmamba.volume import Volume

# Part of the progress that the coarse pass takes.
COARSE_SHARE = 0.6
# A voxel that is bone with at least this probability takes part in drawing the surface between two voxels.
FAINT = 0.02


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the two stages found.

    Attributes
    ----------
    probabilities : Tensor
        Shape (classes, z, y, x) on ``grid``, the background first; they sum to one.
    values : tuple of int
        Label value of each class.
    coarse, grid : ModelGrid
        Of the first pass, and of ``probabilities``: the fine one, or the same where no vertebra was found.
    findings : dict
        For the report: "numbering", see `describe_numbering`, and "refinement", see `segmamba.spine.refine.refine`.
    """

    probabilities: torch.Tensor
    values: tuple[int, ...]
    coarse: ModelGrid
    grid: ModelGrid
    findings: dict[str, Any]


def draw(
    network: torch.nn.Module,
    volume: Volume,
    model: Model,
    roi: Box | None,
    refined: bool,
    overlap: float | None,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[float], None],
    cancelled: Callable[[], bool],
    notes: list[str],
) -> Drawn:
    """Run both stages.

    Parameters
    ----------
    network : Module
        A `TwoStageSpineMamba`.
    volume : Volume
    model : Model
        With a fine stage.
    roi : Box or None
        Nothing outside it is labelled.
    refined : bool
        Refine the masks by the steps that the model names.
    overlap : float or None
        Of the windows of both stages; None is the model's.
    device, dtype, progress, cancelled
        As for `segmamba.sliding_window.predict`.
    notes : list of str
        Gets one sentence for each fallback.

    Raises
    ------
    SegMambaError
        See `to_model_grid` and `predict`.
    """
    if not isinstance(network, TwoStageSpineMamba) or model.fine is None:
        raise ModelError(f"The model '{model.id}' has no two stages: correct its manifest entry.")
    image, grid = to_model_grid(volume, model, roi)

    def run(stage: torch.nn.Module, image: np.ndarray, patch: Sequence[int], share: float, start: float) -> np.ndarray:
        tensor = torch.from_numpy(image)
        # Where the coarse pass ran out of the device's memory, the fine one starts on the processor.
        here = next(network.coarse.parameters()).device if start else device
        precision = dtype if here.type == device.type else getattr(torch, cpu_precision())
        assert model.fine is not None
        part = overlap if overlap is not None else (model.fine.overlap if start else model.overlap)
        fill = outside_values(model.preprocessing, tensor)
        answer = predict(
            stage,
            tensor,
            patch,
            part,
            here,
            precision,
            (),
            lambda fraction: progress(start + share * fraction),
            cancelled,
            notes,
            fill,
            softmax=False,
        )
        answer[MASK] = answer[MASK].softmax(dim=0)
        answer[OFFSET] *= OFFSET_UNIT_MM
        return answer.cpu().numpy()

    answer = run(network.coarse, image, model.patch, COARSE_SHARE, 0.0)
    # In place, and a slice at a time: of a whole body these channels are gigabytes.
    for slice_of_levels in torch.from_numpy(answer[LEVELS]).unbind(dim=1):
        slice_of_levels.copy_(slice_of_levels.log_softmax(dim=0))
    column = decode(answer[MASK], answer[OFFSET], answer[LEVELS], grid.geometry.spacing[0])
    findings: dict[str, Any] = {"numbering": describe_numbering(column)}
    if column.box is None:
        return Drawn(torch.from_numpy(np.ones_like(answer[:1])), (0,), grid, grid, findings)
    del answer
    fine_grid_of = replace(model, preprocessing=fine_preprocessing(model.preprocessing, model.fine))
    image, fine = to_model_grid(volume, fine_grid_of, _box(column, grid), context_mm=0.0)
    answer = run(network.fine, image, model.fine.patch, 1 - COARSE_SHARE, COARSE_SHARE)
    shift = np.subtract(fine.geometry.origin, grid.geometry.origin)[::-1]
    labels = decode_fine(answer[MASK], answer[OFFSET], fine.geometry.spacing[0], shift, column)
    if refined and model.fine.refine:
        shapes = load_shapes(resource_root() / SHAPES)
        steps = model.fine.refine
        labels, findings["refinement"] = refine(labels, answer[1], fine.geometry.spacing[0], shapes, steps)
    probabilities, values = spread(labels, 1 - answer[0])
    return Drawn(torch.from_numpy(probabilities), values, grid, replace(fine, roi=roi), findings)


def fine_preprocessing(preprocessing: Preprocessing, fine: FineStage) -> Preprocessing:
    """Return how the fine stage's input is made: the box around the column is known, so nothing has to be cropped."""
    return replace(preprocessing, spacing=fine.spacing, crop_above=None)


def _box(column: Column, grid: ModelGrid) -> Box:
    """Return the column's box in LPS; the coarse grid's axes are LPS."""
    assert column.box is not None
    low, high = (np.add(corner[::-1], grid.geometry.origin).tolist() for corner in column.box)
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def spread(labels: np.ndarray, bone: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return class probabilities, float16, from labels and the probability of bone: smooth surfaces, sharp numbers.

    Each voxel's bone belongs to the nearest label, so that between two voxels only bone and background are weighed
    up. What labels leave out of the bone is background, what they add is bone.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x).
    bone : ndarray of float
        Shape (z, y, x).

    Returns
    -------
    probabilities : ndarray of float16
        Shape (classes, z, y, x), the background first.
    values : tuple of int
        Label value of each class.
    """
    values = (0, *np.unique(labels[labels > 0]).tolist())
    probabilities = np.zeros((len(values), *labels.shape), np.float16)
    amount = np.where(labels > 0, np.maximum(bone, 0.51), np.minimum(bone, 0.49))
    amount[amount < FAINT] = 0
    if len(values) > 1:
        nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
        owner = labels[tuple(nearest)]
        for index, value in enumerate(values[1:], start=1):
            mask = owner == value
            probabilities[index][mask] = amount[mask]
        probabilities[0] = 1 - amount
    else:
        probabilities[0] = 1
    return probabilities, values


def describe_numbering(column: Column) -> dict[str, Any]:
    """Return how sure the numbers are, as JSON.

    ``certain`` (false: check the levels), ``reason`` (a sentence where not certain), ``probability`` of the whole
    numbering, ``runner_up`` (names, top first) and its probability, ``variants`` (sentences), ``levels`` (label value
    as text to the probability of that level).
    """
    numbering = column.numbering
    runner_up = numbering.runner_up
    return {
        "certain": bool(numbering.certain),
        "reason": numbering.reason,
        "probability": round(float(numbering.probability), 4),
        "runner_up": [level_name(int(level)) for level in runner_up if level] if runner_up is not None else None,
        "runner_up_probability": round(float(numbering.runner_up_probability), 4),
        "variants": list(numbering.variants),
        "levels": {
            str(int(level)): round(float(value), 4)
            for level, value in zip(column.levels, column.confidence, strict=True)
        },
    }
