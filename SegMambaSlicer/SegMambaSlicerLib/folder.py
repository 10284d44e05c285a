"""A folder of volumes, case by case, in one worker. One bad case is a row with its error and does not stop the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer

from segmamba.errors import Cancelled, InputError, SegMambaError
from segmamba.job import Worker
from segmamba_mrml.volumes import roi_box
from SegMambaSlicerLib.choices import Choices
from SegMambaSlicerLib.texts import overallFraction

# Longest first, so that of ".nii.gz" nothing is left.
EXTENSIONS = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".mha", ".mhd")
OUTPUT_EXTENSION = ".seg.nrrd"


def segmentFolder(
    worker: Worker,
    inputFolder: str | Path,
    outputFolder: str | Path,
    choices: Choices,
    pattern: str = "**/*.nii.gz",
    skipExisting: bool = True,
    onProgress: Callable[[str, float], None] | None = None,
) -> list[dict[str, Any]]:
    """Segment all files of a folder that match a pattern.

    Returns
    -------
    list of dict
        A row for each case: ``case`` (its path below the folder), ``output``, ``status`` ("done", "skipped" or
        "failed"), ``error`` (a sentence, or empty), ``summary``, ``segments`` and ``seconds``.

    Raises
    ------
    InputError
        The folder does not exist, or nothing in it matches.
    """
    source, target = Path(inputFolder), Path(outputFolder)
    if not source.is_dir():
        raise InputError(f"The folder {source} does not exist: check its path.")
    files = sorted(path for path in source.glob(pattern) if path.is_file())
    if not files:
        raise InputError(f"Nothing in {source} matches '{pattern}': give another pattern, for example '**/*.nrrd'.")
    rows = []
    for index, path in enumerate(files):

        def progress(stage: str, fraction: float, index: int = index, name: str = path.name) -> None:
            if onProgress is not None:
                onProgress(f"{name}: {stage}", (index + overallFraction(stage, fraction)) / len(files))

        case = path.relative_to(source)
        rows.append(_segmentCase(worker, path, case, target / outputName(case), choices, skipExisting, progress))
    return rows


def outputName(case: Path) -> Path:
    """Return where a case's segmentation goes, below the output folder."""
    name = case.name
    extension = next((known for known in EXTENSIONS if name.lower().endswith(known)), "")
    return case.with_name(name[: len(name) - len(extension)] + OUTPUT_EXTENSION)


def _segmentCase(
    worker: Worker,
    path: Path,
    case: Path,
    output: Path,
    choices: Choices,
    skipExisting: bool,
    onProgress: Callable[[str, float], None],
) -> dict[str, Any]:
    row = {"case": case.as_posix(), "output": str(output), "status": "skipped", "error": "", "summary": ""}
    row |= {"segments": [], "seconds": 0.0}
    if skipExisting and output.exists():
        return row
    started = time.perf_counter()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        request = choices.request(str(path), str(output))
        if choices.roi is not None:
            options = {**request.to_dict()["options"], "roi": roi_box(choices.roi)}
            request = type(request).from_dict({**request.to_dict(), "options": options})
        report = worker.run(request, onProgress, _keepSlicerAlive)
        row |= {"status": "done", "summary": report["summary"], "segments": report["segments"]}
    except Cancelled:
        raise
    except (SegMambaError, OSError) as error:
        row |= {"status": "failed", "error": str(error)}
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def _keepSlicerAlive() -> bool:
    """Process Slicer's events; the worker's `run` asks this many times a second whether to stop."""
    slicer.app.processEvents()
    return False
