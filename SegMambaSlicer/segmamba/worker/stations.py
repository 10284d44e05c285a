"""Jobs of a worker side by side: while the networks run on one, the next is read and the last is written."""

from __future__ import annotations

import threading
from collections.abc import Callable

from segmamba.errors import Cancelled
from segmamba.utils.memory import peak_memory, system_memory

# Where a job is in each of its stages (`segmamba.inference.file_to_file.segment_file`).
STATIONS = {"read": 0, "load": 1, "preprocess": 1, "predict": 1, "postprocess": 2, "write": 2}
DEPTH = 3
# Seconds between two looks at the wish to cancel and at the free memory.
POLL = 0.1


def has_room() -> bool:
    """Say whether one more job fits into main memory: as much is free as all of this process ever took."""
    peak = peak_memory()
    return 0 < peak <= system_memory()[1]


class Stations:
    """The way of jobs through a worker: each station has one job at a time, and none overtakes another.

    The first job goes alone: it shows how much memory a job takes, and on a GPU it compiles and records.

    Parameters
    ----------
    room : callable
        Says whether another job may begin beside those on their way.
    """

    def __init__(self, room: Callable[[], bool] = has_room) -> None:
        self._room = room
        self._changed = threading.Condition()
        self._places: dict[str, int] = {}
        self._known = False

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
            self._known = self._known or done
            self._changed.notify_all()

    def _free(self, job: str, station: int) -> bool:
        others = [place for other, place in self._places.items() if other != job]
        if station in others:
            return False
        return job in self._places or not others or (self._known and self._room())
