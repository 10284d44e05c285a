"""The engine of a batch worker: one child process (`segmamba.worker.client.WorkerProcess`), kept between cases."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from segmamba.errors import WorkerError
from segmamba.request import Request
from segmamba.worker.client import WorkerProcess

# Importing torch from a busy network drive can take minutes.
START_SECONDS = 300.0
# A start that fails says nothing about the case that waits for it, so it does not count as an attempt at it.
STARTS = 3
# Seconds between two attempts to end a child process that may be about to start.
STOP_POLL = 0.05


class Engine:
    """Runs one case at a time in a child process; weights load once, and a crash of the child is only an error.

    Parameters
    ----------
    environment : mapping, optional
        Environment variables that the child process gets besides those of this process.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._worker = WorkerProcess(environment=environment, preload=True)

    def run(self, request: Request) -> dict[str, Any]:
        """Do a case and return its report.

        Raises
        ------
        SegMambaError
            As `segmamba.worker.client.WorkerProcess.run`.
        """
        with self._lock:
            self._wait_until_ready()
            return self._worker.run(request)

    def stop(self) -> None:
        """End the child process at once; a case that it works on ends in a WorkerError, and no other one starts."""
        self._stopped.set()
        # While a case holds the lock, its child process may only be about to start.
        while not self._lock.acquire(timeout=STOP_POLL):
            self._worker.kill()
        try:
            self._worker.kill()
        finally:
            self._lock.release()

    def _wait_until_ready(self) -> None:
        text = "the batch is over"
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
