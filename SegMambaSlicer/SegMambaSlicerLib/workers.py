"""The processes that do the logic's jobs, one at a time: that of this computer, and one for a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segmamba.errors import WorkerError
from segmamba.remote.servers import KnownServer, known_server
from segmamba.remote.worker import RemoteWorker
from segmamba.worker.client import WorkerProcess
from segmamba_mrml.application import worker_python


def refuseIfBusy(job: Any) -> None:
    """Raise WorkerError if the logic's last job, or None, still runs."""
    if job is not None and not job.finished:
        raise WorkerError("A job is running: wait for it with job.wait(), or stop it with job.cancel().")


def localWorker(log: Callable[[str], None]) -> WorkerProcess:
    """Return a worker for this computer; InstallationError if there is no Python to run it."""
    return WorkerProcess(python=worker_python(), log=log)


class RemoteWorkers:
    """Gives a worker for the server that was named last, and keeps it between runs.

    Parameters
    ----------
    log : callable
        Gets each line of its log.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._server: KnownServer | None = None
        self._worker: RemoteWorker | None = None

    def get(self, address: str) -> RemoteWorker:
        """Return the worker for a server.

        Raises
        ------
        SegMambaError
            The address is not one, or no token is known.
        """
        server = known_server(address)
        if self._worker is None or server != self._server:
            self.kill()
            self._worker, self._server = RemoteWorker(server, worker_python(), self._log), server
        return self._worker

    def kill(self) -> None:
        """End it; the server deletes the job that it does for it."""
        if self._worker is not None:
            self._worker.kill()
