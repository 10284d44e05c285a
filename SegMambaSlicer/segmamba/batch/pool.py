"""What a batch asks of its workers, whether they are threads of this process or a Dask cluster's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from segmamba.batch.batch_case import BatchCase
from segmamba.batch.plan import Plan

# Seconds between two looks at the wish to stop and at the number of workers.
POLL = 0.5


class WorkerKilled(Exception):
    """The process of a worker died several times at one call."""


class Pool(Protocol):
    """Workers that do one call each at a time, and have an engine each; a future stands for a call's result."""

    def size(self) -> int:
        """Return the number of workers, which may change; WorkerError if the connection to them is lost."""

    def submit(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Have a function called, and return the future; WorkerError as above."""

    def submit_case(self, case: BatchCase, plan: Plan, attempt: int, device: str | None) -> Any:
        """Have `segmamba.batch.case.do_case` called with the worker's engine, and return the future."""

    def finished(self, futures: Sequence[Any]) -> list[Any]:
        """Return the futures that are over, after waiting up to `POLL` seconds for the first one."""

    def result(self, future: Any) -> Any:
        """Return what a finished call returned.

        Raises
        ------
        Exception
            What the call raised.
        WorkerKilled
            Its worker died.
        WorkerError
            The connection to the workers is lost.
        """
