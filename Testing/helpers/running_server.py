"""A server (``segmamba serve``) that runs in this process, on a free port, with real worker processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.own_time import PATIENCE
from segmamba.remote.client import Client
from segmamba.server.jobs import Jobs
from segmamba.server.run import prepared
from segmamba.server.settings import ServerSettings

TOKEN = "a-token-that-only-the-tests-know"


@dataclass
class RunningServer:
    """A server: its address, its jobs, the lines of its log, the folder that its own one is in."""

    address: str
    jobs: Jobs
    folder: Path
    log: list[str] = field(default_factory=list)

    @property
    def client(self) -> Client:
        """A client with the right token."""
        return Client(self.address, TOKEN)

    def files(self) -> list[Path]:
        """Return all files of its jobs."""
        while True:
            try:
                return [path for path in self.folder.rglob("jobs/**/*") if path.is_file()]
            except FileNotFoundError:  # a job was removed meanwhile
                continue


@contextmanager
def running_server(
    folder: Path, manifest: Path | None = None, patience: float = 20.0, **settings: Any
) -> Iterator[RunningServer]:
    """Run a server in a folder; ``patience`` is how long a sender may be silent."""
    lines: list[str] = []
    manifest_path = None if manifest is None else str(manifest)
    chosen = ServerSettings(port=0, folder=folder, manifest=manifest_path, device="cpu", **settings)
    with prepared(chosen, TOKEN, lines.append) as (server, listening, jobs):
        guard: Any = server.config.app
        guard._patience = patience
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        end = time.monotonic() + PATIENCE
        while not server.started:
            assert thread.is_alive() and time.monotonic() < end
            time.sleep(0.01)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            yield RunningServer(address, jobs, folder, lines)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
