"""All items of a volume sequence, one run after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segmamba.errors import InputError
from segmamba_mrml.sequences import SequenceItems
from SegMambaSlicerLib.segmentation_job import SegmentationJob, waitForEnd
from SegMambaSlicerLib.signal import Signal


class SequenceJob:
    """The items of a volume's sequence being segmented; to its owner it is like one `SegmentationJob`.

    An item that cannot be segmented (no body in it, say) gets an empty segmentation, and the report's summary names it.
    Any other error, or one with all items, ends the job and leaves the scene as it was.

    Parameters
    ----------
    startItem : callable
        Starts a `SegmentationJob` for the volume node of an item.
    volumeNode : vtkMRMLScalarVolumeNode
        Shows the sequence's current item, which does not change.

    Attributes
    ----------
    progressed, ended, logged : Signal
        As for `SegmentationJob`: of the item that is being segmented, but for the end, which is that of this job.
    item, items : int
        The item that is being segmented, from 0 on, and how many there are.
    finished, node, report, error
        As for `SegmentationJob`. The node shows the current item of a sequence of segmentations; the report is that
        of the last item.

    Raises
    ------
    SegMambaError
        The run cannot start; nothing was changed.
    """

    def __init__(self, startItem: Callable[[Any], SegmentationJob], volumeNode: Any) -> None:
        self.progressed, self.ended, self.logged = Signal(), Signal(), Signal()
        self.finished = False
        self.node: Any = None
        self.report: dict[str, Any] | None = None
        self.error: Exception | None = None
        self._startItem = startItem
        self._sequence = SequenceItems(volumeNode)
        self._last: SegmentationJob | None = None
        self._failures: list[str] = []
        self.item, self.items = 0, len(self._sequence)
        self._job = self._start()

    def cancel(self) -> None:
        """Stop at once; the scene stays as it is."""
        if not self.finished:
            self._job.cancel()

    def wait(self) -> Any:
        """As `SegmentationJob.wait`."""
        waitForEnd(self)
        return self.node

    def _start(self) -> SegmentationJob:
        job = self._startItem(self._sequence.volume(self.item))
        job.progressed.connect(self.progressed.emit)
        job.logged.connect(self.logged.emit)
        job.ended.connect(self._onItemEnded)
        return job

    def _onItemEnded(self, job: SegmentationJob) -> None:
        try:
            self._take(job)
            if self.item + 1 < self.items:
                self.item += 1
                self._job = self._start()
                return
            if self._last is None:
                assert job.error is not None
                raise job.error
            assert self._last.report is not None
            self.node = self._sequence.finish(self._last.node.GetName())
            done = self.items - len(self._failures)
            summary = f"{done} of {self.items} items of the sequence were segmented. {' '.join(self._failures)}"
            self.report = {**self._last.report, "summary": summary.strip()}
        except Exception as error:
            # Kept for whoever waits, who may be the panel or a script.
            self.error = error
        self.finished = True
        self.ended.emit(self)

    def _take(self, job: SegmentationJob) -> None:
        if job.error is None:
            self._last = job
            self._sequence.add(self.item, job.node)
        elif isinstance(job.error, InputError):
            self._failures.append(f"Item {self.item + 1} has no segments: {job.error}")
            self._sequence.add_empty(self.item)
        else:
            raise job.error
