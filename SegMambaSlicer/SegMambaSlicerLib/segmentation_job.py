"""A run that goes on while Slicer stays usable: a timer asks for news, nothing waits for it.

Files are written and read by a thread, the network runs in the worker process, and only the scene is changed here,
segment by segment between Slicer's other events.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as waitFor
from typing import Any

import qt
import slicer

from segmamba.errors import ERRORS_BY_NAME, Cancelled, SegMambaError, WorkerError
from segmamba.worker.client import WorkerProcess
from segmamba_mrml.segment import SegmentationCase
from SegMambaSlicerLib.signal import Signal

INTERVAL_MS = 50
# Python's other threads, which read from the worker, only run while the main thread waits or runs Python.
LISTENING_S = 0.005
# While files are written and read, that thread gets most of the time; a person does not notice pauses this short.
THREAD_INTERVAL_MS, THREAD_LISTENING_S = 5, 0.02
# Segments are added for this long at a time.
ADDING_S = 0.02


class SegmentationJob:
    """One volume being segmented; made by the logic's ``segmentAsync``.

    Parameters
    ----------
    worker : WorkerProcess
    case : SegmentationCase
        What to segment.
    log : deque of str
        What the worker's log thread has written.

    Attributes
    ----------
    progressed : Signal
        Emitted with the stage's name and the fraction of it that is done.
    ended : Signal
        Emitted with this job, once, when it has ended in whatever way.
    logged : Signal
        Emitted with each line of the worker's log.
    item, items : int
        A volume is the first of one.
    finished : bool
    node : vtkMRMLSegmentationNode or None
        The result, once there is one.
    report : dict or None
        The engine's.
    error : Exception or None
        Why there is no result.

    Raises
    ------
    SegMambaError
        The run cannot start; nothing was changed.
    """

    def __init__(self, worker: WorkerProcess, case: SegmentationCase, log: deque[str]) -> None:
        self.progressed, self.ended, self.logged = Signal(), Signal(), Signal()
        self.item, self.items = 0, 1
        self.finished = False
        self.node: Any = None
        self.report: dict[str, Any] | None = None
        self.error: Exception | None = None
        self._worker, self._case, self._log = worker, case, log
        self._id: str | None = None
        self._future: Future[None] | None = None
        self._steps: Generator[Any, None, None] | None = None
        self._growing: Any = None
        try:
            # It loads its packages while the volume is being written.
            worker.start()
        except SegMambaError:
            self._case.close()
            raise
        self._executor = ThreadPoolExecutor(1)
        self._timer = qt.QTimer()
        # Started again at the end of each look, so that two never overlap.
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self._poll)
        self._inThread(self._case.export)
        self._timer.start(THREAD_INTERVAL_MS)

    def cancel(self) -> None:
        """Stop at once; the scene stays as it is.

        The worker is ended and not asked: a window may take it longer than a person waits. The next run starts
        another one. What it was writing are temporary files.
        """
        if not self.finished:
            self._worker.kill()
            self._end(Cancelled("The job was cancelled; the scene is unchanged."))

    def wait(self) -> Any:
        """Wait for the end, with Slicer's events processed, and return the segmentation node.

        Raises
        ------
        SegMambaError
            With a sentence that says what to do.
        """
        waitForEnd(self)
        return self.node

    @property
    def _listens(self) -> bool:
        """Whether it is the worker's turn."""
        return self._future is None and self._steps is None

    def _poll(self) -> None:
        try:
            self._lookAtLog()
            if not self.finished:
                self._goOn()
        finally:
            if not self.finished:
                self._timer.start(INTERVAL_MS if self._listens else THREAD_INTERVAL_MS)

    def _lookAtLog(self) -> None:
        while self._log:
            self.logged.emit(self._log.popleft())

    def _goOn(self) -> None:
        """Do the next piece of work, or hear what the worker says."""
        if self._listens:
            self._listen()
            return
        problem: Exception | None = None
        complete = False
        try:
            if self._steps is not None:
                complete = self._addSegments(self._steps)
            elif self._future is not None and waitFor([self._future], THREAD_LISTENING_S).done:
                future, self._future = self._future, None
                future.result()
                self._afterThread()
        except Exception as error:
            # Kept for whoever waits, who may be the panel or a script.
            problem = error
        if complete or problem is not None:
            self._end(problem)

    def _inThread(self, work: Callable[[], None]) -> None:
        self._future = self._executor.submit(work)

    def _afterThread(self) -> None:
        if self.report is None:
            self._id = self._worker.submit(self._case.request)
        else:
            self._steps = self._case.finish_in_steps(self.report)

    def _addSegments(self, steps: Generator[Any, None, None]) -> bool:
        """Add some segments, and tell whether those were the last."""
        end = time.perf_counter() + ADDING_S
        while True:
            try:
                self._growing = next(steps)
            except StopIteration:
                return True
            if time.perf_counter() >= end:
                return False

    def _listen(self) -> None:
        # A callback may cancel, so it is asked again after each message.
        while not self.finished and self._future is None:
            message = self._worker.poll(LISTENING_S)
            if message is None:
                return
            if message.get("id") in (self._id, None):
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "progress":
            self.progressed.emit(message["stage"], message["fraction"])
        elif message["type"] == "error":
            self._end(ERRORS_BY_NAME.get(message["error"], WorkerError)(self._case.named(message["message"])))
        elif message["type"] == "result":
            self.report = self._case.noted(message["report"])
            self._inThread(self._case.read)

    def _end(self, error: Exception | None) -> None:
        self.error, self.finished = error, True
        self._timer.stop()
        if error is None:
            self.node = self._growing
        else:
            self.report = None
        if self._steps is not None:
            # Takes back what was added, if that was not all.
            self._steps.close()
        self._case.stop()
        if self._future is not None:
            waitFor([self._future], THREAD_LISTENING_S)
        self._executor.shutdown(wait=False)
        self._case.close()
        self.ended.emit(self)


def waitForEnd(job: Any) -> None:
    """Wait for the end of a job, with Slicer's events processed, and raise its error if it has one."""
    while not job.finished:
        slicer.app.processEvents()
        time.sleep(LISTENING_S)
    if job.error is not None:
        raise job.error
