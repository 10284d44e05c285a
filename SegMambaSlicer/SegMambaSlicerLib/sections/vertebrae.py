"""What the sections that work on the vertebrae of a result have in common."""

from __future__ import annotations

from typing import Any

import slicer

from segmamba_mrml.vertebra_segments import vertebrae_of
from SegMambaSlicerLib.sections.result_part import ResultPart


class VertebraeSection(ResultPart):
    """A section for the vertebrae of the segmentation that is shown; see `ResultPart`."""

    def _levels(self) -> dict[str, int]:
        """Return the levels of the vertebrae that are shown, by segment ID."""
        node = self._results.node
        return vertebrae_of(node) if node is not None else {}


def saveForUndo(node: Any) -> None:
    """Let Segment Editor undo what comes, where it edits that segmentation."""
    widget = getattr(slicer.modules, "SegmentEditorWidget", None)
    if widget is not None and widget.editor.segmentationNode() is node:
        widget.editor.saveStateForUndo()
