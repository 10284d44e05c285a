"""Ends a worker that hangs: one that has a job and says nothing for much longer than any step of a job takes."""

from __future__ import annotations

import threading

from segmamba.utils.child import Child

# A window on a slow processor, compiling for a new GPU or reading from a network drive take a minute or two.
PATIENCE = 900.0
INTERVAL = 1.0


class Watchdog:
    """Ends a child process that was silent for too long while it had work.

    Time is counted in looks of its own thread, not read from a clock: neither a clock that is set nor a computer that
    slept makes a worker look dead.

    Parameters
    ----------
    child : Child
    patience : float
        Seconds.

    Attributes
    ----------
    ended_it : bool
        Whether it has ended the process.
    """

    def __init__(self, child: Child, patience: float = PATIENCE) -> None:
        self.ended_it = False
        self.patience = patience
        self._child = child
        self._jobs = 0
        self._silent = 0.0
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def job_given(self) -> None:
        """The process has one job more."""
        self._jobs += 1
        self._silent = 0.0

    def heard(self, job_done: bool) -> None:
        """The process has said something, perhaps that a job is over."""
        self._jobs -= job_done
        self._silent = 0.0

    def _watch(self) -> None:
        interval = min(INTERVAL, self.patience / 4)
        while self._child.wait(interval) is None:
            self._silent = self._silent + interval if self._jobs > 0 else 0.0
            if self._silent > self.patience:
                self.ended_it = True
                self._child.end()
