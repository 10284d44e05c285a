"""A server that runs: its folder, its workers, its port, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from segmamba.batch.local import count_gpus, engine_environment
from segmamba.errors import OutputError
from segmamba.server.app import make_app
from segmamba.server.guard import PATIENCE
from segmamba.server.jobs import Jobs, private_folder
from segmamba.server.settings import ServerSettings
from segmamba.worker.client import WorkerProcess

# Bytes of the headers of a request, and connections at a time.
MOST_HEADERS, MOST_CONNECTIONS = 16_384, 200
# Seconds that streams have to end when the server is stopped.
LAST_SECONDS = 2


class Protocol(H11Protocol):
    """HTTP/1.1, but whoever connects has to say soon what he wants."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(PATIENCE, self._end_if_silent)

    def _end_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


@contextlib.contextmanager
def prepared(
    settings: ServerSettings, token: str, log: Callable[[str], None]
) -> Iterator[tuple[uvicorn.Server, socket.socket, Jobs]]:
    """Give a server (uvicorn's), the socket that it is to be run on, and its jobs, which end with the block.

    Raises
    ------
    OutputError
        Its folder cannot be made, or the port is not free.
    """
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listening(settings))
        folder = stack.enter_context(private_folder(settings.folder))
        # Asking torch takes seconds: only where there may be GPUs and it is open which to use.
        asked = settings.device in ("auto", "cuda") and shutil.which("nvidia-smi") is not None
        gpus = count_gpus() if asked else 0
        count = settings.workers or max(1, gpus)
        workers = [
            WorkerProcess(environment=engine_environment(number, count, gpus), preload=True) for number in range(count)
        ]
        jobs = Jobs(settings, folder, workers, log)
        stack.callback(jobs.close)
        config = uvicorn.Config(
            make_app(jobs, token),
            http=Protocol,
            ws="none",
            lifespan="off",
            # Its lines would have the numbers of jobs.
            access_log=False,
            log_config=None,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            h11_max_incomplete_event_size=MOST_HEADERS,
            timeout_graceful_shutdown=LAST_SECONDS,
        )
        yield uvicorn.Server(config), listening, jobs


def _listening(settings: ServerSettings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        raise OutputError(
            f"The server cannot listen at {settings.host}, port {settings.port} ({error.strerror}): choose others with "
            "--host and --port."
        ) from error
