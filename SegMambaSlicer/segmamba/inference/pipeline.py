"""From a volume to labels on its own grid: the one way through the engine."""

from __future__ import annotations

import functools
import gc
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmamba import scan
from segmamba.errors import Cancelled, DeviceError
from segmamba.fast import release_memory
from segmamba.inference import two_stage
from segmamba.inference.context import RunContext
from segmamba.inference.device import Device, choose_device
from segmamba.inference.final_answer import FinalAnswer
from segmamba.inference.hysteresis import suppress_below_margin
from segmamba.inference.isotropic import IsotropicLabels, isotropic_labels, on_grid
from segmamba.inference.level_anchors import LevelAnchor, level_anchors
from segmamba.inference.model_grid import Box, ModelGrid
from segmamba.inference.postprocessing import postprocess
from segmamba.inference.prediction import NetworkPass, Prediction
from segmamba.inference.preprocess import network_input, padding_values
from segmamba.inference.resample_back import resample_to_input
from segmamba.inference.sliding_window import Activation, identity, predict, region_probabilities, softmax
from segmamba.inference.windows import Windows, window_count
from segmamba.io.labelmap import write_labelmap
from segmamba.io.modality import CT, modality_note, modality_warning, model_for_modality, resolve_modality
from segmamba.io.stored_grid import labels_as_stored
from segmamba.io.volume import Geometry, Volume
from segmamba.labels import Label
from segmamba.measurements.vertebrae import masks_of, measure_spine
from segmamba.models import store
from segmamba.models.manifest import FineStage, LogitMarginThreshold, Model, Postprocessing, chosen_labels
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights
from segmamba.reporting import DISCLAIMER
from segmamba.reporting import report as reporting
from segmamba.reporting.look_first import look_first
from segmamba.request import Options
from segmamba.spine.orientation import orientation_doubt
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.utils.arrays import bounding_box
from segmamba.utils.memory import gibibytes

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
        model = model_for_modality(volume, engine.model)
        doubts = tuple(filter(None, [modality_warning(volume, engine.model)]))
    prediction = _predict(engine, volume, model, options, stages, anchors)
    passes, findings = prediction.passes, prediction.findings
    warnings = (*volume.notes, *engine.warnings, *doubts, *prediction.warnings)
    notes = [note for note in [modality_note(volume, engine.model)] if note and note not in warnings]
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
        if fine is not None:
            fine = _finished(fine, labels, volume, model, options)
        if model.task == VERTEBRAE_TASK:
            measured, doubt = _measured(labels, volume, wanted)
            findings = {**findings, **measured}
            if doubt:
                findings, warnings = _doubted(findings), (*warnings, doubt)
    if engine.device.kind == "cuda":
        release_memory()
    segments = reporting.measure_segments(labels, confidence, volume.geometry, wanted)
    run = _describe_run(engine, model, options, passes) | {"warnings": list(dict.fromkeys(warnings)), "notes": notes}
    report = _report(engine, volume, model, run, stages.timings) | {"segments": segments} | findings
    if fine is not None:
        report["isotropic"] = reporting.describe_grid(fine.geometry)
    own, geometry = _on_own_voxels(labels, volume)
    report["summary"] = reporting.summary(report)
    if model.task == VERTEBRAE_TASK:
        report["look_first"] = look_first(report)
    return Result(own, report, model, geometry, labels, fine, answer)


def _measured(labels: np.ndarray, volume: Volume, wanted: tuple[Label, ...]) -> tuple[dict[str, Any], str]:
    """Return the measurements of a spine, and what speaks against its orientation."""

    def spine() -> dict[str, Any]:
        return measure_spine(
            masks_of(labels, volume.geometry, wanted), volume, {each.value: each.name for each in wanted}
        )

    def orientation() -> str:
        return orientation_doubt(labels, volume.geometry.affine, volume.array if volume.modality == CT else None)

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


@dataclass(frozen=True, eq=False)
class Engine:
    """A network with its weights, and its device; the model has the normalization parameters of the import, if any."""

    model: Model
    device: Device
    backend: str
    checkpoint: Path
    digest: str
    network: torch.nn.Module
    warnings: tuple[str, ...]


def prepare(model: Model, options: Options, checkpoint: Path | None, root: Path | None) -> Engine:
    """Choose a device and load a model's network; parameters and errors as for `segment`."""
    device, warnings = device_for(model, options)
    scan.set_backend(None if options.scan_backend == "auto" else options.scan_backend)
    backend = scan.chosen_backend(device.name)
    if checkpoint is None:
        found = store.installed(model, root)
        model, path, digest = store.configured(model, found), found.path, store.verify(found)
    else:
        path, digest = checkpoint, store.sha256(checkpoint)
    network = _network(model.architecture, json.dumps(dict(model.arguments), sort_keys=True), path, digest)
    return Engine(model, device, backend, path, digest, network, warnings)


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
    if threshold is not None:
        suppress_below_margin(output.values, model.channel_values.index(threshold.label), threshold.high)
    passes = (NetworkPass(grid, output.device, output.window),)
    values = (0, *model.channel_values) if model.has_regions else model.channel_values
    return Prediction(output.values, values, grid, passes, warnings=output.warnings)


def _activation(model: Model) -> Activation:
    """Return what makes of a network's logits what is resampled to the volume."""
    if model.has_regions:
        return region_probabilities
    return identity if model.resamples_logits else softmax


def device_for(model: Model, options: Options) -> tuple[Device, tuple[str, ...]]:
    """Choose the device; one chosen automatically that has too little memory for the model gives way to the CPU.

    Returns
    -------
    device : Device
    warnings : tuple of str
        A sentence where the device gave way.

    Raises
    ------
    DeviceError
        The device is not there, or one that was asked for has too little memory.
    """
    device = choose_device(options.device, options.precision)
    need = (model.entry.get("memory_gib") or 0) * 2**30
    if device.kind != "cuda" or device.free_memory >= need:
        return device, ()
    shortage = f"{device.title} has {gibibytes(device.free_memory)} free and '{model.id}' needs {gibibytes(need)}"
    if options.device != "auto":
        raise DeviceError(f"{shortage}: close other programs, or choose --device cpu.")
    # A half precision that was asked for the GPU does not hold for the processor.
    return choose_device("cpu", "auto"), (f"{shortage}: the CPU was used instead.",)


@functools.lru_cache(maxsize=1)
def _network(architecture: str, arguments: str, path: Path, digest: str) -> torch.nn.Module:
    """Return a network with its weights; the last one stays for the next volume.

    ``arguments`` is JSON, and ``digest`` the file's SHA-256: they make the call's identity.
    """
    network = build_network(architecture, **json.loads(arguments))
    load_weights(network, load_state_dict(path))
    return network.eval()


def free_gpu() -> None:
    """Give a GPU's memory back: the network that stayed for the next volume, and the graphs made of it, go."""
    if torch.cuda.is_initialized():
        _network.cache_clear()
        gc.collect()
        release_memory()


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


def _report(
    engine: Engine, volume: Volume, model: Model, run: dict[str, Any], timings: dict[str, float]
) -> dict[str, Any]:
    """Return what was used and how it ran: the report without what was found."""
    modality = {"modality": volume.modality, "modality_inferred": volume.modality_inferred}
    return {
        "report_version": reporting.REPORT_VERSION,
        "disclaimer": DISCLAIMER,
        "model": reporting.describe_model(model, engine.checkpoint, engine.digest),
        "software": reporting.describe_software(),
        "volume": reporting.describe_grid(volume.geometry) | modality,
        "run": run,
        "timings_s": timings,
    }


def _describe_run(engine: Engine, model: Model, options: Options, passes: tuple[NetworkPass, ...]) -> dict[str, Any]:
    """Return how the network ran; ``fine`` is only there where a second stage did, on a grid of its own."""
    run = {
        **_describe_device(engine, passes[0].device),
        **_describe_windows(passes[0], model, options),
        "tta_axes": list(model.flip_axes) if options.tta else [],
        "refine": list(model.refinement) if options.refine else [],
        "postprocessing": (model.postprocessing if options.postprocess else Postprocessing.NONE).value,
        "margin_threshold": asdict(model.margin_threshold) if options.postprocess and model.margin_threshold else None,
        "options": asdict(options),
    }
    if model.fine is not None and len(passes) > 1:
        fine = passes[1]
        run["fine"] = _describe_device(engine, fine.device) | _describe_windows(fine, model.fine, options)
    return run


def _describe_device(engine: Engine, ran_on: torch.device) -> dict[str, Any]:
    """Return where a network ran: where memory ran out that is not the device that was chosen."""
    kind = ran_on.type
    device, backend = engine.device, engine.backend
    if kind != device.kind:
        device, backend = choose_device(kind, "auto"), scan.chosen_backend(kind)
    return {
        "device": device.name,
        "device_title": device.title,
        "precision": device.precision,
        "scan_backend": backend,
    }


def _describe_windows(ran: NetworkPass, stage: Model | FineStage, options: Options) -> dict[str, Any]:
    """Return the windows of a stage; ``work`` is their time in windows of the model's own size."""
    overlap = stage.overlap if options.overlap is None else options.overlap
    window = ran.window or stage.patch
    count = window_count(ran.grid.geometry.size[::-1], window, overlap)
    return {
        "model_grid": reporting.describe_grid(ran.grid.geometry),
        "patch": list(window),
        "windows": count,
        "work": round(count * math.prod(window) / math.prod(stage.patch), 2),
        "overlap": overlap,
    }
