"""From file to file: read, segment, write the segmentation, its report and its preview."""

from __future__ import annotations

import contextlib
import importlib
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmamba.errors import (
    Cancelled,
    DeviceError,
    DeviceLost,
    InputError,
    InstallationError,
    OutputError,
    SegMambaError,
    package_problem,
)
from segmamba.inference.channels import check_files, in_order, joined
from segmamba.inference.outputs import also_paths, check_outputs, isotropic_path
from segmamba.io import dicom_choice
from segmamba.io.dicom_results import kind_of, write_dicom
from segmamba.io.labelmap import write_labelmap
from segmamba.io.modality import check_modality, resolve_modality
from segmamba.io.read import read_volume
from segmamba.io.stored_grid import labels_as_stored
from segmamba.measurements.vertebrae import write_table
from segmamba.models import store
from segmamba.models.library import load_models
from segmamba.models.manifest import Model, chosen_labels
from segmamba.reporting import preview as previewing
from segmamba.reporting import report as reporting
from segmamba.reporting.page import Case, check_page, page, write_page
from segmamba.request import Request
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.utils.processes import helper_processes

if TYPE_CHECKING:
    from segmamba.inference.final_answer import FinalAnswer
    from segmamba.inference.pipeline import Result
    from segmamba.io.volume import Volume

# What needs PyTorch.
PIPELINE = "segmamba.inference.pipeline"
# The first two are PyTorch's, the third is ITK's.
SIGNS_OF_NO_MEMORY = ("not enough memory", "out of memory", "Failed to allocate memory")
# How the errors of a GPU, its libraries or its driver begin; running out of memory is recognised before.
SIGNS_OF_A_LOST_GPU = (
    "CUDA error",
    "CUDA driver error",
    "cuDNN error",
    "CUBLAS_STATUS",
    "HIP error",
    "NVML",
    "MPS backend",
)


def segment_file(
    request: Request,
    progress: Callable[[str, float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Segment a file and write what was asked for; the one call behind the command line, the worker and the panel.

    Parameters
    ----------
    request : Request
    progress : callable, optional
        Called with a stage ("read", "load", "preprocess", "predict", "postprocess", "write") and the fraction of it
        that is done.
    cancelled : callable, optional
        Asked between stages and between windows, never once writing has begun.

    Returns
    -------
    dict
        The report. Where no structure was found the segmentation is written all the same, empty, and ``summary``
        says so.

    Raises
    ------
    SegMambaError
        Of the kind that fits; then no file was written, or at most whole ones.
    """
    try:
        return _segment_file(request, progress or (lambda stage, fraction: None), cancelled or (lambda: False))
    except SegMambaError:
        raise
    except Exception as error:
        raise _typed(error) from error


def requested_model(request: Request) -> Model:
    """Return the model that a request names, or its task's default.

    Raises
    ------
    ModelError
        There is no such model or task, or the request names neither.
    """
    manifest = load_models(Path(request.manifest) if request.manifest else None)
    return manifest.choose(request.task, request.model)


def _segment_file(
    request: Request,
    progress: Callable[[str, float], None],
    cancelled: Callable[[], bool],
) -> dict[str, Any]:
    model, files = _checked(request)
    root = Path(request.manifest).parent if request.manifest else None
    # A worker with other jobs may wait in here.
    progress("read", 0.0)
    started = time.perf_counter()
    with _importing_beside():
        volume = _read(files, request, model)
    read_seconds = time.perf_counter() - started
    progress("read", 1.0)

    from segmamba.inference import pipeline

    checkpoint = Path(request.checkpoint) if request.checkpoint else None
    run = pipeline.segment_with_answer if request.probabilities or request.uncertainty else pipeline.segment
    result = run(volume, model, request.options, progress, cancelled, checkpoint, root)
    # From here on the job is not cancelled: whole files are written.
    if cancelled():
        raise Cancelled()
    progress("write", 0.0)
    writing = time.perf_counter()
    picture = None
    if request.preview:
        certain = not reporting.numbering_doubt(result.report)
        name = Path(request.input).name
        composed = previewing.compose(volume, result.grid_labels, result.model, name, certain=certain)
        picture = helper_processes.call(previewing.draw, composed)
    noted = _write_labels(request, result, volume)
    if result.isotropic is not None:
        fine = result.isotropic
        write_labelmap(isotropic_path(request.output), fine.labels, fine.geometry, result.model.labels)
    if request.preview and picture is not None:
        previewing.write_png(request.preview, picture)
    if request.measurements:
        write_table(request.measurements, result.report["measurements"])
    if result.answer is not None:
        _write_answer(request, result.answer)
    now = time.perf_counter()
    timings = {"read": round(read_seconds, 3), **result.report["timings_s"], "write": round(now - writing, 3)}
    report = {
        **_with_files(result, request, dict(zip((each.name for each in model.input_channels), files, strict=False))),
        "run": {**result.report["run"], "warnings": [*result.report["run"]["warnings"], *noted]},
        "timings_s": {**timings, "total": round(now - started, 3)},
    }
    if request.page:
        report = {**report, "page": request.page, "output_sha256": store.sha256(Path(request.output))}
        write_page(request.page, page(Case(report, volume, result.grid_labels, result.model)))
    if request.report:
        reporting.write_report(request.report, report)
    progress("write", 1.0)
    return report


@contextlib.contextmanager
def _importing_beside() -> Iterator[None]:
    """Import PyTorch, which takes a new process as long as reading a CT: that unpacks outside Python's lock.

    What goes wrong here does so again where it is imported next. That has to wait for this thread: while an import
    fails in another one, it ends in an error that does not name the missing package.
    """

    def begin() -> None:
        with contextlib.suppress(Exception):
            importlib.import_module(PIPELINE)

    if PIPELINE in sys.modules:
        yield
        return
    thread = threading.Thread(target=begin, name="imports")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _checked(request: Request) -> tuple[Model, tuple[str, ...]]:
    """Return the model and the files of its channels, after what can be told before the long work."""
    model = requested_model(request)
    chosen_labels(model, request.options.structures)
    asked = request.measurements or request.page or request.options.density_calibration
    if asked and model.task != VERTEBRAE_TASK:
        raise OutputError(f"The task '{model.task}' has no measurements: leave them out, or segment vertebrae.")
    if request.page:
        check_page()
    files = in_order(model, request.input, request.channels or {})
    check_files(files, model)
    check_outputs(request)
    return model, files


def _write_answer(request: Request, answer: FinalAnswer) -> None:
    from segmamba.inference import final_answer

    if request.probabilities:
        final_answer.write_probabilities(request.probabilities, answer)
    if request.uncertainty:
        final_answer.write_uncertainty(request.uncertainty, answer)


def _read(files: Sequence[str], request: Request, model: Model) -> Volume:
    """Read what a model takes, and check it: a volume, or several on the grid of the input."""
    modality = request.options.modality
    if not model.input_channels:
        volume = resolve_modality(read_volume(request.input), modality)
        check_modality(volume, model, modality)
        return volume
    volume = joined([read_volume(file) for file in files], files.index(request.input), model, modality)
    return resolve_modality(volume, modality)


def _with_files(result: Result, request: Request, channels: dict[str, str]) -> dict[str, Any]:
    """Return a run's report with the files that were read and written; ``channels`` names those of each volume."""
    files: dict[str, Any] = {"input": request.input, "output": request.output, "preview": request.preview}
    if channels:
        files["channels"] = channels
    if request.also:
        files["also"] = [str(path) for path in also_paths(request)]
    if result.isotropic is not None:
        files["isotropic"] = {**result.report["isotropic"], "output": str(isotropic_path(request.output))}
    if request.probabilities and result.answer is not None:
        files["probabilities"] = {"output": request.probabilities, "channels": list(result.answer.names)}
    if request.uncertainty:
        files["uncertainty"] = {"output": request.uncertainty, "unit": "0.01 bit"}
    return {**result.report, **files}


def _write_labels(request: Request, result: Result, volume: Volume) -> tuple[str, ...]:
    """Write the segmentation that was asked for, and return what to tell the user of it.

    Raises
    ------
    OutputError
        It cannot be written. So that the run was not in vain, the labels are then in another file, which is named.
    """
    try:
        paths = [path for path in (Path(request.output), *also_paths(request)) if kind_of(path) is not None]
        if kind_of(request.output) is None:
            write_labelmap(request.output, result.labels, result.geometry, result.model.labels)
        if not paths:
            return ()
        labels = result.grid_labels
        if volume.stored is not None:
            labels = labels_as_stored(labels, volume.geometry, volume.stored)
        files = dicom_choice.find_files(Path(request.input))
        rows = result.report.get("measurements") or result.report["segments"]
        notes = [write_dicom(path, labels, files, result.model.labels, result.model, rows) for path in paths]
        return tuple(dict.fromkeys(note for each in notes for note in each))
    except Exception as error:
        kept = _kept_elsewhere(request.output, result)
        if kept is None:
            raise
        text = " ".join(str(error).split())
        reason = text if isinstance(error, SegMambaError) else f"{request.output} cannot be written ({text})."
        raise OutputError(f"{reason} The labels were kept in {kept}.") from error


def _kept_elsewhere(output: str, result: Result) -> Path | None:
    """Write labels beside an output that cannot be written, or else into the folder for temporary files.

    Returns
    -------
    Path or None
        The file: of a new name, so that none is replaced. None where that failed, too.
    """
    name = Path(output).name.split(".")[0] or "labels"
    for folder in (Path(output).absolute().parent, Path(tempfile.gettempdir())):
        path = folder / f"{name}-{secrets.token_hex(4)}.nii.gz"
        with contextlib.suppress(Exception):
            result.save(path)
            return path
    return None


def _typed(error: Exception) -> SegMambaError:
    """Return what went wrong as one of this software's errors."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError):
        return InstallationError(package_problem(error))
    if isinstance(error, MemoryError) or any(sign in text for sign in SIGNS_OF_NO_MEMORY):
        return DeviceError("There is not enough memory: close other programs, or give a region of interest (--roi).")
    if any(sign in text for sign in SIGNS_OF_A_LOST_GPU):
        return DeviceLost(
            f"The GPU failed ({text[:200]}): try again; if it happens again, choose the device cpu or update the "
            "driver."
        )
    if isinstance(error, OSError) and error.filename:
        # What cannot be opened or written is found elsewhere: this one went away meanwhile.
        reason = f"{error.filename} cannot be used ({error.strerror})"
        return InputError(f"{reason}: check that it is still there, and its permissions.")
    kind = type(error).__name__
    return SegMambaError(
        f"The job ended in an unexpected error ({kind}: {text}): repeat it with SEGMAMBA_DEBUG=1 and report the log."
    )
