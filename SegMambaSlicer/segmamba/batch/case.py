"""One case, from its input to its complete folder: what a worker does."""

from __future__ import annotations

import io
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segmamba.batch.batch_case import BatchCase
from segmamba.batch.case_record import CaseRecord, output_digests, preserve_user_files, up_to_date_record
from segmamba.batch.fingerprint import fingerprint_of
from segmamba.batch.layout import CASES, PAGE, PREVIEW, REPORT, THUMBNAIL, publish, working_folder
from segmamba.batch.outcome import Row, done_row, failed_row
from segmamba.batch.plan import Plan
from segmamba.errors import DeviceError, ModelError, OutputError, SegMambaError, WorkerError
from segmamba.reporting import report as reporting
from segmamba.request import Request

# Segments one request and returns its report.
RunEngine = Callable[[Request], dict[str, Any]]
# Does a case: `do_case`, or what does more than that.
DoCase = Callable[[BatchCase, Plan, int, RunEngine, str | None], tuple[Row, bool]]

# Another attempt can end differently: the process died, or memory was short. Bad input stays bad.
WORTH_ANOTHER_ATTEMPT = (WorkerError, DeviceError)
THUMBNAIL_WIDTH = 320


def do_case(case: BatchCase, plan: Plan, attempt: int, run: RunEngine, device: str | None = None) -> tuple[Row, bool]:
    """Segment a case, unless its results are up to date.

    Parameters
    ----------
    case : BatchCase
    plan : Plan
    attempt : int
        1 for the first.
    run : callable
        The engine: segments one request and returns its report.
    device : str, optional
        Instead of the plan's.

    Returns
    -------
    row : dict
        See `segmamba.batch.outcome`.
    again : bool
        Whether it failed in a way that another attempt may not.
    """
    try:
        return _do_case(case, plan, attempt, run, device), False
    except SegMambaError as error:
        return failed_row(case, plan, str(error), attempt), isinstance(error, WORTH_ANOTHER_ATTEMPT)
    except OSError as error:
        text = f"Operating system error ({error}): check the folders, permissions and free space."
        return failed_row(case, plan, text, attempt), False


def _do_case(case: BatchCase, plan: Plan, attempt: int, run: RunEngine, device: str | None) -> Row:
    started = time.perf_counter()
    files = case.files()
    target = Path(plan.folder) / CASES / case.name
    record = None if plan.request["overwrite"] else up_to_date_record(target, files, plan.settings)
    if record is not None:
        return done_row(record, plan, target, this_run=False)
    with working_folder(Path(plan.folder), case.name) as place:
        fingerprint = fingerprint_of(files)
        source, originals = _source(case, files, place)
        work = place / "results"
        work.mkdir()
        request = plan.case_request(str(source), work, device)
        request = replace(request, channels=dict(case.channels) or None)
        try:
            report = run(request)
        except SegMambaError as error:
            # The input's own places, not those of links to them, which are gone.
            text = str(error)
            for link, original in originals.items():
                text = text.replace(link, original)
            # Labels that no writer took (`segmamba.inference.file_to_file`) outlive the working folder.
            for labels in work.glob("segmentation-*.nii.gz"):
                kept = Path(plan.folder) / f"{case.name}-{labels.name}"
                shutil.move(labels, kept)
                text = text.replace(str(labels), str(kept))
            raise type(error)(text) from error
        _check_model(report, plan)
        timings = report.pop("timings_s")
        names: dict[str, Any] = {"input": case.path, "output": plan.output, "preview": PREVIEW}
        if "page" in report:
            names["page"] = PAGE
        if "isotropic" in report:
            names["isotropic"] = {**report["isotropic"], "output": Path(report["isotropic"]["output"]).name}
        if "also" in report:
            names["also"] = [Path(path).name for path in report["also"]]
        reporting.write_report(work / REPORT, report | names)
        (work / THUMBNAIL).write_bytes(thumbnail(work / PREVIEW))
        how: dict[str, Any] = {
            "seconds": round(time.perf_counter() - started, 3),
            "timings_s": timings,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "attempts": attempt,
            "host": platform.node(),
        }
        record = CaseRecord(case.name, case.path, fingerprint, plan.model, plan.settings, output_digests(work), how)
        record.write(work)
        preserve_user_files(target, work)
        publish(work, target)
    return done_row(record, plan, target, this_run=True)


def _source(case: BatchCase, files: list[str], place: Path) -> tuple[Path, dict[str, str]]:
    """Return what the engine reads, and the original of each path in it.

    That is the file, or a folder that holds just the files of the DICOM series; its name is the preview's title.
    """
    if not case.listing:
        return Path(case.path), {}
    folder = place / case.name
    folder.mkdir()
    originals = {}
    for number, file in enumerate(files):
        link = folder / f"{number:06d}.dcm"
        try:
            os.symlink(file, link)
        except OSError:  # Windows lets few users make links
            try:
                shutil.copyfile(file, link)
            except OSError as error:
                raise OutputError(f"{file} cannot be copied ({error.strerror}): check the file and space.") from error
        originals[str(link)] = file
    # Last, because it is the beginning of the others.
    return folder, originals | {str(folder): str(Path(case.path).parent)}


def _check_model(report: Mapping[str, Any], plan: Plan) -> None:
    used = report["model"]["checkpoint_sha256"]
    if used != plan.model["checkpoint_sha256"]:
        raise ModelError(
            f"{platform.node()} has another checkpoint of '{plan.model['id']}' than the run started with (SHA-256 "
            f"{used[:10]}...): have the same one on all computers, then give the command again."
        )


def thumbnail(preview: Path) -> bytes:
    """Return a preview as a small JPEG picture, `THUMBNAIL_WIDTH` pixels wide."""
    from PIL import Image

    with Image.open(preview) as picture:
        height = round(picture.height * THUMBNAIL_WIDTH / picture.width)
        small = picture.convert("RGB").resize((THUMBNAIL_WIDTH, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=75)
    return stream.getvalue()
