"""The engine of a batch worker: one child process (`segmamba.worker.client.WorkerProcess`), kept between cases."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from segmamba.errors import ERRORS_BY_NAME, WorkerError
from segmamba.request import Request
from segmamba.worker.client import POLL, Message, WorkerProcess
from segmamba.worker.stations import DEPTH

# Importing torch from a busy network drive can take minutes.
START_SECONDS = 300.0
# A start that fails says nothing about the case that waits for it, so it does not count as an attempt at it.
STARTS = 3
# Seconds between two attempts to end a child process that may be about to start.
STOP_POLL = 0.05
# Seconds in which a case that waits for its answer lets others talk to the child.
LISTEN = 0.005
OVER = "the batch is over"
LOST = "The worker ended while it worked on this case."


class Engine:
    """Runs cases in a child process; weights load once, and a crash of the child is only an error.

    Some cases are on their way through the child at a time (`segmamba.worker.stations`): it reads the next one while
    the networks run on one and the last one is written. A crash takes all of them. So that one that always crashes
    takes no other with it for good, each of them is then tried again alone.

    Parameters
    ----------
    environment : mapping, optional
        Environment variables that the child process gets besides those of this process.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._stopped = threading.Event()
        self._worker = WorkerProcess(environment=environment, preload=True)
        # Held by who talks to the child; answers of other cases are kept for them.
        self._talk = threading.Lock()
        self._answers: dict[str, Message | None] = {}
        self._turn = _Turn(DEPTH)

    def run(self, request: Request, alone: bool = False) -> dict[str, Any]:
        """Do a case and return its report; with ``alone`` no other one is done at the time.

        Raises
        ------
        SegMambaError
            As `segmamba.worker.client.WorkerProcess.run`.
        """
        with self._turn.taken(alone):
            with self._talk:
                while self._worker.pid is None and self._waiting():
                    self._hear()
                self._wait_until_ready()
                before = self._worker.pid
                job = self._worker.submit(request)
                if self._worker.pid != before:
                    # It ended in this moment and was started again: nothing more comes of what it had.
                    self._lose_all(LOST)
                self._answers[job] = None
            message = None
            while message is None:
                with self._talk:
                    if self._answers[job] is None:
                        self._hear()
                    message = self._answers[job]
                # A lock is not fair: others come to talk now.
                time.sleep(LISTEN)
            with self._talk:
                del self._answers[job]
        if message["type"] == "error":
            raise ERRORS_BY_NAME.get(message["error"], WorkerError)(message["message"])
        report: dict[str, Any] = message["report"]
        return report

    def stop(self) -> None:
        """End the child process at once; the cases that it works on end in a WorkerError, and no other one starts."""
        self._stopped.set()
        # While a case talks to its child process, that may only be about to start.
        while not self._talk.acquire(timeout=STOP_POLL):
            self._worker.kill()
        try:
            self._worker.kill()
            self._lose_all(OVER)
        finally:
            self._talk.release()

    def _waiting(self) -> list[str]:
        """Return the jobs that have no answer yet."""
        return [job for job, known in self._answers.items() if known is None]

    def _hear(self) -> None:
        """Hear what the child says for a moment, and keep the answer that comes."""
        message = self._worker.poll(POLL)
        if message is None:
            # Nothing more comes of one that was ended.
            if self._worker.pid is None:
                self._lose_all(LOST)
        elif message.get("id") is None and message["type"] == "error":
            self._lose_all(message["message"])
        elif message["type"] in ("result", "error") and message["id"] in self._answers:
            self._answers[message["id"]] = message

    def _lose_all(self, text: str) -> None:
        """Answer all cases that wait with a WorkerError."""
        for job in self._waiting():
            self._answers[job] = {"type": "error", "error": WorkerError.__name__, "message": text}

    def _wait_until_ready(self) -> None:
        text = OVER
        for _ in range(STARTS):
            if self._stopped.is_set():
                break
            if self._worker.pid is not None:
                return
            self._worker.start()
            message = self._worker.poll(START_SECONDS)
            if message is not None and message["type"] == "ready":
                return
            text = "the worker did not start in time" if message is None else message["message"]
            self._worker.kill()
        raise WorkerError(text)


class _Turn:
    """Lets so many in at a time, or one alone, for which the others wait."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = 0

    @contextlib.contextmanager
    def taken(self, alone: bool) -> Iterator[None]:
        with self._changed:
            self._alone += alone
            self._changed.wait_for(lambda: not self._inside if alone else not self._alone and self._inside < self._most)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone -= alone
                self._changed.notify_all()
