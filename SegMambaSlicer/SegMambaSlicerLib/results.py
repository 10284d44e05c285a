"""The part of the panel that shows a result: the table of segments, 3D, and the way to Segment Editor."""

from __future__ import annotations

import json
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from segmamba_mrml.segment import REPORT_ATTRIBUTE
from segmamba_mrml.segmentation import segment_ids
from SegMambaSlicerLib.texts import segmentFlags

COLUMNS = ("Segment", "Volume (mL)", "Confidence", "Check")
SWATCH_SIZE, ROW_HEIGHT = 14, 22


class ResultSection:
    """Shows one segmentation node that this module made.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._shown: Any = None
        table = ui.resultTable
        table.columnCount = len(COLUMNS)
        table.setHorizontalHeaderLabels([_(title) for title in COLUMNS])
        table.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        table.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
        table.verticalHeader().defaultSectionSize = ROW_HEIGHT
        table.connect("cellClicked(int,int)", self._onCell)
        ui.show3DButton.connect("toggled(bool)", self._onShow3D)
        ui.segmentEditorButton.connect("clicked(bool)", self._onSegmentEditor)
        self.show(None)

    @property
    def node(self) -> Any:
        """The segmentation node that is shown, or None; also once it has left the scene."""
        return self._shown if self._shown is not None and self._shown.GetScene() is not None else None

    def show(self, node: Any) -> None:
        """Show a segmentation node; None shows an empty table."""
        self._shown = node
        rows = reportRows(node) if node is not None else []
        self._ui.resultTable.rowCount = len(rows)
        for index, row in enumerate(rows):
            self._fill(index, row)
        self._ui.show3DButton.enabled = self._ui.segmentEditorButton.enabled = node is not None
        blocked = self._ui.show3DButton.blockSignals(True)
        self._ui.show3DButton.checked = node is not None and _hasSurfaces(node)
        self._ui.show3DButton.blockSignals(blocked)
        title = _("Result: {name}").format(name=node.GetName()) if node is not None else _("Result")
        self._ui.resultSection.text = title

    def _fill(self, index: int, row: dict[str, Any]) -> None:
        segment = self._shown.GetSegmentation().GetSegment(row["segment_id"])
        flags = segmentFlags(row)
        texts = (
            segment.GetName(),
            f"{row['volume_ml']:.1f}",
            f"{100 * row['mean_confidence']:.0f} %",
            _(", ".join(flags)),
        )
        for column, text in enumerate(texts):
            item = qt.QTableWidgetItem(text)
            item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
            item.setData(qt.Qt.UserRole, row["segment_id"])
            if column in (1, 2):
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            self._ui.resultTable.setItem(index, column, item)
        pixmap = qt.QPixmap(SWATCH_SIZE, SWATCH_SIZE)
        pixmap.fill(qt.QColor(*(round(255 * part) for part in segment.GetColor())))
        self._ui.resultTable.item(index, 0).setIcon(qt.QIcon(pixmap))

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
        volumeNode = self.node.GetNodeReference(self.node.GetReferenceImageGeometryReferenceRole())
        if volumeNode is not None:
            editor.setSourceVolumeNode(volumeNode)


def reportRows(node: Any) -> list[dict[str, Any]]:
    """Return what the report says of the segments that a node still has."""
    text = node.GetAttribute(REPORT_ATTRIBUTE)
    rows = json.loads(text)["segments"] if text else []
    there = segment_ids(node)
    return [row for row in rows if row.get("segment_id") in there]


def _hasSurfaces(node: Any) -> bool:
    name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    return node.GetSegmentation().ContainsRepresentation(name)
