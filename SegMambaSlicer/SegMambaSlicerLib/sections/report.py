"""The part of the panel that reports on a spine: a page, charts, the measured heights in the views, and doubts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from segmamba.errors import SegMambaError
from segmamba_mrml.doubts import are_marked, mark_doubts, unmark_doubts
from segmamba_mrml.height_lines import height_lines, hide_heights, show_heights, show_only
from segmamba_mrml.measurements import measure
from segmamba_mrml.plots import column_charts
from segmamba_mrml.spine_page import write_comparison_page, write_spine_page
from SegMambaSlicerLib.sections.result import ResultSection
from SegMambaSlicerLib.sections.vertebrae import VertebraeSection

BUTTONS = ("reportButton", "plotButton", "heightsButton", "doubtsButton")


class ReportSection(VertebraeSection):
    """Reports on the segmentation that is shown."""

    def __init__(self, ui: Any, results: ResultSection) -> None:
        super().__init__(ui, results)
        ui.reportButton.connect("clicked(bool)", self._onReport)
        ui.compareButton.connect("clicked(bool)", self._onCompare)
        ui.earlierSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: self._allow())
        ui.plotButton.connect("clicked(bool)", lambda _checked: self._say(self._plotted))
        ui.heightsButton.connect("toggled(bool)", self._onHeights)
        ui.doubtsButton.connect("toggled(bool)", self._onDoubts)
        ui.resultTable.connect("itemSelectionChanged()", self._follow)
        results.filled.connect(self.refresh)
        results.shown.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Follow the result; the scene may have been saved with lines or marks."""
        node = self._results.node
        for name in BUTTONS:
            getattr(self._ui, name).enabled = bool(self._levels())
        self._allow()
        self._check(self._ui.heightsButton, node is not None and bool(height_lines(node)))
        self._check(self._ui.doubtsButton, node is not None and are_marked(node))

    def _onReport(self, _checked: bool = False) -> None:
        path = self._chosenFile(_("Save the report page"), f"{self._results.node.GetName()}.html")
        if path:
            self._say(lambda: self._reported(path))

    def _onCompare(self, _checked: bool = False) -> None:
        path = self._chosenFile(_("Save the comparison"), f"{self._results.node.GetName()} compared.html")
        # The dialog may have outlived the scene.
        if path and self._ui.earlierSelector.currentNode() is not None:
            self._say(lambda: self._compared(path))

    def _chosenFile(self, title: str, proposed: str) -> str:
        """Return the file that a person chooses; empty if none, or if the scene was closed meanwhile."""
        path = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, proposed, _("HTML page (*.html)"))
        if not path or self._results.node is None:
            return ""
        return str(path if path.lower().endswith(".html") else f"{path}.html")

    def _compared(self, path: str) -> str:
        with slicer.util.WaitCursor():
            result = write_comparison_page(self._ui.earlierSelector.currentNode(), self._results.node, path)
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(path))
        said = _("The comparison is in {file}.").format(file=Path(path).name)
        return f"{said} {result['summary'][0]}"

    def _allow(self) -> None:
        earlier = self._ui.earlierSelector.currentNode()
        self._ui.compareButton.enabled = bool(self._levels()) and earlier not in (None, self._results.node)

    def _reported(self, path: str) -> str:
        with slicer.util.WaitCursor():
            report = write_spine_page(self._results.node, path)
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(path))
        first = report["look_first"][0]["text"] if report["look_first"] else ""
        return " ".join(filter(None, (_("The report is in {file}.").format(file=Path(path).name), first)))

    def _plotted(self) -> str:
        with slicer.util.WaitCursor():
            charts = column_charts(self._results.node)
        showChart(charts[0])
        names = ", ".join(f"'{chart.GetName()}'" for chart in charts)
        return _("Charts: {names}. After an edit, plot again.").format(names=names)

    def _onHeights(self, shown: bool) -> None:
        node = self._results.node
        if node is None:
            return
        if not shown:
            hide_heights(node)
            return
        try:
            with slicer.util.WaitCursor():
                lines = show_heights(node, measure(node))
        except SegMambaError as error:
            self.said.emit(str(error), True)
            self.refresh()
            return
        self._follow()
        if lines:
            self.said.emit(_("Heights are shown as lines: of the selected vertebra, or of all."), False)
        else:
            self.said.emit(_("No vertebra has heights to show: the table says why."), True)
            self.refresh()

    def _onDoubts(self, marked: bool) -> None:
        node = self._results.node
        if node is None:
            return
        if not marked:
            unmark_doubts(node)
        else:
            doubts = mark_doubts(node)
            self.said.emit(" ".join(doubts) or _("No segment is doubtful."), False)
        self._results.recolour()

    def _follow(self) -> None:
        """Show the lines of the selected vertebra alone."""
        node = self._results.node
        if node is None:
            return
        items = self._ui.resultTable.selectedItems()
        identifier = str(items[0].data(qt.Qt.UserRole)) if items else ""
        show_only(node, self._levels().get(identifier))

    def _check(self, button: Any, checked: bool) -> None:
        blocked = button.blockSignals(True)
        button.checked = checked
        button.blockSignals(blocked)


def showChart(chart: Any) -> None:
    """Show a chart in the plot view, and the plot view if there is none in the layout."""
    slicer.modules.plots.logic().ShowChartInLayout(chart)
