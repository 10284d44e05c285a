"""The part of the panel that measures a result: a table of its vertebrae, filled again at each click."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from segmamba_mrml.measurements import measurements_table
from SegMambaSlicerLib.sections.result import ResultSection
from SegMambaSlicerLib.sections.vertebrae import VertebraeSection


class MeasurementSection(VertebraeSection):
    """Makes the table of the segmentation that is shown."""

    def __init__(self, ui: Any, results: ResultSection) -> None:
        super().__init__(ui, results)
        ui.measurementsButton.connect("clicked(bool)", lambda _checked: self._say(self._measure))
        results.shown.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Follow the result: only vertebrae are measured."""
        self._ui.measurementsButton.enabled = bool(self._levels())

    def _measure(self) -> str:
        with slicer.util.WaitCursor():
            table = measurements_table(self._results.node)
        showTable(table)
        said = _("The measurements are in the table '{name}'. After an edit, measure again.")
        return said.format(name=table.GetName())


def showTable(table: Any) -> None:
    """Show a table in the table view, and the table view if there is none in the layout."""
    logic = slicer.app.applicationLogic()
    logic.GetSelectionNode().SetActiveTableID(table.GetID())
    logic.PropagateTableSelection()
    layout = table.GetScene().GetFirstNodeByClass("vtkMRMLLayoutNode")
    if layout is not None:
        layout.SetViewArrangement(slicer.modules.tables.logic().GetLayoutWithTable(layout.GetViewArrangement()))
