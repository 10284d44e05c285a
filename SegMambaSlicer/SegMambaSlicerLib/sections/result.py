"""The part of the panel that shows a result: the table of segments, 3D, and the way to Segment Editor."""

from __future__ import annotations

from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from segmamba.spine.levels import ORDER, SACRUM, level_name
from segmamba_mrml.reports import REPORT_ATTRIBUTE, follow_undo, parts, read_report
from segmamba_mrml.segmentation import segment_ids, volume_node_of
from SegMambaSlicerLib.messages import (
    WARNING_STYLE,
    bulletList,
    limitsText,
    numberingText,
    refinementText,
    segmentFlags,
)
from SegMambaSlicerLib.signal import Signal
from SegMambaSlicerLib.widgets import prepareTable, showRows

COLUMNS = (_("Segment"), _("Volume (mL)"), _("Confidence"), _("Check"))
SWATCH_SIZE = 14
# What undo does to segments.
SEGMENT_EVENTS = ("SegmentAdded", "SegmentRemoved", "SegmentModified")
# A chest CT has some 16 vertebrae, which are best seen at once.
FEWEST_ROWS, MOST_ROWS = 4, 18


class ResultSection:
    """Shows one segmentation node that this module made.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.

    Attributes
    ----------
    filled, shown : Signal
        Emitted when the table shows something else, and when another node is shown.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._shown: Any = None
        self._observers: list[int] = []
        self._text: str | None = None
        self.filled, self.shown = Signal(), Signal()
        ui.numberingLabel.styleSheet = WARNING_STYLE
        table = ui.resultTable
        prepareTable(table, COLUMNS)
        table.connect("cellClicked(int,int)", self._onCell)
        table.connect("cellActivated(int,int)", self._onCell)
        ui.show3DButton.connect("toggled(bool)", self._onShow3D)
        ui.segmentEditorButton.connect("clicked(bool)", self._onSegmentEditor)
        self.show(None)

    @property
    def node(self) -> Any:
        """The segmentation node that is shown, or None; also once it has left the scene."""
        return self._shown if self._shown is not None and self._shown.GetScene() is not None else None

    def show(self, node: Any) -> None:
        """Show a segmentation node, and follow it to other items of its sequence; None shows an empty table."""
        for tag in self._observers:
            self._shown.RemoveObserver(tag)
        self._observers = []
        if node is None or node is not self._shown:
            self._ui.resultSection.collapsed = node is None
        self._shown = node
        if node is not None:
            self._observers = [node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onModified)]
            for name in SEGMENT_EVENTS:
                self._observers.append(node.AddObserver(getattr(slicer.vtkSegmentation, name), self._onSegments))
        self._fillTable()
        self._ui.show3DButton.enabled = self._ui.segmentEditorButton.enabled = node is not None
        blocked = self._ui.show3DButton.blockSignals(True)
        self._ui.show3DButton.checked = node is not None and _hasSurfaces(node)
        self._ui.show3DButton.blockSignals(blocked)
        title = _("Result: {name}").format(name=node.GetName()) if node is not None else _("Result")
        self._ui.resultSection.text = title
        self.shown.emit()

    def refresh(self) -> None:
        """Show an empty table where the node that was shown has been deleted."""
        if self._shown is not None and self.node is None:
            self.show(None)

    def recolour(self) -> None:
        """Show the colours that the segments have now."""
        for index in range(self._ui.resultTable.rowCount):
            item = self._ui.resultTable.item(index, 0)
            segment = self._shown.GetSegmentation().GetSegment(item.data(qt.Qt.UserRole))
            if segment is not None:
                item.setIcon(_swatch(segment))

    def _onModified(self, _caller: Any, _event: str) -> None:
        if self._shown.GetAttribute(REPORT_ATTRIBUTE) != self._text:
            self._fillTable()

    def _onSegments(self, _caller: Any, _event: str) -> None:
        if self.node is not None:
            follow_undo(self.node)

    def _fillTable(self) -> None:
        report = read_report(self._shown) if self._shown is not None else {}
        self._text = self._shown.GetAttribute(REPORT_ATTRIBUTE) if self._shown is not None else None
        rows = segmentRows(report, self._shown)
        self._ui.resultTable.rowCount = len(rows)
        showRows(self._ui.resultTable, len(rows), FEWEST_ROWS, MOST_ROWS)
        for index, (row, part) in enumerate(rows):
            self._fill(index, row, part, part is not report)
        doubts = [numberingText(part) for part in parts(report) if any(part is other for _row, other in rows)]
        doubt = " ".join(filter(None, dict.fromkeys(doubts)))
        self._ui.numberingLabel.text = doubt
        self._ui.numberingLabel.visible = bool(doubt)
        model = report.get("model", {})
        limits = model.get("limits", [])
        self._ui.limitsLabel.text = limitsText(limits, model.get("estimated"))
        self._ui.limitsLabel.toolTip = bulletList(limits)
        self._ui.limitsLabel.visible = bool(self._ui.limitsLabel.text)
        self.filled.emit()

    def _fill(self, index: int, row: dict[str, Any], report: dict[str, Any], earlier: bool) -> None:
        segment = self._shown.GetSegmentation().GetSegment(row["segment_id"])
        flags = segmentFlags(row, report.get("numbering"), earlier)
        changes = report.get("refinement", [])
        tip = refinementText(changes, level_name(row["value"])) if row["value"] in (*ORDER, SACRUM) else ""
        texts = (
            segment.GetName(),
            f"{row['volume_ml']:.1f}",
            f"{100 * row['mean_confidence']:.0f} %",
            ", ".join(flags),
        )
        for column, text in enumerate(texts):
            item = qt.QTableWidgetItem(text)
            item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
            item.setData(qt.Qt.UserRole, row["segment_id"])
            item.setToolTip(tip)
            if column in (1, 2):
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            self._ui.resultTable.setItem(index, column, item)
        self._ui.resultTable.item(index, 0).setIcon(_swatch(segment))

    def _onCell(self, row: int, _column: int) -> None:
        if self.node is None:
            return
        identifier = self._ui.resultTable.item(row, 0).data(qt.Qt.UserRole)
        center = self.node.GetSegmentCenterRAS(identifier)
        if center is not None:
            slicer.modules.markups.logic().JumpSlicesToLocation(*center, True)

    def _onShow3D(self, shown: bool) -> None:
        if self.node is None:
            return
        if shown:
            with slicer.util.WaitCursor():
                self.node.CreateClosedSurfaceRepresentation()
        else:
            self.node.RemoveClosedSurfaceRepresentation()

    def _onSegmentEditor(self, _checked: bool = False) -> None:
        if self.node is None:
            return
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        editor.setSegmentationNode(self.node)
        volumeNode = volume_node_of(self.node)
        if volumeNode is not None:
            editor.setSourceVolumeNode(volumeNode)


def segmentRows(report: dict[str, Any], node: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return what a report says of the segments that a node still has, each with the report of the run it is from."""
    rows = [(row, part) for part in parts(report) for row in part.get("segments", [])]
    there = segment_ids(node) if rows else []
    return [(row, part) for row, part in rows if row.get("segment_id") in there]


def _swatch(segment: Any) -> Any:
    """Return an icon of a segment's colour."""
    pixmap = qt.QPixmap(SWATCH_SIZE, SWATCH_SIZE)
    pixmap.fill(qt.QColor(*(round(255 * part) for part in segment.GetColor())))
    return qt.QIcon(pixmap)


def _hasSurfaces(node: Any) -> bool:
    name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    return node.GetSegmentation().ContainsRepresentation(name)
