"""The parent's side of the worker: start it, give it jobs, hear of their progress, stop it. Needs no torch."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from segmamba.errors import ERRORS_BY_NAME, Cancelled, DeviceLost, WorkerError, package_problem
from segmamba.request import Request
from segmamba.utils.child import Child, how_it_ended
from segmamba.utils.memory import ENVIRONMENT
from segmamba.worker.protocol import PRELOAD, PROTOCOL_VERSION, decode, encode
from segmamba.worker.watchdog import PATIENCE, Watchdog

Message = dict[str, Any]

# Seconds from a polite cancel to the end of the process. Writing is not cancelled, so it gets longer.
GRACE = 2.0
WRITING_GRACE = 60.0
POLL = 0.05
# Room for the traceback of a crash.
LOG_LINES = 200
HUNG = (
    "The worker was silent for {:.0f} seconds and was ended, so it hung: try again, and choose the device cpu if it "
    "happens again."
)
# The folder that this package lies in.
PACKAGES = Path(__file__).resolve().parents[2]


class WorkerProcess:
    """A worker process and the messages to and from it.

    It starts at the first job and stays up between jobs, so that weights load once; one that died or was killed
    is restarted at the next job. `run` waits for a job. A window that must not wait uses `submit`, then `poll`
    from a timer, and `cancel`.

    Parameters
    ----------
    python : str, optional
        Interpreter to run; by default the one that runs this.
    log : callable, optional
        Gets each line that the worker writes to its log (standard error).
    environment : mapping, optional
        Environment variables that it gets besides those of this process.
    preload : bool
        Import torch before it says "ready", not at the first job.
    patience : float
        Seconds that it may be silent while it has a job, before it is taken to hang and ended.
    module : str
        What Python runs in it: another module may speak the same protocol.
    """

    def __init__(
        self,
        python: str | None = None,
        log: Callable[[str], None] | None = None,
        environment: Mapping[str, str] | None = None,
        preload: bool = False,
        patience: float = PATIENCE,
        module: str = "segmamba.worker",
    ) -> None:
        self._command = [python or sys.executable, "-m", module, *([PRELOAD] if preload else [])]
        self._log = log
        self._environment = dict(environment or {})
        self._patience = patience
        self._child: Child | None = None
        self._reader: threading.Thread | None = None
        self._watchdog: Watchdog | None = None
        self._messages: queue.Queue[Message] = queue.Queue()
        self._numbers = itertools.count(1)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the worker, in Slicer that of its launcher; None while none runs."""
        return self._child.pid if self._child is not None and self._child.running else None

    def start(self) -> None:
        """Start the process if none runs; `submit` does it too. The first message is of the type "ready".

        Raises
        ------
        WorkerError
            Python cannot be run.
        """
        if self.pid is None:
            self._start()

    def submit(self, request: Request) -> str:
        """Give the worker a job, starting the worker if none runs, and return the job's id.

        Raises
        ------
        WorkerError
            The worker cannot be started.
        """
        self.start()
        assert self._watchdog is not None
        self._watchdog.job_given()
        job = str(next(self._numbers))
        self._send({"type": "job", "id": job, "request": request.to_dict()})
        return job

    def cancel(self, job: str) -> None:
        """Ask the worker to stop a job at the next window; its error message is then of the kind Cancelled."""
        self._send({"type": "cancel", "id": job})

    def poll(self, timeout: float = 0.0) -> Message | None:
        """Return the next message, or None if there is none within ``timeout`` seconds.

        The last message of a job is of the type "result" or "error". The end of the process is a message of the type
        "error" too, with the id None.
        """
        try:
            message = self._messages.get(timeout > 0, timeout or None)
        except queue.Empty:
            return None
        if message.get("error") == DeviceLost.__name__:
            # Nothing runs on the GPU in that process any more; the next one may get it back.
            self.kill()
        return message

    def run(
        self,
        request: Request,
        on_progress: Callable[[str, float], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """Do a job and return its report.

        Parameters
        ----------
        request : Request
        on_progress : callable, optional
            Called with stage and fraction.
        cancelled : callable, optional
            Asked all the time. The worker is then asked to stop, and ended if it has not after two seconds.

        Raises
        ------
        SegMambaError
            The job's own error; WorkerError if the process died.
        """
        job = self.submit(request)
        stage = ""
        deadline: float | None = None
        while True:
            message = self.poll(POLL)
            if message is not None and message.get("id") in (job, None):
                if message["type"] == "result":
                    report: dict[str, Any] = message["report"]
                    return report
                if message["type"] == "error":
                    kind = ERRORS_BY_NAME.get(message["error"], WorkerError)
                    raise kind(message["message"])
                if message["type"] == "progress":
                    stage = message["stage"]
                    if stage == "write" and deadline is not None:
                        deadline = time.monotonic() + WRITING_GRACE
                    if on_progress is not None:
                        on_progress(stage, message["fraction"])
            if deadline is None and cancelled is not None and cancelled():
                self.cancel(job)
                deadline = time.monotonic() + (WRITING_GRACE if stage == "write" else GRACE)
            if deadline is not None and time.monotonic() > deadline:
                self.kill()
                raise Cancelled()

    def close(self) -> None:
        """Let the worker end; kill it if it does not within two seconds."""
        if self._child is not None:
            self._send({"type": "quit"})
            self._child.wait(GRACE)
        self.kill()

    def kill(self) -> None:
        """End the worker at once, behind its launcher too; its memory is then free again."""
        child, self._child = self._child, None
        reader, self._reader = self._reader, None
        if child is None:
            return
        child.end()
        # A process gives back its memory before it closes its pipes; a driver may keep it in there for a moment.
        if reader is not None and reader is not threading.current_thread():
            reader.join(GRACE)

    def _start(self) -> None:
        self.kill()
        self._messages = queue.Queue()
        try:
            # Python imports from the folder it is started in, and a user's folder may hold a numpy.py.
            child = Child(self._command, worker_environment() | self._environment, PACKAGES)
        except OSError as error:
            python = self._command[0]
            raise WorkerError(f"The worker cannot be started ({error}): check that {python} is Python.") from error
        self._child = child
        self._watchdog = Watchdog(child, self._patience)
        lines: deque[str] = deque(maxlen=LOG_LINES)
        log = threading.Thread(target=_read_log, args=(child, lines, self._log), name="worker log", daemon=True)
        log.start()
        reader = (child, self._messages, log, lines, self._watchdog)
        self._reader = threading.Thread(target=_read_messages, args=reader, name="worker messages", daemon=True)
        self._reader.start()

    def _send(self, message: Message) -> None:
        assert self._child is not None
        # A worker that just died tells so itself, through its last message.
        with contextlib.suppress(OSError, ValueError):
            self._child.input.write(encode(message))
            self._child.input.flush()


def worker_environment() -> dict[str, str]:
    """Return an environment in which a child process finds this package wherever it is started."""
    environment = ENVIRONMENT | {**os.environ, "PYTHONSAFEPATH": "1"}
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(PACKAGES) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths.insert(0, str(PACKAGES))
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _read_log(child: Child, lines: deque[str], log: Callable[[str], None] | None) -> None:
    assert child.log is not None
    with child.log as stream:
        for raw in stream:
            line = raw.decode("utf-8", errors="replace").rstrip()
            lines.append(line)
            if log is not None:
                log(line)


def _read_messages(
    child: Child,
    messages: queue.Queue[Message],
    log: threading.Thread,
    lines: deque[str],
    watchdog: Watchdog,
) -> None:
    with child.output as stream:
        for raw in stream:
            message = decode(raw)
            if message is None:
                lines.append(raw.decode("utf-8", errors="replace").rstrip())
            elif message["type"] == "ready" and message.get("protocol") != PROTOCOL_VERSION:
                text = f"The worker is of another version ({message.get('version')}): install SegMambaSlicer again."
                messages.put(_death(text))
            else:
                watchdog.heard(message["type"] in ("result", "error"))
                messages.put(message)
    status = child.wait()
    assert status is not None
    # The reason is often in the last lines; a grandchild may hold the log open, so there is a limit.
    log.join(1.0)
    messages.put(_death(HUNG.format(watchdog.patience) if watchdog.ended_it else describe_end(status, list(lines))))


def _death(text: str) -> Message:
    return {"type": "error", "id": None, "error": WorkerError.__name__, "message": text}


def describe_end(status: int, lines: Sequence[str]) -> str:
    """Say in one sentence why a process ended and what to do.

    Parameters
    ----------
    status : int
        The exit status, negative for a signal.
    lines : sequence of str
        The last ones of its log.
    """
    end = how_it_ended(status, lines)
    problem = package_problem(end.words) if status == 1 else None
    if problem is not None:
        return problem
    said = f" (its last line: {end.words})" if end.words else ""
    if end.killed:
        by = f" ({end.killed})" if status < 0 else ""
        return (
            f"The worker was killed{by}{said}, most likely because memory ran out: close other programs, or "
            "give a region of interest."
        )
    if end.crash:
        return f"The worker crashed ({end.crash}){said}: run 'segmamba doctor', or choose the device cpu."
    return f"The worker ended with exit status {status}{said}: run 'segmamba doctor'."
