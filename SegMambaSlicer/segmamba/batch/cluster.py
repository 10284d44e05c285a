"""The Dask cluster that a run uses: one of its own on this computer, or a running one."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from segmamba.errors import InputError, InstallationError, WorkerError
from segmamba.utils.parallel import processors

if TYPE_CHECKING:
    from distributed import Client

    from segmamba.batch.engine import Engine

LOCAL, HERE = "local", "127.0.0.1"
CONNECT_SECONDS = 30
# Dask's own notes of what happened and its profiler grow with the number of cases.
LOCAL_SETTINGS = {
    "distributed.dashboard.link": f"http://{HERE}:{{port}}/status",
    "distributed.worker.profile.enabled": False,
    "distributed.admin.low-level-log-length": 100,
}


@contextlib.contextmanager
def connected(scheduler: str, workers: int | None, device: str) -> Iterator[Client]:
    """Give a client of a Dask cluster whose workers have an engine each.

    Parameters
    ----------
    scheduler : str
        `LOCAL`, or the address of a running scheduler, or the file that one has written its address to.
    workers : int or None
        For `LOCAL`: how many; None is one a GPU, or one where there is none.
    device : str
        What the cases run on, as in `segmamba.request.Options`.

    Raises
    ------
    InputError
        ``workers`` is given for a running cluster or is not positive.
    InstallationError
        Dask is missing.
    WorkerError
        The scheduler does not answer.
    """
    if find_spec("distributed") is None:
        raise InstallationError(
            "Batches need dask.distributed: install it with 'pip install \"segmamba-slicer[batch]\"'."
        )
    if workers is not None and (scheduler != LOCAL or workers < 1):
        raise InputError("--workers is a number of at least 1 for '--scheduler local': a running cluster has its own.")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    from segmamba.batch.engine import PREFIX

    with _local(workers, device) if scheduler == LOCAL else _running(scheduler) as (client, engine):
        # Each run has engines of its own: another one on the same cluster ends its own only.
        name = PREFIX + client.id
        client.register_plugin(engine, name)
        try:
            yield client
        finally:
            # Engines of a cluster that goes on must not keep their memory.
            if client.status == "running":
                with contextlib.suppress(Exception):
                    client.unregister_worker_plugin(name)


@contextlib.contextmanager
def _local(workers: int | None, device: str) -> Iterator[tuple[Client, Engine]]:
    import dask
    from distributed import Client, LocalCluster

    from segmamba.batch.engine import Engine, count_gpus

    # Asking torch takes seconds: only where there may be GPUs and it is open which to use.
    asked = device in ("auto", "cuda") and shutil.which("nvidia-smi") is not None
    gpus = count_gpus() if asked else 0
    count = workers or max(1, gpus)
    threads = 0 if gpus else max(1, processors() // count) if count > 1 else 0
    # Workers are threads of this process, for the engine of each is a child process already: all that a crash can
    # take is one engine, and cases and results cross no network. Dask's web pages are for this computer only.
    with (
        dask.config.set(LOCAL_SETTINGS),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=False,
            memory_limit=0,
            dashboard_address=f"{HERE}:0",
            worker_dashboard_address=f"{HERE}:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client, Engine(gpus, threads)


@contextlib.contextmanager
def _running(address: str) -> Iterator[tuple[Client, Engine]]:
    from distributed import Client

    from segmamba.batch.engine import Engine

    try:
        where = {"scheduler_file": address} if os.path.isfile(address) else {"address": address}
        client = Client(**where, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise WorkerError(f"The Dask scheduler at {address} does not answer ({text}): check the address.") from error
    with client:
        yield client, Engine()
