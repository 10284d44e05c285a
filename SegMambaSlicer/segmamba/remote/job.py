"""A request that a server does: the same as `segmamba.inference.file_to_file.segment_file`, from file to file."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import platform
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from segmamba.errors import ERRORS_BY_NAME, Cancelled, ModelError, OutputError, WorkerError
from segmamba.inference.channels import check_files, in_order
from segmamba.inference.file_to_file import requested_model
from segmamba.inference.outputs import also_paths, check_outputs, isotropic_path
from segmamba.io.dicom_choice import find_files
from segmamba.io.dicom_headers import is_dicom
from segmamba.io.dicom_results import DICOM_EXTENSIONS
from segmamba.io.labelmap import LABELMAP_EXTENSIONS
from segmamba.io.read import MODALITY_KEY, read_stored
from segmamba.io.volume import to_image
from segmamba.measurements.vertebrae import write_table
from segmamba.models.manifest import Model, chosen_labels
from segmamba.remote.client import Body, Client, Interrupted
from segmamba.reporting.report import write_report
from segmamba.request import Request
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.utils.hashing import file_sha256

# Stages of a job besides those of the engine.
SEND, WAIT, FETCH = "send", "queue", "fetch"
# Kinds of files that a server takes as they are; others are sent as NRRD.
TAKEN = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".json")
# Seconds for which a server may be out of reach, and between two attempts.
PATIENCE = 600.0
PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
POLL = 0.1
# A zip of the same files has the same bytes whenever it is made.
LONG_AGO = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Outgoing:
    """A file that is sent: what it is to the server, its kind there, where it lies, and what the user calls it."""

    name: str
    kind: str
    path: Path
    original: str

    def describe(self) -> dict[str, Any]:
        """Return what the server is told of it in advance."""
        return {"kind": self.kind, "size": self.path.stat().st_size, "sha256": file_sha256(self.path)}


def segment_on_server(
    request: Request,
    client: Client,
    progress: Callable[[str, float], None],
    cancelled: Callable[[], bool],
    patience: float = PATIENCE,
) -> dict[str, Any]:
    """Have a server segment a file, write what was asked for, and return the report.

    The job has a number that follows from what is sent and asked for. If the connection breaks, it is asked for again,
    and found where it is: half sent, running, done. The server is told to delete it when the result has come, and when
    nobody wants it any more.

    Parameters
    ----------
    request : Request
    client : Client
    progress : callable
        Called with a stage and the fraction of it that is done: besides those of the engine "send", "queue", "fetch".
    cancelled : callable
    patience : float
        Seconds for which the server may be out of reach.

    Raises
    ------
    SegMambaError
        As for `segment_file`; WorkerError if the server cannot be reached.
    """
    model = _checked(request)
    progress(SEND, 0.0)
    with _outgoing(request) as files:
        description = _described(request, model, files)
        job = _identifier(description)
        with _deleted_if_unwanted(client, job, cancelled):
            state = _Patient(client, cancelled, patience).done(job, description, files, progress)
            if state["state"] != "done":
                raise _error_of(state, files)
            report = _write(request, client, job, state, files)
    progress(FETCH, 1.0)
    return report


def _checked(request: Request) -> Model:
    """Return the model of a request, after what can be told before anything is sent."""
    if request.checkpoint is not None:
        raise ModelError("A server runs its own models: leave out the checkpoint, or segment on this computer.")
    if request.page is not None:
        raise OutputError("A server makes no report page: leave out --page, or segment on this computer.")
    if request.probabilities is not None or request.uncertainty is not None:
        raise OutputError("A server sends no probabilities: leave them out, or segment on this computer.")
    model = requested_model(request)
    chosen_labels(model, request.options.structures)
    if request.measurements and model.task != VERTEBRAE_TASK:
        raise OutputError(f"The task '{model.task}' has no measurements: leave them out, or segment vertebrae.")
    check_files(in_order(model, request.input, request.channels or {}), model)
    check_outputs(request)
    return model


def _described(request: Request, model: Model, files: Sequence[Outgoing]) -> dict[str, Any]:
    """Return what the server is told of a job: what is to be done with which files."""
    options = asdict(request.options)
    for own in ("device", "levels_from"):
        del options[own]
    return {
        "model": model.id,
        "model_version": model.version,
        "options": options,
        "output": _ending(request.output),
        "also": list(request.also or ()),
        "preview": request.preview is not None,
        "files": {each.name: each.describe() for each in files},
        "channels": {name: each.name for name, each in zip(request.channels or {}, files[1:], strict=False)},
    }


class _Patient:
    """Asks a server for a job, again and again where the connection breaks."""

    def __init__(self, client: Client, cancelled: Callable[[], bool], patience: float) -> None:
        self._client, self._cancelled, self._patience = client, cancelled, patience

    def done(
        self,
        job: str,
        description: Mapping[str, Any],
        files: list[Outgoing],
        progress: Callable[[str, float], None],
    ) -> dict[str, Any]:
        """Return the last state of a job."""
        failures, last = 0, time.monotonic()
        while True:
            try:
                for state in self._states(job, description, files, progress):
                    failures, last = 0, time.monotonic()
                    if state["state"] in ("done", "failed", "cancelled"):
                        return state
                    if state["state"] == "running":
                        progress(state["stage"] or "read", state["fraction"])
                    else:
                        progress(WAIT, 0.0)
            except Interrupted as error:
                if self._cancelled():
                    raise Cancelled() from error
                if time.monotonic() - last > self._patience:
                    raise WorkerError(
                        f"The server {self._client.address} cannot be reached ({error}): check the network, and start "
                        "again to take the job up where it is."
                    ) from error
            if self._cancelled():
                raise Cancelled()
            self._pause(PAUSES[min(failures, len(PAUSES) - 1)])
            failures += 1

    def _states(
        self,
        job: str,
        description: Mapping[str, Any],
        files: list[Outgoing],
        progress: Callable[[str, float], None],
    ) -> Iterator[dict[str, Any]]:
        state = self._client.announce(job, description)
        for each in files:
            if each.name in state["missing"]:
                with each.path.open("rb") as stream:
                    size = each.path.stat().st_size
                    body = Body(stream, size, lambda fraction: progress(SEND, fraction), self._cancelled)
                    self._client.send(job, each.name, body)
        yield from self._client.follow(job)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._cancelled():
            time.sleep(POLL)


@contextlib.contextmanager
def _deleted_if_unwanted(client: Client, job: str, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Let the server delete a job at the end of the block, or as soon as it is cancelled, which ends its events."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            if cancelled():
                with contextlib.suppress(Exception):
                    client.forget(job)
                return

    watching = threading.Thread(target=watch, name="cancel", daemon=True)
    watching.start()
    lost = False
    try:
        yield
    except WorkerError:
        # It may be out of reach only from here: the next run finds the job.
        lost = True
        raise
    finally:
        over.set()
        watching.join()
        if not lost:
            with contextlib.suppress(Exception):
                client.forget(job)


@contextlib.contextmanager
def _outgoing(request: Request) -> Iterator[list[Outgoing]]:
    """Give the files that are sent, the input first; those that are made for it are deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="segmamba-", ignore_cleanup_errors=True) as folder:
        given = [("input", request.input)]
        given += [(f"channel-{number}", path) for number, path in enumerate((request.channels or {}).values())]
        if request.options.levels_from is not None:
            given.append(("levels", request.options.levels_from))
        yield [_file(name, path, Path(folder)) for name, path in given]


def _file(name: str, original: str, folder: Path) -> Outgoing:
    path = Path(original)
    if path.is_dir() or is_dicom(path):
        packed = folder / f"{name}.zip"
        with zipfile.ZipFile(packed, "x", zipfile.ZIP_STORED) as archive:
            for number, file in enumerate(sorted(find_files(path))):
                member = zipfile.ZipInfo(f"{number:06d}.dcm", LONG_AGO)
                with open(file, "rb") as stream, archive.open(member, "w") as target:
                    shutil.copyfileobj(stream, target, 1 << 20)
        return Outgoing(name, "dicom.zip", packed, original)
    ending = next((each for each in TAKEN if original.lower().endswith(each)), None)
    if ending is None:
        # Of another format, perhaps in several files.
        volume = read_stored(path)
        image = to_image(volume.array, volume.geometry)
        if volume.modality is not None:
            image.SetMetaData(MODALITY_KEY, volume.modality)
        path = folder / f"{name}.nrrd"
        sitk.WriteImage(image, str(path))
        ending = ".nrrd"
    return Outgoing(name, ending.removeprefix("."), path, original)


def _ending(output: str) -> str:
    return next(each for each in (*DICOM_EXTENSIONS, *LABELMAP_EXTENSIONS) if output.lower().endswith(each))


def _identifier(description: Mapping[str, Any]) -> str:
    """Return the number of a job: the same for the same job of the same user on the same computer."""
    owner = [getpass.getuser(), platform.node()]
    content = json.dumps([owner, description], sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:32]


def _named(value: Any, files: list[Outgoing]) -> Any:
    """Return a part of a report, or a sentence, with the user's files for the server's."""
    if isinstance(value, str):
        for each in files:
            value = value.replace(f"<{each.name}>", each.original)
        return value
    if isinstance(value, dict):
        return {key: _named(part, files) for key, part in value.items()}
    return [_named(part, files) for part in value] if isinstance(value, list) else value


def _error_of(state: Mapping[str, Any], files: list[Outgoing]) -> Exception:
    error = state["error"] or {}
    kind = ERRORS_BY_NAME.get(str(error.get("error")), WorkerError)
    if kind is Cancelled:
        return Cancelled()
    return kind(_named(str(error.get("message", "The server did not say why the job ended.")), files))


def _write(
    request: Request, client: Client, job: str, state: Mapping[str, Any], files: list[Outgoing]
) -> dict[str, Any]:
    """Fetch the results, write them and what follows from the report, and return the report."""
    ending = _ending(request.output)
    wanted = {f"segmentation{ending}": Path(request.output)}
    wanted |= {path.name: own for path, own in _also(request, ending)}
    if request.options.output_spacing is not None:
        wanted[isotropic_path(f"segmentation{ending}").name] = isotropic_path(request.output)
    if request.preview is not None:
        wanted["preview.png"] = Path(request.preview)
    for name, path in wanted.items():
        _fetch(client, job, name, path, state["results"].get(name))
    report: dict[str, Any] = _named(state["report"], files)
    if request.also:
        report["also"] = [str(path) for path in also_paths(request)]
    report |= {"input": request.input, "output": request.output, "preview": request.preview}
    if "isotropic" in report:
        report["isotropic"] = {**report["isotropic"], "output": str(isotropic_path(request.output))}
    report["run"] = {**report["run"], "server": client.address}
    if request.measurements:
        write_table(request.measurements, report["measurements"])
    if request.report:
        write_report(request.report, report)
    return report


def _also(request: Request, ending: str) -> Iterator[tuple[Path, Path]]:
    """Give each further DICOM result as the server calls it, and as it is called here."""
    there = also_paths(replace(request, output=f"segmentation{ending}"))
    return zip(there, also_paths(request), strict=True)


def _fetch(client: Client, job: str, name: str, path: Path, digest: str | None) -> None:
    if digest is None:
        raise WorkerError("The server did not give all results: install the same version here and there.")
    for pause in (*PAUSES, 0.0):
        try:
            client.fetch(job, name, path, digest)
            return
        except Interrupted:
            time.sleep(pause)
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}): check permissions and space.") from error
    raise WorkerError(f"The result cannot be fetched from {client.address}: start again to take it up.")
