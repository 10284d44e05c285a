"""Vertebrae in two stages: a coarse pass over the whole volume finds and numbers them, a fine one draws them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import special

from segmamba.errors import Cancelled, ModelError
from segmamba.inference.device import cpu_precision
from segmamba.inference.model_grid import Box, ModelGrid
from segmamba.inference.preprocess import outside_values, to_model_grid
from segmamba.inference.sliding_window import predict
from segmamba.io.modality import CT, taken_for
from segmamba.io.volume import Volume
from segmamba.models.manifest import Model
from segmamba.models.resources import SHAPES, resource_root
from segmamba.networks.spine_mamba import LEVELS, MASK, OFFSET, OFFSET_UNIT_MM, RIB
from segmamba.networks.two_stage import TwoStageSpineMamba
from segmamba.spine.decode import Column, decode, decode_fine, with_cut_ends
from segmamba.spine.levels import level_name
from segmamba.spine.nearest import nearest_labels
from segmamba.spine.refine import refine
from segmamba.spine.shape_model import load_shapes
from segmamba.utils.arrays import bounding_box

# Part of the progress that the coarse pass takes.
COARSE_SHARE = 0.6
# A voxel that is bone with at least this probability takes part in drawing the surface between two voxels.
FAINT = 0.02


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a network found, in one stage or in two.

    Attributes
    ----------
    probabilities : Tensor
        Shape (classes, z, y, x) on ``grid``, the background first; they sum to one.
    values : tuple of int
        Label value of each class.
    coarse, grid : ModelGrid
        Of the first pass, and of ``probabilities``: the fine one, or the same where there was no second pass.
    findings : dict
        For the report, of two stages alone: "numbering", see `describe_numbering`, and "refinement", see
        `segmamba.spine.refine.refine`.
    devices : tuple of device
        What the network of each pass ran on.
    """

    probabilities: torch.Tensor
    values: tuple[int, ...]
    coarse: ModelGrid
    grid: ModelGrid
    findings: dict[str, Any]
    devices: tuple[torch.device, ...]


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
    device, dtype, progress
        As for `segmamba.inference.sliding_window.predict`.
    cancelled : callable
        Asked between windows, between vertebrae, and between steps.
    notes : list of str
        Gets one sentence for each fallback.

    Raises
    ------
    SegMambaError
        See `to_model_grid`, `predict` and `load_shapes`.
    """
    if not isinstance(network, TwoStageSpineMamba) or model.fine is None:
        raise ModelError(f"The model '{model.id}' has no two stages: correct its manifest entry.")
    # Before the passes, which take minutes: a file that is missing is found at once.
    shapes = load_shapes(resource_root() / SHAPES) if refined and model.refinement else None
    run = _Run(device, dtype, overlap, progress, cancelled, notes, [])
    column, coarse = _find(run, network.coarse, volume, model, roi)
    if column.box is None:
        empty = torch.ones(1, *coarse.geometry.size[::-1])
        return Drawn(empty, (0,), coarse, coarse, {"numbering": describe_numbering(column)}, tuple(run.devices))
    column, labels, mask, grid = _outline(run.next_pass(), network.fine, volume, model, column, coarse)
    findings: dict[str, Any] = {"numbering": describe_numbering(column)}
    if shapes is not None:
        spacing = grid.geometry.spacing[0]
        labels, findings["refinement"] = refine(labels, mask[1], spacing, shapes, model.refinement, run.check)
    probabilities, values = spread(labels, 1 - mask[0])
    return Drawn(torch.from_numpy(probabilities), values, coarse, replace(grid, roi=roi), findings, tuple(run.devices))


@dataclass(frozen=True, eq=False)
class _Run:
    """What both passes are run with; see `draw`. ``devices`` gets what the network of each ran on."""

    device: torch.device
    dtype: torch.dtype
    overlap: float | None
    progress: Callable[[float], None]
    cancelled: Callable[[], bool]
    notes: list[str]
    devices: list[torch.device]

    def check(self) -> None:
        """Stop here where the run was cancelled."""
        if self.cancelled():
            raise Cancelled()

    def next_pass(self) -> _Run:
        """Return how the next network is run: on the processor where the device's memory did not suffice for one."""
        here = self.devices[-1]
        if here.type == self.device.type:
            return self
        return replace(self, device=here, dtype=getattr(torch, cpu_precision()))

    def answer(
        self, network: torch.nn.Module, image: np.ndarray, stage: Model, part: tuple[float, float]
    ) -> np.ndarray:
        """Return a network's answer: probabilities of the mask, offsets in mm, and the rest as it is.

        ``part`` is where its progress begins and ends.
        """
        tensor = torch.from_numpy(image)
        begin, end = part
        answer = predict(
            network,
            tensor,
            stage.patch,
            stage.overlap if self.overlap is None else self.overlap,
            self.device,
            self.dtype,
            (),
            lambda fraction: self.progress(begin + (end - begin) * fraction),
            self.cancelled,
            self.notes,
            outside_values(stage.preprocessing, tensor),
            softmax=False,
            devices=self.devices,
        )
        answer[MASK] = answer[MASK].softmax(dim=0)
        answer[OFFSET] *= OFFSET_UNIT_MM
        self.check()
        return answer.cpu().numpy()


def _find(
    run: _Run, network: torch.nn.Module, volume: Volume, model: Model, roi: Box | None
) -> tuple[Column, ModelGrid]:
    """Return the column that the coarse pass finds, and that pass's grid. Its answer, which is large, ends here."""
    image, grid = to_model_grid(volume, model, roi)
    answer = run.answer(network, image, model, (0.0, COARSE_SHARE))
    # MR shows ribs too badly to miss one.
    rib = special.expit(answer[RIB][0]) if taken_for(volume) == CT else None
    column = decode(answer[MASK], answer[OFFSET], answer[LEVELS], grid.geometry.spacing[0], rib)
    run.check()
    return column, grid


def _outline(
    run: _Run, network: torch.nn.Module, volume: Volume, model: Model, column: Column, coarse: ModelGrid
) -> tuple[Column, np.ndarray, np.ndarray, ModelGrid]:
    """Return the column to its ends, the levels that the fine pass draws, its probabilities and its grid."""
    stage = _fine_model(model)
    image, grid = to_model_grid(volume, stage, _box(column, coarse), context_mm=0.0)
    answer = run.answer(network, image, stage, (COARSE_SHARE, 1.0))
    shift = np.subtract(grid.geometry.origin, coarse.geometry.origin)[::-1]
    fine = (answer[MASK], answer[OFFSET], grid.geometry.spacing[0], shift)
    column = with_cut_ends(column, *fine)
    labels = decode_fine(*fine, column)
    run.check()
    return column, labels, answer[MASK], grid


def _fine_model(model: Model) -> Model:
    """Return a model with two stages as if it were its second one; where that looks is known, so nothing is cropped."""
    assert model.fine is not None
    preprocessing = replace(model.preprocessing, spacing=model.fine.spacing, crop_above=None)
    return replace(model, preprocessing=preprocessing, patch=model.fine.patch, overlap=model.fine.overlap)


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
    probabilities[0] = 1
    box = bounding_box(amount > 0) if len(values) > 1 else None
    if box is not None:
        amount, labels, inner = amount[box], labels[box], probabilities[(slice(None), *box)]
        owners = labels.copy()
        free = np.nonzero((amount > 0) & (labels == 0))
        owners[free] = nearest_labels(labels, np.stack(free, axis=1))[0]
        bone_voxels = np.nonzero(amount)
        inner[(np.searchsorted(values, owners[bone_voxels]), *bone_voxels)] = amount[bone_voxels]
        inner[0] = 1 - amount
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
