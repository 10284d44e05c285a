"""A whole run: from inputs to a folder of results with their table and their overview."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from segmamba.batch.batch_case import BatchCase
from segmamba.batch.case_record import is_of_other_version, read_record
from segmamba.batch.cases import find_cases
from segmamba.batch.channels import cases_of_channels
from segmamba.batch.dispatch import run_cases, stoppable_map, wait_for_workers
from segmamba.batch.layout import CASES, LOCK, ROWS, clear, prepare
from segmamba.batch.local import LocalPool, local_pool
from segmamba.batch.outcome import Row, done_row
from segmamba.batch.overview import write_overview
from segmamba.batch.plan import FORMATS, Plan, make_plan
from segmamba.batch.pool import Pool
from segmamba.batch.progress import Progress
from segmamba.batch.table import check_pyarrow, write_table
from segmamba.errors import InputError, InstallationError, OutputError, SegMambaError
from segmamba.request import Request
from segmamba.utils.words import counted


@dataclass(frozen=True)
class BatchSettings:
    """How the cases of a batch are done, whatever the model.

    Attributes
    ----------
    format : str
        Of the segmentations, one of `segmamba.batch.plan.FORMATS`.
    scheduler : str or None
        Address or file of a Dask scheduler, whose workers do the cases; None runs them on this computer.
    workers : int or None
        How many on this computer, as for `segmamba.batch.local.local_pool`.
    retries : int
        As for `segmamba.batch.dispatch.run_cases`.
    """

    format: str = FORMATS[0]
    scheduler: str | None = None
    workers: int | None = None
    retries: int = 3


class Source(Protocol):
    """Where the cases of a batch come from, and what is done with each."""

    def find(
        self, pool: Pool, folder: Path, stopped: Callable[[], bool], log: Callable[[str], None]
    ) -> list[BatchCase]:
        """Return the cases; SegMambaError as for `run_batch`."""

    def workers(
        self, settings: BatchSettings, device: str, log: Callable[[str], None]
    ) -> contextlib.AbstractContextManager[Pool]:
        """Return workers that do the cases."""


@dataclass(frozen=True)
class Files:
    """Cases from folders, files and patterns."""

    inputs: Sequence[str]

    def find(
        self, pool: Pool, folder: Path, stopped: Callable[[], bool], log: Callable[[str], None]
    ) -> list[BatchCase]:
        # Threads of this process cannot be abandoned, so a search in them has to be able to end early.
        give_up = stopped if isinstance(pool, LocalPool) else None
        return find_cases(self.inputs, folder, partial(stoppable_map, pool, stopped), log, give_up)

    def workers(
        self, settings: BatchSettings, device: str, log: Callable[[str], None]
    ) -> contextlib.AbstractContextManager[Pool]:
        return _workers(settings, device, log)


def run_batch(
    source: Source | Sequence[str],
    folder: Path,
    request: Request,
    settings: BatchSettings,
    stopped: Callable[[], bool],
    log: Callable[[str], None],
    make_progress: Callable[[int], Progress],
) -> Progress:
    """Segment all cases of a source that are not done yet, and write their table and overview.

    Parameters
    ----------
    source : Source, or sequence of str
        Folders, files and patterns if they are texts.
    folder : Path
        Of the results; made where it is missing.
    request : Request
        Task or model and the options.
    settings : BatchSettings
    stopped : callable
        Says whether to stop.
    log : callable
        Gets lines for people, before the first case.
    make_progress : callable
        Gets the number of cases and returns what shows their rows.

    Returns
    -------
    Progress
        With the counts.

    Raises
    ------
    SegMambaError
        The run as a whole ends; a case's own error is only a row.
    """
    source = Files(source) if isinstance(source, Sequence) else source
    check_pyarrow()
    plan = make_plan(request, folder, settings.format)
    with _locked(folder), source.workers(settings, request.options.device, log) as pool:
        wait_for_workers(pool, stopped, log)
        cases = source.find(pool, folder, stopped, log)
        if plan.channels:
            cases = cases_of_channels(cases, plan.channels)
        if is_of_other_version(folder / CASES, (case.name for case in cases)):
            log(f"{folder} has results of another version of this software: their cases are segmented again.")
        log(counted(len(cases), "case"))
        with make_progress(len(cases)) as progress, _result_files(plan, cases) as add:
            for row in run_cases(pool, cases, plan, settings.retries, stopped):
                add(row)
                progress.add(row)
    return progress


def _workers(
    settings: BatchSettings, device: str, log: Callable[[str], None]
) -> contextlib.AbstractContextManager[Pool]:
    """Return the workers on this computer or, where a scheduler is given, those of a Dask cluster."""
    if settings.scheduler is None:
        return local_pool(settings.workers, device)
    if settings.workers is not None:
        raise InputError("--workers is for a run without --scheduler: a cluster has its own workers, leave it out.")
    if find_spec("distributed") is None:
        raise InstallationError(
            "--scheduler needs dask.distributed: install it with 'pip install \"segmamba-slicer[batch,cluster]\"'."
        )
    from segmamba.batch.cluster import cluster_pool

    return cluster_pool(settings.scheduler, log)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder; the system frees the lock of a process that dies."""
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
def _result_files(plan: Plan, cases: Sequence[BatchCase]) -> Iterator[Callable[[Row], None]]:
    """Give a function that writes a row to a file; at the end, the table and the overview are made of this file.

    If the run stops early, they also contain the cases that an earlier run has done with the same settings.
    """
    folder = Path(plan.folder)
    rows = folder / ROWS
    stopped: SegMambaError | None = None
    without_row = {case.name for case in cases}
    with rows.open("w", encoding="utf-8") as stream:

        def add(row: Row) -> None:
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
                    # The next run segments a case with a damaged report again.
                    with contextlib.suppress(OSError, ValueError, KeyError):
                        add(done_row(record, plan, folder / CASES / name, this_run=False))
    write_table(rows, folder, plan.structures)
    write_overview(rows, folder, plan)
    if stopped is not None:
        raise stopped
