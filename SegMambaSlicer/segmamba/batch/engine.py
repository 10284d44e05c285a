"""The engine of a Dask worker: one child process (`segmamba.worker.client.Worker`) that stays up between cases."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

from distributed import WorkerPlugin, get_worker

from segmamba.errors import WorkerError
from segmamba.request import Request
from segmamba.worker.client import Worker, worker_environment

PREFIX = "segmamba-engine-"
VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"
# Importing torch from a busy network drive can take minutes.
START_SECONDS = 300.0
# A start that fails says nothing of the case that waits for it, so it does not count as an attempt at it.
STARTS = 3


class Engine(WorkerPlugin):  # type: ignore[misc]
    """Runs one case at a time in a child process; weights load once, and a crash of the child is only an error.

    Parameters
    ----------
    gpus : int
        GPUs that the workers of this computer share, the worker with the name N having number N modulo ``gpus``; 0
        leaves the choice to the worker's environment.
    threads : int
        Threads of each engine on the processor; 0 leaves it to the environment.
    """

    def __init__(self, gpus: int = 0, threads: int = 0) -> None:
        self._gpus = gpus
        self._threads = threads

    def setup(self, worker: Any) -> None:
        """Dask calls this once in each worker."""
        extra = {}
        if self._gpus > 0:
            extra[VISIBLE] = gpu_of(int(worker.name), self._gpus)
        if self._threads > 0 and THREADS not in os.environ:
            extra[THREADS] = str(self._threads)
        self._lock = threading.Lock()
        self._over = False
        self._worker = Worker(environment=extra, preload=True)

    def teardown(self, worker: Any) -> None:
        """Dask calls this when the worker closes or the run is over: the child ends at once."""
        # A case whose engine is still starting must not start it again.
        self._over = True
        self._worker.kill()

    def run(self, request: Request) -> dict[str, Any]:
        """Do a case and return its report.

        Raises
        ------
        SegMambaError
            As `segmamba.worker.client.Worker.run`.
        """
        with self._lock:
            self._wait_until_ready()
            return self._worker.run(request)

    def _wait_until_ready(self) -> None:
        text = ""
        for _ in range(STARTS):
            if self._over:
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


def own_engine(run: str) -> Engine:
    """Return the engine that a run, named by the id of its client, has in the Dask worker that this is called in."""
    engine = get_worker().plugins[PREFIX + run]
    assert isinstance(engine, Engine)
    return engine


def gpu_of(number: int, gpus: int) -> str:
    """Return what ``CUDA_VISIBLE_DEVICES`` is for a worker, out of what it is now."""
    visible = [part for part in os.environ.get(VISIBLE, "").split(",") if part] or [str(gpu) for gpu in range(gpus)]
    return visible[number % len(visible)]


def count_gpus() -> int:
    """Return how many GPUs PyTorch can use here. Asked in a child process: torch is not loaded into this one."""
    program = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=worker_environment())
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdecimal() else 0
