"""Runs cases on a pool of workers: a few at a time, again where that may help, each ending in one row."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from segmamba.batch.batch_case import BatchCase
from segmamba.batch.outcome import Row, failed_row, skipped_row
from segmamba.batch.plan import Plan
from segmamba.batch.pool import POLL, Pool, WorkerKilled
from segmamba.errors import Cancelled, SegMambaError, WorkerError

DIED = "The worker died repeatedly on this case, most likely because it ran out of memory: segment it alone to see why."
WAITING = "The cluster has no worker yet: waiting for one."
STOPPED = "The batch was stopped: give the same command again to resume it, finished cases are kept."


def wait_for_workers(pool: Pool, stopped: Callable[[], bool], log: Callable[[str], None]) -> None:
    """Return when there is a worker; the queue of a cluster may take hours to start one.

    Raises
    ------
    Cancelled
        ``stopped`` said so.
    WorkerError
        The connection to the workers is lost.
    """
    if not pool.size():
        log(WAITING)
    while not pool.size():
        if stopped():
            raise Cancelled(STOPPED)
        time.sleep(POLL)


def stoppable_map(
    pool: Pool, stopped: Callable[[], bool], function: Callable[[Any], list[BatchCase]], places: Sequence[Any]
) -> Iterator[list[BatchCase]]:
    """Give what a function finds at each of many places, in their order, as a ``map`` that can be stopped.

    Raises
    ------
    Cancelled
        ``stopped`` said so.
    WorkerError
        The connection to the workers is lost, or the function ended in an unexpected error.
    SegMambaError
        As the function.
    """
    for future in [pool.submit(function, place) for place in places]:
        over = False
        while not over:
            over = bool(pool.finished([future]))
            if stopped():
                raise Cancelled(STOPPED)
        try:
            found: list[BatchCase] = pool.result(future)
        except SegMambaError:
            raise
        except Exception as error:
            raise WorkerError(f"The inputs cannot be searched ({_described(error)}): report it.") from error
        yield found


def run_cases(
    pool: Pool, cases: Sequence[BatchCase], plan: Plan, retries: int, stopped: Callable[[], bool]
) -> Iterator[Row]:
    """Do cases, and give the row of each as soon as it is known.

    No more cases are submitted than there are workers, so that memory stays flat with any number of them.

    Parameters
    ----------
    pool : Pool
    cases : sequence of BatchCase
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
        The connection to the workers is lost.
    """
    waiting = deque((case, 1) for case in cases if not case.skipped and not case.error)
    running: dict[Any, tuple[BatchCase, int]] = {}
    yield from (skipped_row(case, plan) for case in cases if case.skipped)
    yield from (failed_row(case, plan, case.error, attempts=0) for case in cases if case.error)
    while waiting or running:
        if stopped():
            raise Cancelled(STOPPED)
        for _ in range(min(pool.size() - len(running), len(waiting))):
            case, attempt = waiting.popleft()
            device = _last_resort(plan) if attempt == retries + 1 > 1 else None
            running[pool.submit_case(case, plan, attempt, device)] = case, attempt
        for future in pool.finished(list(running)):
            case, attempt = running.pop(future)
            row, again = _outcome(pool, future, case, plan, attempt)
            if again and attempt <= retries:
                # At the end of the line: what made it fail may be over by then.
                waiting.append((case, attempt + 1))
            else:
                yield row


def _last_resort(plan: Plan) -> str | None:
    return "cpu" if plan.request["options"]["device"] == "auto" else None


def _outcome(pool: Pool, future: Any, case: BatchCase, plan: Plan, attempt: int) -> tuple[Row, bool]:
    try:
        outcome: tuple[Row, bool] = pool.result(future)
        return outcome
    except SegMambaError:
        # The pool's: a case's own error is in its row.
        raise
    except WorkerKilled:
        return failed_row(case, plan, DIED, attempt), True
    except Exception as error:
        text = f"The worker ended in an unexpected error ({_described(error)}): report it."
        return failed_row(case, plan, text, attempt), False


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
