"""The part of the panel that measures a result: a table of its vertebrae, made anew at each click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from segmamba.errors import SegMambaError
from segmamba_mrml.measurements import measurements_table
from segmamba_mrml.vertebra_segments import vertebrae_of
from SegMambaSlicerLib.sections.result import ResultSection


class MeasuringSection:
    """Makes the table of the segmentation that is shown.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.
    results : ResultSection
        Shows the segmentation.
    say : callable
        Shows a sentence, and whether it is about a problem.
    """

    def __init__(self, ui: Any, results: ResultSection, say: Callable[[str, bool], None]) -> None:
        self._ui, self._results, self._say = ui, results, say
        ui.measurementsButton.connect("clicked(bool)", self._onMeasure)
        self.refresh()

    def refresh(self) -> None:
        """Follow the result: only vertebrae are measured."""
        node = self._results.node
        self._ui.measurementsButton.enabled = node is not None and bool(vertebrae_of(node))

    def _onMeasure(self, _checked: bool = False) -> None:
        try:
            with slicer.util.WaitCursor():
                table = measurements_table(self._results.node)
        except SegMambaError as error:
            self._say(str(error), True)
            return
        showTable(table)
        said = _("The measurements are in the table '{name}': after an edit, measure again.")
        self._say(said.format(name=table.GetName()), False)


def showTable(table: Any) -> None:
    """Show a table in the table view, and the table view if there is none in the layout."""
    logic = slicer.app.applicationLogic()
    logic.GetSelectionNode().SetActiveTableID(table.GetID())
    logic.PropagateTableSelection()
    layout = table.GetScene().GetFirstNodeByClass("vtkMRMLLayoutNode")
    if layout is not None:
        layout.SetViewArrangement(slicer.modules.tables.logic().GetLayoutWithTable(layout.GetViewArrangement()))
