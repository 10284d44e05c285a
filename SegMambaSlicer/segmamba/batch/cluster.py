"""The workers of a running Dask cluster. Nothing else in this package imports Dask."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import distributed

from segmamba.batch import engine
from segmamba.batch.batch_case import BatchCase
from segmamba.batch.case import do_case
from segmamba.batch.outcome import Row
from segmamba.batch.plan import Plan
from segmamba.batch.pool import POLL, WorkerKilled
from segmamba.errors import WorkerError

CONNECT_SECONDS = 30
PREFIX = "segmamba-engine-"
LOST = "The connection to the Dask scheduler is lost: give the same command again to resume, finished cases are kept."


class EnginePlugin(distributed.WorkerPlugin):
    """Gives each worker of a cluster an engine.

    Parameters
    ----------
    make_engine : callable
        Called in each worker.
    """

    def __init__(self, make_engine: Callable[[], engine.Engine]) -> None:
        self._make_engine = make_engine

    def setup(self, worker: distributed.Worker) -> None:
        """Dask calls this once in each worker."""
        self.engine = self._make_engine()

    def teardown(self, worker: distributed.Worker) -> None:
        """Dask calls this when the worker closes or the run is over."""
        self.engine.stop()


class ClusterPool:
    """A `segmamba.batch.pool.Pool` of Dask workers that have an `EnginePlugin` each."""

    def __init__(self, client: distributed.Client) -> None:
        self.client = client

    def size(self) -> int:
        # Asked while it tries to connect again, for half a minute, Dask waits. The cases are lost to it anyway.
        if self.client.status != "running":
            raise WorkerError(LOST)
        with _connection():
            return len(self.client.nthreads())

    def submit(self, function: Callable[[Any], Any], argument: Any) -> distributed.Future[Any]:
        with _connection():
            return self.client.submit(function, argument, pure=False)

    def submit_case(self, case: BatchCase, plan: Plan, attempt: int, device: str | None) -> distributed.Future[Any]:
        with _connection():
            return self.client.submit(_do_case, case, plan, attempt, device, self.client.id, pure=False)

    def finished(self, futures: Sequence[distributed.Future[Any]]) -> list[distributed.Future[Any]]:
        if not futures:
            time.sleep(POLL)
            return []
        with _connection():
            try:
                over = distributed.wait(futures, timeout=POLL, return_when="FIRST_COMPLETED").done
            except (TimeoutError, distributed.TimeoutError):
                return []
        # One that is "lost" with the worker that had its result is done again by Dask itself.
        return [future for future in over if future.status in ("finished", "error")]

    def result(self, future: distributed.Future[Any]) -> Any:
        if future.status != "error":
            with _connection():
                return future.result()
        with _connection():
            error = future.exception()
        raise WorkerKilled if isinstance(error, distributed.KilledWorker) else error


@contextlib.contextmanager
def cluster_pool(scheduler: str, log: Callable[[str], None]) -> Iterator[ClusterPool]:
    """Give the workers of a running Dask cluster, with engines that end with the block.

    Parameters
    ----------
    scheduler : str
        The scheduler's address, or the file that it has written its address to.
    log : callable
        Gets the address of Dask's dashboard where there is one.

    Raises
    ------
    WorkerError
        The scheduler does not answer.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        where = {"scheduler_file": scheduler} if os.path.isfile(scheduler) else {"address": scheduler}
        client = distributed.Client(**where, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise WorkerError(f"The Dask scheduler at {scheduler} does not answer ({text}): check the address.") from error
    with client:
        # It is drawn with bokeh, which is not needed otherwise.
        if find_spec("bokeh"):
            log(f"Dask's dashboard: {client.dashboard_link}")
        # Each run has engines of its own: another one on the same cluster ends its own only.
        name = PREFIX + client.id
        client.register_plugin(EnginePlugin(engine.Engine), name)
        try:
            yield ClusterPool(client)
        finally:
            # Engines of a cluster that stays up must not keep their memory.
            if client.status == "running":
                with contextlib.suppress(Exception):
                    client.unregister_worker_plugin(name)


def own_engine(run: str) -> engine.Engine:
    """Return the engine that a run, named by the id of its client, has in the Dask worker that this is called in."""
    plugin = distributed.get_worker().plugins[PREFIX + run]
    assert isinstance(plugin, EnginePlugin)
    return plugin.engine


def _do_case(case: BatchCase, plan: Plan, attempt: int, device: str | None, run: str) -> tuple[Row, bool]:
    return do_case(case, plan, attempt, own_engine(run).run, device)


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """Say in one way that the scheduler is gone; Dask has many, which differ between its versions."""
    try:
        yield
    except Exception as error:
        raise WorkerError(LOST) from error
