"""The child process that torch runs in: started by `client`, speaks `protocol`.

``python -m segmamba.worker``
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

from segmamba import __version__
from segmamba.errors import Cancelled, SegMambaError
from segmamba.inference.file_to_file import segment_file
from segmamba.request import Request
from segmamba.utils.child import take_input, take_output
from segmamba.utils.processes import helper_processes
from segmamba.worker.protocol import PRELOAD, PROTOCOL_VERSION, decode, encode
from segmamba.worker.stations import DEPTH, STATIONS, Stations

# Seconds that a job has to notice that the parent is gone; a window on a slow processor may take longer.
LAST_SECONDS = 5.0
PROGRESS_INTERVAL = 0.1
# After so many seconds without a job, other programs get the memory of the GPU and of helper processes.
IDLE_SECONDS = 60.0

# A case that comes back from the GPU, or from numpy, waits so long for Python's lock while others draw or measure, and
# does so hundreds of times; Python's own 5 ms would be seconds.
SWITCH_SECONDS = 0.0005

Message = dict[str, Any]
Segment = Callable[[Request, Callable[[str, float], None], Callable[[], bool]], Message]


class Inbox:
    """Reads messages in a thread of its own, so that a cancel is heard while a job runs."""

    def __init__(self, stream: BinaryIO, last_seconds: float = LAST_SECONDS) -> None:
        self.jobs: queue.Queue[Message | BaseException | None] = queue.Queue()
        self._cancelled: set[str] = set()
        self._closed = threading.Event()
        self._stream = stream
        self._last_seconds = last_seconds
        self.finished = threading.Event()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    @property
    def closed(self) -> bool:
        """Whether no more messages can come."""
        return self._closed.is_set()

    def cancelled(self, job: str) -> bool:
        """Say whether a job is to stop: it was cancelled, or nobody waits for it any more."""
        return self.closed or job in self._cancelled

    def _read(self) -> None:
        for line in self._stream:
            message = decode(line) or {"type": "nonsense"}
            if message["type"] == "job":
                self.jobs.put(message)
            elif message["type"] == "cancel":
                self._cancelled.add(str(message.get("id")))
            elif message["type"] == "quit":
                break
            else:
                print(f"segmamba worker: not understood: {line!r}", file=sys.stderr)
        self._closed.set()
        self.jobs.put(None)
        if not self.finished.wait(self._last_seconds):
            os._exit(1)


def serve(
    inbox: Inbox, send: Callable[[Message], None], segment: Segment = segment_file, idle_seconds: float = IDLE_SECONDS
) -> None:
    """Do jobs until the inbox is closed: in the order in which they come, each in a thread, as `Stations` lets them."""
    send({"type": "ready", "protocol": PROTOCOL_VERSION, "version": __version__, "pid": os.getpid()})
    stations = Stations()
    begun: list[Future[None]] = []

    def do(message: Message) -> None:
        try:
            send(answer(message, inbox, send, segment, stations))
        except BaseException as error:
            inbox.jobs.put(error)  # what is no error of a job's ends the worker, as it would in this thread

    with ThreadPoolExecutor(DEPTH, "job") as threads:
        while (message := _next(inbox, idle_seconds, begun)) is not None:
            begun = [*(job for job in begun if not job.done()), threads.submit(do, message)]
    _raise_what_ended(inbox)
    inbox.finished.set()


def _next(inbox: Inbox, idle_seconds: float, begun: list[Future[None]]) -> Message | None:
    """Wait for the next job, None for the end; give memory back where it does not come soon."""
    while True:
        try:
            message = inbox.jobs.get(timeout=idle_seconds)
        except queue.Empty:
            if all(job.done() for job in begun):
                free_gpu()
                helper_processes.end()
                message = inbox.jobs.get()
            else:
                continue
        if isinstance(message, BaseException):
            raise message
        return message


def _raise_what_ended(inbox: Inbox) -> None:
    """Raise what a job raised that ended after the last message."""
    while not inbox.jobs.empty():
        error = inbox.jobs.get()
        if isinstance(error, BaseException):
            raise error


def free_gpu() -> None:
    """Give the GPU's memory back, where a job has taken any."""
    engine = sys.modules.get("segmamba.inference.engine")
    if engine is not None:
        engine.free_gpu()


def answer(
    message: Message, inbox: Inbox, send: Callable[[Message], None], segment: Segment, stations: Stations
) -> Message:
    """Do one job and return its result or its error as a message."""
    job = str(message.get("id"))
    tell, done = _throttled(job, send), False

    def cancelled() -> bool:
        return inbox.cancelled(job)

    def progress(stage: str, fraction: float) -> None:
        if fraction == 0.0 and stage in STATIONS:
            stations.enter(job, stage, cancelled)
        tell(stage, fraction)

    try:
        if cancelled():
            raise Cancelled()
        report = segment(Request.from_dict(message.get("request", {})), progress, cancelled)
        done = True
        return {"type": "result", "id": job, "report": report}
    except SegMambaError as error:
        if type(error) is SegMambaError:
            traceback.print_exc()
        return {"type": "error", "id": job, "error": type(error).__name__, "message": str(error)}
    finally:
        stations.leave(job, done)


def _throttled(job: str, send: Callable[[Message], None]) -> Callable[[str, float], None]:
    """Return a progress function that sends a stage's begin and end, and in between not more than ten a second."""
    last = 0.0

    def progress(stage: str, fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if 0 < fraction < 1 and now - last < PROGRESS_INTERVAL:
            return
        last = now
        send({"type": "progress", "id": job, "stage": stage, "fraction": round(fraction, 4)})

    return progress


def main(segment: Segment | None = None) -> None:
    """Serve on standard input and output; whatever else writes to standard output is led to standard error."""
    # A crash is told in the log: the launcher that Slicer has instead of Python hides the signal.
    faulthandler.enable()
    channel = take_output()
    lock = threading.Lock()

    def send(message: Message) -> None:
        # When nobody listens any more, the inbox is closed too and ends the job.
        with lock, contextlib.suppress(OSError):
            channel.write(encode(message))
            channel.flush()

    sys.setswitchinterval(SWITCH_SECONDS)
    helper_processes.allowed = True
    if PRELOAD in sys.argv:
        importlib.import_module("segmamba.inference.pipeline")
    serve(Inbox(take_input()), send, segment or segment_file)
    # Not through the interpreter's clean-up: on some systems GPU libraries hang in it.
    os._exit(0)
