"""Having many cases done by a Dask cluster: a few at a time, again where that may help, each ending in one row."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from segmamba.batch.case import Row, do_case
from segmamba.batch.cases import Case
from segmamba.batch.outcome import failed_row, left_out_row
from segmamba.batch.plan import Plan
from segmamba.errors import Cancelled, SegMambaError, WorkerError

if TYPE_CHECKING:
    from distributed import Client, Future

# Seconds between looks at the wish to stop and at how many workers there are.
POLL = 0.5
DIED = "The worker died again and again at this case, most likely because memory ran out: segment it alone to see why."
LOST = "The connection to the Dask scheduler is lost: give the same command again, what is done stays done."
WAITING = "The cluster has no worker yet: waiting for one."
STOPPED = "The batch was stopped: give the same command again to go on, what is done stays done."


def wait_for_workers(client: Client, stopped: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Return when the cluster has a worker; a queue may take hours to start one.

    Raises
    ------
    Cancelled
        ``stopped`` said so.
    WorkerError
        The scheduler is gone.
    """
    if not _workers(client):
        say(WAITING)
    while not _workers(client):
        if stopped():
            raise Cancelled(STOPPED)
        time.sleep(POLL)


def look_through(
    client: Client, stopped: Callable[[], bool], function: Callable[[Any], list[Case]], places: Sequence[Any]
) -> Iterator[list[Case]]:
    """Give what a function finds at each of many places, in their order, as a cluster's ``map`` that can be stopped.

    Raises
    ------
    Cancelled
        ``stopped`` said so.
    WorkerError
        The scheduler is gone, or a worker ended in an error that is not foreseen.
    SegMambaError
        As the function.
    """
    with _connection():
        futures = client.map(function, places, pure=False)
    for future in futures:
        while not _finished([future]):
            if stopped():
                raise Cancelled(STOPPED)
        if future.status == "error":
            error = future.exception()
            if isinstance(error, SegMambaError):
                raise error
            raise WorkerError(f"The inputs cannot be looked through ({_described(error)}): report it.") from error
        yield _result(future)


def run_cases(
    client: Client, cases: Sequence[Case], plan: Plan, retries: int, stopped: Callable[[], bool]
) -> Iterator[Row]:
    """Do cases, and give the row of each as soon as it is known.

    No more cases are with the cluster than it has workers, so that memory stays flat with any number of them.

    Parameters
    ----------
    client : Client
        From `segmamba.batch.cluster.connected`.
    cases : sequence of Case
    plan : Plan
    retries : int
        How often a case is tried again after its engine or worker died, or memory ran out; the last time on the
        processor, where the device is "auto".
    stopped : callable
        Asked twice a second.

    Raises
    ------
    Cancelled
        ``stopped`` said so.
    WorkerError
        The scheduler is gone.
    """
    waiting = deque((case, 1) for case in cases if not case.left_out and not case.error)
    running: dict[Future, tuple[Case, int]] = {}
    yield from (left_out_row(case, plan) for case in cases if case.left_out)
    yield from (failed_row(case, plan, case.error, attempts=0) for case in cases if case.error)
    while waiting or running:
        if stopped():
            raise Cancelled(STOPPED)
        for _ in range(min(_workers(client) - len(running), len(waiting))):
            case, attempt = waiting.popleft()
            device = _last_resort(plan) if attempt == retries + 1 > 1 else None
            with _connection():
                future = client.submit(_do_case_in_worker, case, plan, attempt, device, client.id, pure=False)
            running[future] = case, attempt
        for future in _finished(list(running)):
            case, attempt = running.pop(future)
            row, again = _outcome(future, case, plan, attempt)
            if again and attempt <= retries:
                # At the end of the line: what made it fail may be over by then.
                waiting.append((case, attempt + 1))
            else:
                yield row


def _do_case_in_worker(case: Case, plan: Plan, attempt: int, device: str | None, run: str) -> tuple[Row, bool]:
    from segmamba.batch.engine import own_engine

    return do_case(case, plan, attempt, own_engine(run).run, device)


def _last_resort(plan: Plan) -> str | None:
    return "cpu" if plan.request["options"]["device"] == "auto" else None


def _workers(client: Client) -> int:
    # Asked while it tries to connect again, for half a minute, Dask waits. The cases are lost to it anyway.
    if client.status != "running":
        raise WorkerError(LOST)
    with _connection():
        return len(client.nthreads())


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """Say in one way that the scheduler is gone; Dask has many, which differ between its versions."""
    try:
        yield
    except Exception as error:
        raise WorkerError(LOST) from error


def _finished(futures: list[Future]) -> list[Future]:
    """Return the futures that are over; wait for one, but not long."""
    from distributed import TimeoutError as DaskTimeoutError
    from distributed import wait

    if not futures:
        time.sleep(POLL)
        return []
    with _connection():
        try:
            over = wait(futures, timeout=POLL, return_when="FIRST_COMPLETED").done
        except (TimeoutError, DaskTimeoutError):
            return []
    # One that is "lost" with the worker that had its result is done again by Dask itself.
    return [future for future in over if future.status in ("finished", "error")]


def _outcome(future: Future, case: Case, plan: Plan, attempt: int) -> tuple[Row, bool]:
    from distributed import KilledWorker

    if future.status != "error":
        outcome: tuple[Row, bool] = _result(future)
        return outcome
    error = future.exception()
    if isinstance(error, KilledWorker):
        return failed_row(case, plan, DIED, attempt), True
    text = f"The worker ended in an unexpected error ({_described(error)}): report it."
    return failed_row(case, plan, text, attempt), False


def _result(future: Future) -> Any:
    with _connection():
        return future.result()


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
