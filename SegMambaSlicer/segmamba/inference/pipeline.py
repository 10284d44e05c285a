"""From a volume to labels on its own grid: the one way through the engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmamba.errors import Cancelled
from segmamba.fast import release_memory
from segmamba.inference import two_stage
from segmamba.inference.context import RunContext
from segmamba.inference.engine import Engine, prepare
from segmamba.inference.final_answer import FinalAnswer
from segmamba.inference.hysteresis import suppress_below_margin
from segmamba.inference.isotropic import IsotropicLabels, isotropic_labels, on_grid
from segmamba.inference.level_anchors import LevelAnchor, level_anchors
from segmamba.inference.model_grid import Box, ModelGrid
from segmamba.inference.postprocessing import postprocess
from segmamba.inference.prediction import NetworkPass, Prediction
from segmamba.inference.preprocess import network_input, padding_values
from segmamba.inference.resample_back import resample_to_input
from segmamba.inference.run_report import describe, describe_rejected, describe_run, rejected_note
from segmamba.inference.sliding_window import Activation, identity, predict, region_probabilities, softmax
from segmamba.inference.windows import Windows
from segmamba.io.labelmap import write_labelmap
from segmamba.io.modality import CT, modality_note, modality_warning, model_for_modality, resolve_modality
from segmamba.io.stored_grid import labels_as_stored
from segmamba.io.volume import Geometry, Volume
from segmamba.labels import Label
from segmamba.measurements.bone_density import calibrated, calibration_note
from segmamba.measurements.vertebrae import masks_of, measure_spine
from segmamba.models.manifest import LogitMarginThreshold, Model, Postprocessing, chosen_labels
from segmamba.reporting import report as reporting
from segmamba.reporting.look_first import look_first
from segmamba.request import Options
from segmamba.spine.orientation import orientation_doubt
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.utils.arrays import LabelBox, bounding_box, label_boxes
from segmamba.utils.processes import helper_processes

Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Result:
    """What a run found.

    Attributes
    ----------
    labels : ndarray of uint8
        Shape (z, y, x), on the voxels of the file or the image itself; the values are the manifest's.
    report : dict
        See `segmamba.reporting.report`.
    model : Model
        With the normalization parameters that were used.
    geometry : Geometry
        The grid of ``labels``: sheared where the file is.
    grid_labels : ndarray of uint8
        On the volume's grid: the same as ``labels``, but of a volume that was resampled when it was read.
    isotropic : IsotropicLabels or None
        The same structures on an isotropic grid, where ``output_spacing`` asks for it.
    answer : FinalAnswer or None
        The probabilities behind the labels, of `segment_with_answer`.
    """

    labels: np.ndarray
    report: dict[str, Any]
    model: Model
    geometry: Geometry
    grid_labels: np.ndarray
    isotropic: IsotropicLabels | None = None
    answer: FinalAnswer | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the labels to a file of `segmamba.io.labelmap.write_labelmap`; one of that name is replaced.

        Raises
        ------
        OutputError
            The extension is unknown or the file cannot be written.
        """
        write_labelmap(path, self.labels, self.geometry, self.model.labels)


def segment(
    volume: Volume,
    model: Model,
    options: Options | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    checkpoint: Path | None = None,
    root: Path | None = None,
) -> Result:
    """Segment a volume.

    Parameters
    ----------
    volume : Volume
    model : Model
        From the manifest.
    options : Options, optional
    progress : callable, optional
        Called with a stage ("load", "preprocess", "predict", "postprocess") and the fraction of it that is done.
    cancelled : callable, optional
        Asked between stages, windows and vertebrae.
    checkpoint : Path, optional
        Weights to use instead of the model's own, which are compared with the manifest's hash.
    root : Path, optional
        Folder of the manifest that the model is from; by default that of the software.

    Raises
    ------
    InputError, ModelError, DeviceError, Cancelled
    """
    return _segment(volume, model, options, progress, cancelled, checkpoint, root, keep=False)


def segment_with_answer(
    volume: Volume,
    model: Model,
    options: Options | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    checkpoint: Path | None = None,
    root: Path | None = None,
) -> Result:
    """Do what `segment` does, and keep the probabilities, which are the most memory of a run."""
    return _segment(volume, model, options, progress, cancelled, checkpoint, root, keep=True)


def _segment(
    volume: Volume,
    model: Model,
    options: Options | None,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
    checkpoint: Path | None,
    root: Path | None,
    keep: bool,
) -> Result:
    options = options or Options()
    stages = _Stages(progress or (lambda stage, fraction: None), cancelled or (lambda: False))
    wanted = chosen_labels(model, options.structures)
    volume = resolve_modality(volume, options.modality)
    anchors = level_anchors(options, volume.geometry, model)
    torch.manual_seed(options.seed)
    torch.backends.cudnn.deterministic = True
    with stages.stage("load"):
        engine = prepare(model, options, checkpoint, root)
        if engine.again and engine.device.kind == "cuda":
            # A single volume is measured before they are ready; beside networks on a processor they save nothing.
            helper_processes.begin(ahead=model.task == VERTEBRAE_TASK)
        model = model_for_modality(volume, engine.model)
        doubts = tuple(filter(None, [modality_warning(volume, engine.model)]))
    prediction = _predict(engine, volume, model, options, stages, anchors)
    passes, findings = prediction.passes, prediction.findings
    warnings = (*volume.notes, *engine.warnings, *doubts, *prediction.warnings)
    notes = _notes(volume, engine.model, options, findings)
    with stages.stage("postprocess"):
        # A GPU interpolates what lies in main memory too, block by block.
        where = engine.device.name if engine.device.kind == "cuda" else None
        labels, confidence = resample_to_input(
            prediction.probabilities,
            prediction.grid,
            prediction.label_values,
            where,
            model.resamples_logits,
            model.has_regions,
        )
        fine = None
        if options.output_spacing is not None:
            fine = isotropic_labels(prediction, model, options.output_spacing, where)
        answer = FinalAnswer(prediction, model, where) if keep else None
        del prediction  # its probabilities are the most memory of a run
        stages.progress("postprocess", 0.5)
        labels = _postprocess_and_filter(labels, volume, model, options, wanted)
        boxes = label_boxes(labels)
        if fine is not None:
            fine = _finished(fine, labels, volume, model, options)
        with ThreadPoolExecutor(1) as beside:
            sizes = beside.submit(reporting.measure_segments, labels, confidence, volume.geometry, wanted, boxes)
            if model.task == VERTEBRAE_TASK:
                measured, doubt = _measured(labels, volume, wanted, boxes)
                findings = {**findings, **calibrated(measured, options.density_calibration)}
                if doubt:
                    findings, warnings = _doubted(findings), (*warnings, doubt)
            segments = sizes.result()
    if engine.device.kind == "cuda":
        release_memory()
    said = {"warnings": list(dict.fromkeys(warnings)), "notes": [note for note in notes if note not in warnings]}
    run = describe_run(engine, model, options, passes) | said
    report = describe(engine, volume, model, run, stages.timings) | {"segments": segments} | findings
    if fine is not None:
        report["isotropic"] = reporting.describe_grid(fine.geometry)
    own, geometry = _on_own_voxels(labels, volume)
    report["summary"] = reporting.summary(report)
    if model.task == VERTEBRAE_TASK:
        report["look_first"] = look_first(report)
    return Result(own, report, model, geometry, labels, fine, answer)


def _notes(volume: Volume, model: Model, options: Options, findings: Mapping[str, Any]) -> list[str]:
    """Return what a user should know of a run that is no reason to doubt it."""
    about = (
        modality_note(volume, model),
        calibration_note(volume, options.density_calibration),
        rejected_note(findings.get("rejected"), model),
    )
    return [note for note in about if note]


def _measured(
    labels: np.ndarray, volume: Volume, wanted: tuple[Label, ...], boxes: Mapping[int, LabelBox]
) -> tuple[dict[str, Any], str]:
    """Return the measurements of a spine, and what speaks against its orientation."""

    def spine() -> dict[str, Any]:
        return measure_spine(
            masks_of(labels, volume.geometry, wanted, boxes), volume, {each.value: each.name for each in wanted}
        )

    def orientation() -> str:
        ct = volume.array if volume.modality == CT else None
        return orientation_doubt(labels, volume.geometry.affine, ct, boxes)

    with ThreadPoolExecutor(1) as beside:
        doubt = beside.submit(orientation)
        return spine(), doubt.result()


def _doubted(findings: Mapping[str, Any]) -> dict[str, Any]:
    """Return findings whose levels are not certain, as the patient lies otherwise than the header says."""
    numbering = findings.get("numbering")
    if numbering is None:
        return dict(findings)
    reason = numbering["reason"] or "The image's orientation seems to be wrong: check that first."
    return {**findings, "numbering": {**numbering, "certain": False, "reason": reason}}


def _on_own_voxels(labels: np.ndarray, volume: Volume) -> tuple[np.ndarray, Geometry]:
    """Return labels on the grid of a volume's source, where a geometry can describe that; else on the volume's."""
    geometry = volume.stored.geometry if volume.stored is not None else None
    if volume.stored is None or geometry is None:
        return labels, volume.geometry
    return labels_as_stored(labels, volume.geometry, volume.stored), geometry


class _Stages:
    """The stages of a run: their progress, their times, and whether the run is cancelled between them."""

    def __init__(self, progress: Progress, cancelled: Callable[[], bool]) -> None:
        self.progress = progress
        self.cancelled = cancelled
        self.timings: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.cancelled():
            raise Cancelled()
        self.progress(name, 0.0)
        start = time.perf_counter()
        yield
        self.timings[name] = round(time.perf_counter() - start, 3)
        self.progress(name, 1.0)


def _predict(
    engine: Engine,
    volume: Volume,
    model: Model,
    options: Options,
    stages: _Stages,
    anchors: tuple[LevelAnchor, ...],
) -> Prediction:
    """Return what the network finds, in one stage or in two."""
    context = RunContext(
        torch.device(engine.device.name),
        engine.device.dtype,
        options.overlap,
        options.tta,
        lambda fraction: stages.progress("predict", fraction),
        stages.cancelled,
        options.fast,
    )
    roi = Box(*options.roi) if options.roi else None
    if model.fine is not None:
        with stages.stage("predict"):
            return two_stage.predict_two_stage(engine.network, volume, model, context, roi, options.refine, anchors)
    with stages.stage("preprocess"):
        image, grid = network_input(volume, model, roi, device=context.workplace)
    with stages.stage("predict"):
        threshold = model.margin_threshold if options.postprocess else None
        return _predict_single_stage(engine.network, image, grid, model, threshold, context)


def _predict_single_stage(
    network: torch.nn.Module,
    image: torch.Tensor,
    grid: ModelGrid,
    model: Model,
    threshold: LogitMarginThreshold | None,
    context: RunContext,
) -> Prediction:
    flip_axes = model.flip_axes if context.tta else ()
    pad_values = padding_values(model, image)
    windows = Windows(model.patch, context.overlap_of(model), flip_axes, pad_values)
    output = predict(network, image, windows, context, _activation(model))
    findings = {}
    if threshold is not None:
        sizes = suppress_below_margin(output.values, model.channel_values.index(threshold.label), threshold.high)
        findings["rejected"] = describe_rejected(sizes * grid.geometry.voxel_volume / 1000, threshold.label)
    passes = (NetworkPass(grid, output.device, output.window),)
    values = (0, *model.channel_values) if model.has_regions else model.channel_values
    return Prediction(output.values, values, grid, passes, findings, output.warnings)


def _activation(model: Model) -> Activation:
    """Return what makes of a network's logits what is resampled to the volume."""
    if model.has_regions:
        return region_probabilities
    return identity if model.resamples_logits else softmax


def _postprocess_and_filter(
    labels: np.ndarray, volume: Volume, model: Model, options: Options, wanted: tuple[Label, ...]
) -> np.ndarray:
    """Apply the model's post-processing, then drop the structures that were not asked for."""
    if options.postprocess:
        labels = postprocess(labels, volume, model.postprocessing)
    table = np.zeros(256, dtype=np.uint8)
    values = [label.value for label in wanted]
    table[values] = values
    kept = np.zeros_like(labels)
    box = bounding_box(labels)
    if box is not None:
        kept[box] = table[labels[box]]
    return kept


def _finished(
    fine: IsotropicLabels, labels: np.ndarray, volume: Volume, model: Model, options: Options
) -> IsotropicLabels:
    """Return isotropic labels after the same post-processing; they have no structure that ``labels`` do not have."""
    present = set(np.unique(labels).tolist())
    wanted = tuple(label for label in model.labels if label.value in present)
    needed = options.postprocess and model.postprocessing is not Postprocessing.NONE
    there = on_grid(volume, fine.geometry) if needed else volume
    return replace(fine, labels=_postprocess_and_filter(fine.labels, there, model, options, wanted))
