"""The workers of a batch on one computer: threads, each with an engine process of its own, by default as GPUs allow."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from functools import partial
from queue import SimpleQueue
from typing import Any

from segmamba.batch import engine
from segmamba.batch.batch_case import BatchCase
from segmamba.batch.case import DoCase, do_case
from segmamba.batch.outcome import Row
from segmamba.batch.plan import Plan
from segmamba.batch.pool import POLL
from segmamba.errors import InputError
from segmamba.utils.memory import system_memory
from segmamba.utils.parallel import processors
from segmamba.worker.client import worker_environment
from segmamba.worker.stations import DEPTH

# Seconds that nvidia-smi has to answer.
PATIENCE = 10.0
VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"
# Engines that share a GPU: while the Python of one computes, the networks of the other run. Each needs so many
# processors, so much main memory for the cases on their way in it, and so much of the GPU.
SHARING, CORES, MAIN_MEMORY, GPU_MEMORY = 2, 6, 12 * 2**30, 12 * 2**30


class LocalPool:
    """A `segmamba.batch.pool.Pool` of threads, of which some share an engine, as many cases are on their way there.

    The engines are processes already, so all that a crash can take is one of them, and no port is opened.

    Parameters
    ----------
    engines : sequence of Engine
        One for each worker.
    do : callable
        What does a case, as `segmamba.batch.case.do_case`.
    """

    def __init__(self, engines: Sequence[engine.Engine], do: DoCase = do_case) -> None:
        self.engines = tuple(engines)
        self._do = do
        self._free: SimpleQueue[engine.Engine] = SimpleQueue()
        # Each engine gets its first case before one gets a second.
        for one in self.engines * DEPTH:
            self._free.put(one)
        self._own = threading.local()
        self._threads = futures.ThreadPoolExecutor(self.size(), "batch", self._take_engine)

    def size(self) -> int:
        return len(self.engines) * DEPTH

    def submit(self, function: Callable[[Any], Any], argument: Any) -> futures.Future[Any]:
        return self._threads.submit(function, argument)

    def submit_case(self, case: BatchCase, plan: Plan, attempt: int, device: str | None) -> futures.Future[Any]:
        return self._threads.submit(self._do_case, case, plan, attempt, device)

    def finished(self, begun: Sequence[futures.Future[Any]]) -> list[futures.Future[Any]]:
        if not begun:
            time.sleep(POLL)
        return list(futures.wait(begun, POLL, futures.FIRST_COMPLETED).done)

    def result(self, future: futures.Future[Any]) -> Any:
        return future.result()

    def close(self) -> None:
        """End all engines at once; calls that have not begun never do."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for one in self.engines:
            one.stop()
        self._threads.shutdown()

    def _take_engine(self) -> None:
        self._own.engine = self._free.get()

    def _do_case(self, case: BatchCase, plan: Plan, attempt: int, device: str | None) -> tuple[Row, bool]:
        # What may have ended the engine is tried alone in it: then it takes no other case with it.
        return self._do(case, plan, attempt, partial(self._own.engine.run, alone=attempt > 1), device)


@contextlib.contextmanager
def local_pool(workers: int | None, device: str, do: DoCase = do_case) -> Iterator[LocalPool]:
    """Give workers on this computer; their engines start with their first case and end with the block.

    Parameters
    ----------
    workers : int or None
        How many; None is `default_workers`.
    device : str
        What the cases run on, as in `segmamba.request.Options`.
    do : callable
        What does a case.

    Raises
    ------
    InputError
        ``workers`` is not positive.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}: give at least 1.")
    # Asking torch takes seconds: only where there may be GPUs and it is open which to use.
    asked = device in ("auto", "cuda") and shutil.which("nvidia-smi") is not None
    gpus = count_gpus() if asked else 0
    count = workers or default_workers(gpus)
    pool = LocalPool([engine.Engine(engine_environment(number, count, gpus)) for number in range(count)], do)
    try:
        yield pool
    finally:
        pool.close()


def engine_environment(number: int, count: int, gpus: int) -> dict[str, str]:
    """Return the environment variables of one of ``count`` engines: its GPU, or its share of the processors."""
    share = {THREADS: str(max(1, processors() // count))} if count > max(1, gpus) and THREADS not in os.environ else {}
    return share | ({VISIBLE: gpu_of(number, gpus)} if gpus else {})


def default_workers(gpus: int) -> int:
    """Return how many engines a computer gets: two for each of its GPUs where there is room, one without a GPU."""
    many = SHARING * gpus
    if (
        gpus
        and processors() >= many * CORES
        and system_memory()[0] >= many * MAIN_MEMORY
        and smallest_gpu() >= SHARING * GPU_MEMORY
    ):
        return many
    return max(1, gpus)


def smallest_gpu() -> int:
    """Return the bytes of the smallest GPU of the computer; 0 where nvidia-smi does not tell."""
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE)
        return min((int(line) for line in done.stdout.split("\n") if line.strip()), default=0) * 2**20
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0


def gpu_of(number: int, gpus: int) -> str:
    """Return ``CUDA_VISIBLE_DEVICES`` for a worker: one of those that are visible now."""
    visible = [part for part in os.environ.get(VISIBLE, "").split(",") if part] or [str(gpu) for gpu in range(gpus)]
    return visible[number % len(visible)]


def count_gpus() -> int:
    """Return how many GPUs PyTorch can use here. Asked in a child process: torch is not loaded into this one."""
    program = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=worker_environment())
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdecimal() else 0
