"""A whole run: from inputs to a folder of results with their table and their overview."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from segmamba.batch.case_record import read_record
from segmamba.batch.cases import Case, find_cases
from segmamba.batch.dispatch import look_through, run_cases, wait_for_workers
from segmamba.batch.layout import CASES, LOCK, ROWS, clear, prepare
from segmamba.batch.local import local_pool
from segmamba.batch.outcome import done_row
from segmamba.batch.overview import write_overview
from segmamba.batch.plan import Plan, make_plan
from segmamba.batch.pool import Pool
from segmamba.batch.progress import Progress
from segmamba.batch.table import check_pyarrow, write_table
from segmamba.errors import InputError, InstallationError, OutputError, SegMambaError
from segmamba.request import Request


def run_batch(
    inputs: Sequence[str],
    folder: Path,
    request: Request,
    output_format: str,
    scheduler: str | None,
    workers: int | None,
    retries: int,
    stopped: Callable[[], bool],
    say: Callable[[str], None],
    show: Callable[[int], Progress],
) -> Progress:
    """Segment all cases of the inputs that are not done yet, and write their table and overview.

    Parameters
    ----------
    inputs : sequence of str
        Folders, files and patterns.
    folder : Path
        Of the results; made where it is missing.
    request : Request
        Task or model and the options.
    output_format : str
        One of `segmamba.batch.plan.FORMATS`.
    scheduler : str or None
        Address or file of a Dask scheduler, whose workers do the cases; None runs them on this computer.
    workers : int or None
        How many on this computer, as for `segmamba.batch.local.local_pool`.
    retries : int
        As for `segmamba.batch.dispatch.run_cases`.
    stopped : callable
        Whether to stop.
    say : callable
        Gets lines for people, before the first case.
    show : callable
        Gets the number of cases and returns what shows their rows.

    Returns
    -------
    Progress
        With the counts.

    Raises
    ------
    SegMambaError
        The run as a whole cannot go on; a case's own error is only a row.
    """
    check_pyarrow()
    plan = make_plan(request, folder, output_format)
    with _alone(folder), _workers(scheduler, workers, request.options.device, say) as pool:
        wait_for_workers(pool, stopped, say)
        # Threads of this process cannot be abandoned, so a search in them has to be able to end early.
        give_up = stopped if scheduler is None else None
        cases = find_cases(inputs, folder, partial(look_through, pool, stopped), say, give_up)
        say(f"{len(cases)} cases")
        with show(len(cases)) as progress, _reported(plan, cases) as add:
            for row in run_cases(pool, cases, plan, retries, stopped):
                add(row)
                progress.add(row)
    return progress


def _workers(
    scheduler: str | None, workers: int | None, device: str, say: Callable[[str], None]
) -> contextlib.AbstractContextManager[Pool]:
    """Return the workers on this computer or, where a scheduler is given, those of a Dask cluster."""
    if scheduler is None:
        return local_pool(workers, device)
    if workers is not None:
        raise InputError("--workers is for a run without --scheduler: a cluster has its own workers, leave it out.")
    if find_spec("distributed") is None:
        raise InstallationError(
            "--scheduler needs dask.distributed: install it with 'pip install \"segmamba-slicer[batch,cluster]\"'."
        )
    from segmamba.batch.cluster import cluster_pool

    return cluster_pool(scheduler, say)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let no second run into the folder; the system frees the lock of a process that dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"Another batch is writing to {folder}: wait for it, or choose another folder.") from error
    except OSError as error:
        raise OutputError(
            f"The folder {folder} cannot be written to ({error.strerror}): choose another one."
        ) from error
    try:
        prepare(folder)
        yield
    finally:
        clear(folder)
        lock.release()


@contextlib.contextmanager
def _reported(plan: Plan, cases: Sequence[Case]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that writes a row down; at the end table and overview are made.

    Those of a run that stops also have the cases that it did not come to and that were done with these settings before.
    """
    folder = Path(plan.folder)
    rows = folder / ROWS
    stopped: SegMambaError | None = None
    without_row = {case.name for case in cases}
    with rows.open("w", encoding="utf-8") as stream:

        def add(row: dict[str, Any]) -> None:
            without_row.discard(row["case"])
            stream.write(json.dumps(row) + "\n")
            stream.flush()

        try:
            yield add
        except SegMambaError as error:
            stopped = error
            for name in sorted(without_row):
                record = read_record(folder / CASES / name)
                if record is not None and record.settings == plan.settings:
                    # A damaged report is for the next run to mend.
                    with contextlib.suppress(OSError, ValueError, KeyError):
                        add(done_row(record, plan, folder / CASES / name, this_run=False))
    write_table(rows, folder, plan.structures)
    write_overview(rows, folder, plan)
    if stopped is not None:
        raise stopped
