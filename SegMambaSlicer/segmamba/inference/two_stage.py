"""Vertebrae in two stages: a coarse pass over the whole volume finds and numbers them, a fine one draws them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import functional

from segmamba.errors import ModelError
from segmamba.fast import fast_network
from segmamba.inference.context import RunContext
from segmamba.inference.device import cpu_precision
from segmamba.inference.level_anchors import LevelAnchor
from segmamba.inference.model_grid import FAST_SCALE, Box, ModelGrid, with_coarser_grid
from segmamba.inference.prediction import NetworkPass, Prediction
from segmamba.inference.preprocess import network_input, padding_values
from segmamba.inference.redraw import REDRAW, Redrawing, Seen, badly_shown, load_redrawing, note, redraw
from segmamba.inference.sliding_window import identity, predict, windows_at_a_time, with_room
from segmamba.inference.windows import SHRUNK, Windows, fitted_patch
from segmamba.io.modality import CT
from segmamba.io.volume import Volume
from segmamba.models.manifest import Model
from segmamba.models.resources import REDRAWING, SHAPES, resource_root
from segmamba.networks.spine_mamba import LEVELS, MASK, OFFSET, OFFSET_UNIT_MM, RIB
from segmamba.networks.two_stage import TwoStageSpineMamba
from segmamba.spine.anchors import Anchored, set_levels, set_levels_beyond
from segmamba.spine.decode import Column, decode
from segmamba.spine.fine import cast_votes, decode_fine, recover_truncated_ends
from segmamba.spine.fit_together import fits_on
from segmamba.spine.levels import level_name
from segmamba.spine.refine import refine
from segmamba.spine.shape_model import Fit, ShapeModel, load_shapes
from segmamba.utils.arrays import in_main_memory

Found = TypeVar("Found")

# Part of the progress that the coarse pass takes.
COARSE_SHARE = 0.6
# A voxel that is bone with at least this probability takes part in drawing the surface between two voxels.
FAINT = 0.02
# The second network is prepared beside the first one where this much of a GPU is free, in bytes.
ROOM_FOR_BOTH = 8 * 2**30
# Steps to the voxels around one: through faces, edges and corners.
RINGS = [[step for step in itertools.product((-1, 0, 1), repeat=3) if np.count_nonzero(step) == n] for n in (1, 2, 3)]


def predict_two_stage(
    network: torch.nn.Module,
    volume: Volume,
    model: Model,
    context: RunContext,
    roi: Box | None = None,
    refined: bool = False,
    anchors: Sequence[LevelAnchor] = (),
) -> Prediction:
    """Run both stages.

    Parameters
    ----------
    network : Module
        A `TwoStageSpineMamba`.
    volume : Volume
        With its modality: ribs count on CT alone.
    model : Model
        With a fine stage.
    context : RunContext
        Its ``tta`` has no effect: flipped offsets would have to be flipped back.
    roi : Box, optional
        Nothing outside it is labelled.
    refined : bool
        Refine the masks by the steps that the model names.
    anchors : sequence of LevelAnchor
        Levels that are set.

    Raises
    ------
    SegMambaError
        See `resample_to_model`, `predict` and `load_shapes`.
    """
    if not isinstance(network, TwoStageSpineMamba) or model.fine is None:
        raise ModelError(f"The model '{model.id}' has no two stages: correct its manifest entry.")
    # Before the passes, which take minutes: a file that is missing is found at once.
    root = resource_root()
    shapes = _shapes(root / SHAPES) if refined and model.refinement else None
    redrawing = _redrawing(root / REDRAWING, root / SHAPES) if shapes and REDRAW in model.refinement else None
    with _prepared_beside(network.fine, _fine_model(model), context):
        column, coarse, warnings = _coarse_pass(network.coarse, volume, model, context.part(0.0, COARSE_SHARE), roi)
    found = _set_levels(column, coarse.grid, anchors)
    if column.box is None:
        empty = torch.ones(1, *coarse.grid.geometry.size[::-1])
        numbering = describe_numbering(found, anchors)
        return Prediction(empty, (0,), coarse.grid, (coarse,), {"numbering": numbering}, _with(warnings, found))
    fine_context = _next_context(context, coarse.device).part(COARSE_SHARE, 1.0)
    found, labels, fine = _fine_pass(network.fine, volume, model, fine_context, found, coarse.grid, anchors)
    mask, grid = fine.values[MASK], fine.ran.grid
    findings: dict[str, Any] = {"numbering": describe_numbering(found, anchors)}
    check = context.check_cancelled
    if shapes is not None:
        steps = [step for step in model.refinement if step != REDRAW]

        def refined_by(vertebra: torch.Tensor) -> tuple[np.ndarray, list[dict[str, Any]], dict[int, Fit]]:
            return refine(labels, vertebra, grid.geometry.spacing[0], shapes, steps, check, fits_on(vertebra.device))

        labels, findings["refinement"], fits = _with_room(refined_by, mask[1])
    probabilities, values = _with_room(partial(label_probabilities, labels), 1 - mask[0])
    if redrawing is not None:
        seen = Seen(labels, fine.image, volume, grid.geometry, model.preprocessing.normalization, fits)
        reasons = badly_shown(seen, redrawing)
        if reasons:
            drawn = partial(redraw, redrawing, reasons, values, seen, check)
            probabilities, changes = _with_room(drawn, probabilities)
            findings["refinement"] += changes
            warnings = (*warnings, note(reasons))
    passes, warnings = (coarse, fine.ran), _with((*warnings, *fine.warnings), found)
    return Prediction(probabilities, values, replace(grid, roi=roi), passes, findings, warnings)


@lru_cache(maxsize=1)
def _shapes(path: Path) -> ShapeModel:
    """Return the shapes of vertebrae, which stay for the next volume."""
    return load_shapes(path)


@lru_cache(maxsize=1)
def _redrawing(path: Path, shapes: Path) -> Redrawing:
    return load_redrawing(path, _shapes(shapes))


@contextmanager
def _prepared_beside(network: torch.nn.Module, stage: Model, context: RunContext) -> Iterator[None]:
    """Have the kernels of a stage's network compiled, which is done once, while something else is done.

    Not where both may not fit into the GPU's memory.
    """
    place = context.workplace
    if place.type != "cuda" or torch.cuda.mem_get_info(place)[0] < ROOM_FOR_BOTH:
        yield
        return

    def prepare() -> None:
        # What goes wrong here does so again, and is handled, where the network runs.
        with suppress(Exception), torch.cuda.device(place):
            window = (len(stage.preprocessing.normalization), *stage.patch)
            fast_network(network, place, context.dtype, window, windows_at_a_time(place, stage.patch))

    thread = Thread(target=prepare, name="second network", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@dataclass(frozen=True, eq=False)
class _StageOutput:
    """What the network of a stage gets and gives: probabilities of the mask, offsets in mm, and the rest as it is."""

    image: torch.Tensor
    values: torch.Tensor
    ran: NetworkPass
    warnings: tuple[str, ...]


def _run_stage(
    network: torch.nn.Module,
    image: torch.Tensor,
    grid: ModelGrid,
    stage: Model,
    context: RunContext,
    least: float | None,
) -> _StageOutput:
    """Run a network over its grid; with ``least`` in windows that fit the volume (`fitted_patch`), but not on a GPU.

    There a window takes milliseconds, and each new size would be recorded anew.
    """
    overlap = context.overlap_of(stage)
    patch = stage.patch
    if least is not None and context.device.type == "cpu":
        patch = fitted_patch(image.shape[1:], patch, overlap, least)
    windows = Windows(patch, overlap, pad_values=padding_values(stage, image))
    output = predict(network, image, windows, context, identity)
    output.values[MASK] = output.values[MASK].softmax(dim=0)
    output.values[OFFSET] *= OFFSET_UNIT_MM
    context.check_cancelled()
    return _StageOutput(image, output.values, NetworkPass(grid, output.device, output.window), output.warnings)


def _next_context(context: RunContext, device: torch.device) -> RunContext:
    """Return the context of the next network: on the processor where memory did not suffice for the last one."""
    if device.type == context.device.type:
        return context
    return replace(context, device=device, dtype=getattr(torch, cpu_precision()))


def _coarse_pass(
    network: torch.nn.Module, volume: Volume, model: Model, context: RunContext, roi: Box | None
) -> tuple[Column, NetworkPass, tuple[str, ...]]:
    """Return the column that the coarse pass finds, and how it ran. The network's output, which is large, ends here."""
    stage = with_coarser_grid(model) if context.fast else model
    image, grid = network_input(volume, stage, roi, device=context.workplace)
    output = _run_stage(network, image, grid, stage, context, SHRUNK if context.fast else 1.0)
    if context.fast:
        # The network takes the voxels for those that it was trained on.
        output.values[OFFSET] *= FAST_SCALE
    # MR shows ribs too badly to miss one.
    rib = output.values[RIB][0].sigmoid() if volume.modality == CT else None
    spacing = output.ran.grid.geometry.spacing[0]
    parts = (output.values[MASK], output.values[OFFSET], output.values[LEVELS])
    column = _with_room(partial(_decode, spacing), *parts, *([] if rib is None else [rib]))
    context.check_cancelled()
    return column, output.ran, output.warnings


def _set_levels(column: Column, grid: ModelGrid, anchors: Sequence[LevelAnchor]) -> Anchored:
    """Return a column with the levels that are set; ``grid`` is its own."""
    if not anchors:
        return Anchored(column, ())
    return set_levels(column, [anchor.on_grid(grid) for anchor in anchors], grid.geometry.spacing[0])


def _with(warnings: tuple[str, ...], found: Anchored) -> tuple[str, ...]:
    return (*warnings, found.problem) if found.problem else warnings


def _fine_pass(
    network: torch.nn.Module,
    volume: Volume,
    model: Model,
    context: RunContext,
    found: Anchored,
    coarse: ModelGrid,
    anchors: Sequence[LevelAnchor],
) -> tuple[Anchored, np.ndarray, _StageOutput]:
    """Return the column to its ends, the levels that the fine pass draws, (z, y, x), and what its network gives."""
    stage = _fine_model(model)
    image, grid = network_input(volume, stage, _box(found.column, coarse), 0.0, context.workplace)
    output = _run_stage(network, image, grid, stage, context, 1.0 if context.fast else None)
    shift = np.subtract(grid.geometry.origin, coarse.geometry.origin)[::-1]

    def drawn(mask: torch.Tensor, offsets: torch.Tensor) -> tuple[Anchored, np.ndarray]:
        fine = (_where_it_is(mask), _where_it_is(offsets), grid.geometry.spacing[0], shift)
        cast = cast_votes(*fine[:3])
        column = recover_truncated_ends(found.column, *fine, cast)
        beyond = set_levels_beyond(found, [anchor.on_grid(coarse) for anchor in anchors], column)
        if beyond is not found:
            column = recover_truncated_ends(beyond.column, *fine, cast)
        return replace(beyond, column=column), decode_fine(*fine, column, cast)

    beyond, labels = _with_room(drawn, output.values[MASK], output.values[OFFSET])
    context.check_cancelled()
    return beyond, labels, output


def _decode(spacing_mm: float, *parts: torch.Tensor) -> Column:
    mask, offsets, levels, *rib = map(_where_it_is, parts)
    return decode(mask, offsets, levels, spacing_mm, *rib)


def _with_room(compute: Callable[..., Found], *values: torch.Tensor) -> Found:
    """Return what a function makes of tensors; in main memory where a GPU that they are on has no room for it."""
    return with_room(lambda place: compute(*(value.to(place) for value in values)), values[0].device)


def _where_it_is(values: torch.Tensor) -> np.ndarray | torch.Tensor:
    """Return what a network gives as an array where it lies in main memory, and as a tensor on a GPU."""
    return values if values.is_cuda else in_main_memory(values)


def _fine_model(model: Model) -> Model:
    """Return a model with two stages as if it were its second one; where that looks is known, so nothing is cropped."""
    assert model.fine is not None
    preprocessing = replace(model.preprocessing, spacing=model.fine.spacing, crop_threshold=None)
    return replace(model, preprocessing=preprocessing, patch=model.fine.patch, overlap=model.fine.overlap)


def _box(column: Column, grid: ModelGrid) -> Box:
    """Return the column's box in LPS; the coarse grid's axes are LPS."""
    assert column.box is not None
    low, high = (np.add(corner[::-1], grid.geometry.origin).tolist() for corner in column.box)
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def label_probabilities(labels: np.ndarray, bone: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return class probabilities, float16, from labels and the probability of bone: smooth surfaces, sharp numbers.

    Each voxel's bone belongs to the nearest label, so that between two voxels only bone and background are weighed
    up. What labels leave out of the bone is background, what they add is bone. Bone with no label beside it counts for
    nothing: no label could win there.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x).
    bone : Tensor of float
        Shape (z, y, x).

    Returns
    -------
    probabilities : Tensor of float16
        Shape (classes, z, y, x), the background first, where ``bone`` is.
    values : tuple of int
        Label value of each class.
    """
    given = torch.from_numpy(labels).to(bone.device)
    values = (0, *(value for value, count in enumerate(torch.bincount(given.flatten()).tolist()) if value and count))
    amount = torch.where(given > 0, bone.clamp(min=0.51), bone.clamp(max=0.49))
    amount[amount < FAINT] = 0
    owners = _spread(given, amount > 0)
    voxels = owners.flatten().nonzero()[:, 0]
    classes = torch.zeros(256, dtype=torch.long, device=bone.device)
    classes[list(values)] = torch.arange(len(values), device=bone.device)
    amount = amount.flatten()[voxels]
    # Most of it is never written, and takes no main memory then.
    shape = (len(values), *labels.shape)
    empty = torch.zeros(shape, dtype=torch.float16, device=bone.device) if bone.is_cuda else None
    probabilities = torch.from_numpy(np.zeros(shape, np.float16)) if empty is None else empty
    probabilities[0] = 1
    flat = probabilities.view(len(values), -1)
    flat[classes[owners.flatten()[voxels].long()], voxels] = amount.half()
    flat[0, voxels] = (1 - amount).half()
    return probabilities, values


def _spread(labels: torch.Tensor, bone: torch.Tensor) -> torch.Tensor:
    """Return labels (z, y, x) with those voxels of a mask that touch one: each gets the nearest label.

    Of several at the same distance it is the one that is there most often.
    """
    free = (bone & (labels == 0)).nonzero().T + 1
    padded = functional.pad(labels, (1,) * 6)
    spread = labels.clone()
    for ring in RINGS:
        z, y, x = free
        beside = torch.stack([padded[z + dz, y + dy, x + dx] for dz, dy, dx in ring])
        often = (beside[:, None] == beside).sum(dim=0, dtype=torch.uint8) * (beside > 0)
        nearest = beside.gather(0, often.max(dim=0, keepdim=True).indices)[0]
        spread[z - 1, y - 1, x - 1] = nearest
        free = free[:, nearest == 0]
    return spread


def describe_numbering(found: Anchored, anchors: Sequence[LevelAnchor] = ()) -> dict[str, Any]:
    """Return how sure the numbers are, as JSON.

    ``certain`` (false: check the levels), ``reason`` (a sentence where not certain), ``probability`` of the whole
    numbering, ``runner_up`` (names, top first) and its probability, ``runner_up_levels`` (label value as text to the
    level that the vertebra has there, 0 for none), ``variants`` (sentences), ``levels`` (label value as text to the
    probability of that level), and, where levels were set, ``anchors`` (see `LevelAnchor.describe`).
    """
    column, numbering = found.column, found.column.numbering
    told = [anchor.describe(owner is not None) for anchor, owner in zip(anchors, found.owners, strict=True)]
    runner_up = numbering.runner_up
    return {
        "certain": bool(numbering.certain) and not found.problem,
        "reason": found.problem or numbering.reason,
        "probability": round(float(numbering.probability), 4),
        "runner_up": [level_name(int(level)) for level in runner_up if level] if runner_up is not None else None,
        "runner_up_levels": None
        if column.runner_up is None
        else {str(int(a)): int(b) for a, b in zip(column.levels, column.runner_up, strict=True)},
        "runner_up_probability": round(float(numbering.runner_up_probability), 4),
        "variants": list(numbering.variants),
        "levels": {
            str(int(level)): round(float(value), 4)
            for level, value in zip(column.levels, column.confidence, strict=True)
        },
    } | ({"anchors": told} if told else {})
