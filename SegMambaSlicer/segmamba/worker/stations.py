"""Jobs of a worker side by side: while the networks run on one, the next is read and the last is written."""

from __future__ import annotations

import threading
from collections.abc import Callable

from segmamba.errors import Cancelled
from segmamba.utils.memory import current_memory, peak_memory, system_memory

# Where a job is in each of its stages (`segmamba.inference.file_to_file.segment_file`).
STATIONS = {"read": 0, "load": 1, "preprocess": 1, "predict": 1, "postprocess": 2, "write": 3}
# Two are written at a time: drawing the preview of one takes longer than the networks of the next.
WRITING, WRITERS = STATIONS["write"], 2
DEPTH = max(STATIONS.values()) + WRITERS
# Seconds between two looks at the wish to cancel and at the free memory.
POLL = 0.1


def process_memory() -> tuple[int, int]:
    """Return the most main memory in bytes that this process ever had, and what it could have now."""
    return peak_memory(), current_memory() + system_memory()[1]


class Stations:
    """The way of jobs through a worker: a station has one job at a time, the last one two, and none overtakes another.

    The first job goes alone: it shows how much memory a job takes, and on a GPU it compiles and records. Another one
    begins only where there is memory for as many such jobs.

    Parameters
    ----------
    memory : callable
        See `process_memory`.
    """

    def __init__(self, memory: Callable[[], tuple[int, int]] = process_memory) -> None:
        self._memory = memory
        self._changed = threading.Condition()
        self._places: dict[str, int] = {}
        self._one = 0

    def enter(self, job: str, stage: str, cancelled: Callable[[], bool]) -> None:
        """Bring a job to the station of a stage, once that is free; it leaves the one before only then.

        Raises
        ------
        Cancelled
            It is to stop.
        """
        station = STATIONS[stage]
        with self._changed:
            while not self._free(job, station):
                if cancelled():
                    raise Cancelled()
                self._changed.wait(POLL)
            self._places[job] = station
            self._changed.notify_all()

    def leave(self, job: str, done: bool) -> None:
        """Take a job off its way; ``done`` if it went all of it."""
        with self._changed:
            self._places.pop(job, None)
            if done and not self._one:
                self._one = self._memory()[0]
            self._changed.notify_all()

    def _free(self, job: str, station: int) -> bool:
        others = [place for other, place in self._places.items() if other != job]
        if others.count(station) >= (WRITERS if station == WRITING else 1):
            return False
        if job in self._places or not others:
            return True
        return 0 < self._one * (len(others) + 1) <= self._memory()[1]
