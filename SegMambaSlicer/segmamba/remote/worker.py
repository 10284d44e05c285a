"""A worker process for a server's jobs, for callers that have one for this computer's."""

from __future__ import annotations

from collections.abc import Callable

from segmamba.errors import WorkerError
from segmamba.remote.servers import ADDRESS_VARIABLE, TOKEN_VARIABLE, KnownServer
from segmamba.worker.client import WorkerProcess

MODULE = "segmamba.remote"


def remote_worker(
    server: KnownServer, python: str | None = None, log: Callable[[str], None] | None = None
) -> WorkerProcess:
    """Return a worker process that lets a server do its jobs; parameters as for `WorkerProcess`.

    Raises
    ------
    WorkerError
        No token for the server is known.
    """
    if not server.token:
        raise WorkerError(
            f"No token for {server.address} is known: ask who runs the server, and give it in the panel or in the "
            f"environment variable {TOKEN_VARIABLE}."
        )
    environment = {ADDRESS_VARIABLE: server.address, TOKEN_VARIABLE: server.token}
    return WorkerProcess(python, log, environment, module=MODULE)
