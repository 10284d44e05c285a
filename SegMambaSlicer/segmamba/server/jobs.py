"""The jobs of a server: each from its upload to its result, in a queue with limits, and then gone."""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from segmamba.errors import Cancelled, OutputError, SegMambaError, WorkerError
from segmamba.request import Request
from segmamba.server.settings import ServerSettings
from segmamba.server.uploads import CHECKS
from segmamba.utils.hashing import file_sha256
from segmamba.worker.client import WorkerProcess

PREFIX, LOCK = "segmamba-server-", ".lock"
# How often a job is done again after its worker died.
ATTEMPTS = 3
# Seconds for which an upload may stand still before it gives its place to others.
UPLOAD_S = 300.0
# Jobs that are over and whose record is still kept.
MOST_RECORDS = 1000
UNEXPECTED = "The server could not do this job because of an unexpected error: its log says more."
# What stands for the place of a file in sentences: who sent it knows it by another one.
MARK = "<{}>"
# How a sentence goes on where labels that could not be written were saved in another file.
KEPT = " The labels were kept in "


class State(StrEnum):
    """Where a job is on its way."""

    UPLOADING = "uploading"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OVER = (State.DONE, State.FAILED, State.CANCELLED)


class Refused(Exception):
    """The server does not take something: an HTTP status and a typed error with its sentence."""

    def __init__(self, status: int, error: SegMambaError) -> None:
        super().__init__(str(error))
        self.status, self.error = status, error


@dataclass(frozen=True)
class Upload:
    """A file that belongs to a job: its kind (a key of `CHECKS`), its size in bytes and its SHA-256."""

    kind: str
    size: int
    sha256: str


@dataclass
class Job:
    """One volume to segment for somebody.

    Attributes
    ----------
    id : str
    request : callable
        Makes the request for the worker, from the job's folder and the paths of its files by their names.
    uploads : mapping
        By name.
    folder : Path
    """

    id: str
    request: Callable[[Path, Mapping[str, Path]], Request]
    uploads: Mapping[str, Upload]
    folder: Path
    state: State = State.UPLOADING
    stage: str = ""
    fraction: float = 0.0
    error: SegMambaError | None = None
    report: dict[str, Any] | None = None
    results: dict[str, str] = field(default_factory=dict)
    received: set[str] = field(default_factory=set)
    changed: float = field(default_factory=time.monotonic)
    listeners: set[Callable[[], None]] = field(default_factory=set)
    wanted: bool = True

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(upload.size for upload in self.uploads.values())

    def path(self, name: str) -> Path:
        """Return where one of its files lies."""
        return self.folder / f"{name}.{self.uploads[name].kind}"

    def change(self, state: State | None = None, stage: str = "", fraction: float = 0.0) -> None:
        """Go on to a state, or within it, and tell whoever listens."""
        if state is not None:
            self.state = state
        self.stage, self.fraction, self.changed = stage, fraction, time.monotonic()
        for listener in list(self.listeners):
            listener()


class Jobs:
    """All jobs of a server, and the workers that do them.

    Parameters
    ----------
    settings : ServerSettings
    folder : Path
        Private to this server, empty.
    workers : sequence of WorkerProcess
        One thread each gives them work.
    log : callable
        Gets lines for the operator, with nothing in them that is the patient's or secret.
    """

    def __init__(
        self, settings: ServerSettings, folder: Path, workers: list[WorkerProcess], log: Callable[[str], None]
    ) -> None:
        self.settings = settings
        self._folder, self._workers, self._log = folder, workers, log
        self._jobs: dict[str, Job] = {}
        self._lock = threading.RLock()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name="jobs", daemon=True) for worker in workers
        ]
        self._threads.append(threading.Thread(target=self._keep_sweeping, name="sweeper", daemon=True))
        for thread in self._threads:
            thread.start()

    def count(self) -> dict[str, int]:
        """Return how many jobs are in each state."""
        with self._lock:
            states = [job.state for job in self._jobs.values()]
        return {state.value: states.count(state) for state in State}

    def get(self, identifier: str) -> Job:
        """Return a job; `Refused` if there is none (any more)."""
        job = self._jobs.get(identifier)
        if job is None:
            raise Refused(404, WorkerError("The server does not know this job (any more): send it again."))
        return job

    def create(
        self,
        identifier: str,
        request: Callable[[Path, Mapping[str, Path]], Request],
        uploads: Mapping[str, Upload],
    ) -> Job:
        """Return the job of this identifier: the one there is, unless it failed or was cancelled, or a new one.

        Raises
        ------
        Refused
            A limit is reached.
        """
        with self._lock:
            known = self._jobs.get(identifier)
            if known is not None and known.state not in (State.FAILED, State.CANCELLED):
                return known
            job = Job(identifier, request, uploads, self._folder / secrets.token_hex(16))
            self._check_limits(job)
            job.folder.mkdir(mode=0o700)
            self._jobs[identifier] = job
            return job

    def received(self, job: Job, name: str) -> None:
        """Take note of a file that came whole; the last one puts the job into the queue."""
        with self._lock:
            job.received.add(name)
            complete = job.state is State.UPLOADING and job.received == set(job.uploads)
            if complete:
                job.change(State.QUEUED)
                self._queue.put(job)
            else:
                job.change(stage=job.stage)

    def ahead(self, job: Job) -> int:
        """Return how many jobs wait before one that waits."""
        with self._lock:
            waiting = [each for each in self._jobs.values() if each.state is State.QUEUED]
        return waiting.index(job) if job in waiting else 0

    def forget(self, job: Job) -> None:
        """Stop a job, delete all that belongs to it, and know nothing of it any more."""
        with self._lock:
            job.wanted = False
            if self._jobs.get(job.id) is job:
                del self._jobs[job.id]
            # A worker that is at it is asked to stop, and its thread then deletes the folder.
            running = job.state is State.RUNNING
            if job.state not in OVER:
                job.error = Cancelled("The job was cancelled.")
                job.change(State.CANCELLED)
        if not running:
            _delete(job.folder)

    def sweep(self) -> None:
        """Delete what is too old: results that nobody fetched, uploads that did not come, records."""
        now = time.monotonic()
        with self._lock:
            old = [job for job in self._jobs.values() if now - job.changed > self._patience(job)]
            over = [job for job in self._jobs.values() if job.state in OVER]
            old += over[: max(0, len(over) - MOST_RECORDS)]
        for job in old:
            self.forget(job)

    def close(self) -> None:
        """Stop all jobs and end the workers."""
        self._closed.set()
        for _worker in self._workers:
            self._queue.put(None)
        for worker in self._workers:
            worker.kill()
        for thread in self._threads:
            thread.join(10.0)

    def _check_limits(self, job: Job) -> None:
        alive = [each for each in self._jobs.values() if each.state not in OVER]
        waiting = [each for each in alive if each.state is not State.RUNNING]
        if len(waiting) >= self.settings.waiting + len(self._workers):
            raise Refused(503, WorkerError(f"The server is busy ({len(waiting)} jobs wait): try again later."))
        if job.size > self.settings.upload_bytes:
            most = self.settings.upload_bytes / 2**30
            error = OutputError(f"The volume is larger than this server takes ({most:.1f} GiB): send a part of it.")
            raise Refused(413, error)
        taken = sum(each.size for each in self._jobs.values() if each.folder.exists())
        free = shutil.disk_usage(self._folder).free
        if taken + job.size > self.settings.disk_bytes or 2 * job.size > free:
            raise Refused(507, OutputError("The server has no space left: try again later."))

    def _patience(self, job: Job) -> float:
        """Return for how many seconds a job may stay as it is."""
        if job.state in (State.QUEUED, State.RUNNING):
            return float("inf")
        return min(self.settings.kept_s, UPLOAD_S) if job.state is State.UPLOADING else self.settings.kept_s

    def _keep_sweeping(self) -> None:
        while not self._closed.wait(min(10.0, self.settings.kept_s / 4)):
            self.sweep()

    def _work(self, worker: WorkerProcess) -> None:
        while (job := self._queue.get()) is not None:
            with self._lock:
                if job.state is not State.QUEUED or self._closed.is_set():
                    continue
                job.change(State.RUNNING, "read")
            begun = time.monotonic()
            try:
                report = self._run(job, worker)
                self._finish(job, report)
            except SegMambaError as error:
                self._fail(job, error)
            except Exception as error:
                # Where it happened, but not with which values.
                self._log("".join(traceback.format_tb(error.__traceback__)) + type(error).__name__)
                self._fail(job, WorkerError(UNEXPECTED))
            self._log(f"job {job.id[:8]}: {job.state} after {time.monotonic() - begun:.1f} s")

    def _run(self, job: Job, worker: WorkerProcess) -> dict[str, Any]:
        inputs = {
            name: CHECKS[upload.kind](job.path(name), self.settings.unpacked_bytes)
            for name, upload in job.uploads.items()
        }
        request = job.request(job.folder, inputs)

        def cancelled() -> bool:
            return not job.wanted or self._closed.is_set()

        def progress(stage: str, fraction: float) -> None:
            if job.state is State.RUNNING:
                job.change(stage=stage, fraction=fraction)

        for attempt in range(1, ATTEMPTS + 1):
            try:
                report = worker.run(request, progress, cancelled)
                cleaned: dict[str, Any] = _cleaned(report, job, inputs)
                return cleaned
            except WorkerError as error:
                self._log(f"job {job.id[:8]}: attempt {attempt}: the worker died")
                if attempt == ATTEMPTS or cancelled():
                    raise WorkerError(_without_paths(str(error), job, inputs)) from error
            except SegMambaError as error:
                raise type(error)(_without_paths(str(error), job, inputs)) from error
        raise AssertionError

    def _finish(self, job: Job, report: dict[str, Any]) -> None:
        results = {path.name: file_sha256(path) for path in sorted((job.folder / "results").iterdir())}
        for path in job.folder.iterdir():
            if path.name != "results":
                _delete(path)
        with self._lock:
            # Somebody may have lost interest at the last moment.
            if job.wanted:
                job.report, job.results = report, results
                job.change(State.DONE)
                return
        _delete(job.folder)

    def _fail(self, job: Job, error: SegMambaError) -> None:
        _delete(job.folder)
        with self._lock:
            if job.state not in OVER:
                job.error = error
                job.change(State.FAILED)


@contextlib.contextmanager
def private_folder(parent: Path | None) -> Iterator[Path]:
    """Give an empty folder for a server's files, which is deleted at the end, and delete those of servers that died.

    A parent that is not there yet is made, and stays.

    Raises
    ------
    OutputError
        It cannot be made.
    """
    place = parent or Path(tempfile.gettempdir())
    try:
        place.mkdir(parents=True, exist_ok=True)
        for left in place.glob(f"{PREFIX}*"):
            with contextlib.suppress(Timeout, OSError):
                lock = FileLock(left / LOCK, timeout=0)
                with lock:
                    _delete(left)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except (OSError, Timeout) as error:
        raise OutputError(f"No folder for jobs can be made in {place} ({error}): choose one with --folder.") from error
    try:
        jobs = folder / "jobs"
        jobs.mkdir(mode=0o700)
        yield jobs
    finally:
        _delete(jobs)
        lock.release()
        _delete(folder)


def _without_paths(sentence: str, job: Job, inputs: Mapping[str, Path]) -> str:
    """Return a sentence with names for the paths of this computer, which are nobody's business."""
    for name, path in inputs.items():
        sentence = sentence.replace(str(path), MARK.format(name))
    # Nothing is kept of a job that failed.
    return sentence.partition(KEPT)[0].replace(str(job.folder) + os.sep, "")


def _cleaned(value: Any, job: Job, inputs: Mapping[str, Path]) -> Any:
    """Return a part of a report without the paths of this computer."""
    if isinstance(value, str):
        return _without_paths(value, job, inputs)
    if isinstance(value, dict):
        return {key: _cleaned(part, job, inputs) for key, part in value.items()}
    return [_cleaned(part, job, inputs) for part in value] if isinstance(value, list | tuple) else value


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
