"""What the sections that work on the result that is shown have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segmamba.errors import SegMambaError
from SegMambaSlicerLib.sections.result import ResultSection
from SegMambaSlicerLib.signal import Signal


class ResultPart:
    """A section for the segmentation that is shown.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.
    results : ResultSection
        Shows the segmentation.

    Attributes
    ----------
    said : Signal
        Emitted with a sentence for the user, and whether it is about a problem.
    """

    def __init__(self, ui: Any, results: ResultSection) -> None:
        self._ui, self._results = ui, results
        self.said = Signal()

    def _say(self, work: Callable[[], str]) -> None:
        """Do some work, and say what it returns, or what went wrong."""
        try:
            self.said.emit(work(), False)
        except SegMambaError as error:
            self.said.emit(str(error), True)
