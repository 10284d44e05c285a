"""A run that goes on while Slicer stays usable: a timer asks the worker for news, nothing waits for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import qt
import slicer

from segmamba.errors import ERRORS_BY_NAME, Cancelled, SegMambaError, WorkerError
from segmamba.job import Worker
from segmamba_mrml.segment import Case
from SegMambaSlicerLib.choices import Choices

INTERVAL_MS = 50
# Python's other threads, which read from the worker, only run while the main thread waits or runs Python.
LISTENING_S = 0.005


class SegmentationJob:
    """One volume being segmented; made by the logic's ``segmentAsync``.

    Parameters
    ----------
    worker : Worker
    volumeNode : vtkMRMLScalarVolumeNode
    choices : Choices
    onProgress : callable, optional
        Called with the stage's name and the fraction of it that is done.
    onDone : callable, optional
        Called with this job, once, when it has ended in whatever way.
    log : deque of str
        What the worker's log thread has written.
    onLog : callable, optional
        Called with each line of the worker's log.

    Attributes
    ----------
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

    def __init__(
        self,
        worker: Worker,
        volumeNode: Any,
        choices: Choices,
        onProgress: Callable[[str, float], None] | None,
        onDone: Callable[[SegmentationJob], None] | None,
        log: deque[str],
        onLog: Callable[[str], None] | None,
    ) -> None:
        self.finished = False
        self.node: Any = None
        self.report: dict[str, Any] | None = None
        self.error: Exception | None = None
        self._worker, self._log = worker, log
        self._onProgress, self._onDone, self._onLog = onProgress, onDone, onLog
        self._case = Case(volumeNode, choices.request(), choices.output, choices.roi, choices.overwrite)
        try:
            self._id = worker.submit(self._case.request)
        except SegMambaError:
            self._case.close()
            raise
        self._timer = qt.QTimer()
        self._timer.setInterval(INTERVAL_MS)
        self._timer.connect("timeout()", self._poll)
        self._timer.start()

    def cancel(self) -> None:
        """Stop at once; the scene stays as it is.

        The worker is ended and not asked: a window may take it longer than a person waits. The next run starts
        another one. What it was writing are temporary files.
        """
        if not self.finished:
            self._worker.kill()
            self._end(Cancelled("The job was cancelled; the scene is as it was."))

    def wait(self) -> Any:
        """Wait for the end, with Slicer's events processed, and return the segmentation node.

        Raises
        ------
        SegMambaError
            With a sentence that says what to do.
        """
        while not self.finished:
            slicer.app.processEvents()
            time.sleep(LISTENING_S)
            self._poll()
        if self.error is not None:
            raise self.error
        return self.node

    def _poll(self) -> None:
        while self._log:
            line = self._log.popleft()
            if self._onLog is not None:
                self._onLog(line)
        # A callback may cancel, so it is asked again after each message.
        while not self.finished:
            message = self._worker.poll(LISTENING_S)
            if message is None:
                return
            if message.get("id") in (self._id, None):
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "progress" and self._onProgress is not None:
            self._onProgress(message["stage"], message["fraction"])
        elif message["type"] == "error":
            self._end(ERRORS_BY_NAME.get(message["error"], WorkerError)(message["message"]))
        elif message["type"] == "result":
            self.report = message["report"]
            try:
                self.node = self._case.finish(message["report"])
            except Exception as error:
                # Kept for whoever waits, who may be the panel or a script.
                self._end(error)
            else:
                self._end(None)

    def _end(self, error: Exception | None) -> None:
        self.error, self.finished = error, True
        self._timer.stop()
        self._case.close()
        if self._onDone is not None:
            self._onDone(self)
