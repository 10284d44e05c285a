"""A worker process for a server's jobs, for callers that have one for this computer's."""

from __future__ import annotations

import threading
from collections.abc import Callable

from segmamba.errors import WorkerError
from segmamba.remote.servers import ADDRESS_VARIABLE, TOKEN_VARIABLE, KnownServer
from segmamba.utils.child import Child
from segmamba.worker.client import WorkerProcess

MODULE = "segmamba.remote"
# Seconds that its process has to let the server delete a job that is cancelled.
LAST_SECONDS = 10.0


class RemoteWorker(WorkerProcess):
    """A worker process that lets a server do its jobs; other parameters as for `WorkerProcess`.

    Raises
    ------
    WorkerError
        No token for the server is known.
    """

    def __init__(
        self, server: KnownServer, python: str | None = None, log: Callable[[str], None] | None = None
    ) -> None:
        if not server.token:
            raise WorkerError(
                f"No token for {server.address} is known: ask who runs the server, and give it in the panel "
                f"(Advanced) or in the environment variable {TOKEN_VARIABLE}."
            )
        environment = {ADDRESS_VARIABLE: server.address, TOKEN_VARIABLE: server.token}
        super().__init__(python, log, environment, module=MODULE)

    def kill(self) -> None:
        """Let the process end without waiting for it: it has to tell the server that nobody wants the job any more."""
        child, self._child, self._reader = self._child, None, None
        if child is not None:
            child.close_input()
            threading.Thread(target=_end, args=(child,), name="remote worker", daemon=True).start()


def _end(child: Child) -> None:
    child.wait(LAST_SECONDS)
    child.end()
