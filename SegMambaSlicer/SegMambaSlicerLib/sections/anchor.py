"""The part of the panel where a person says what a vertebra is by clicking on it in a slice or 3D view."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from segmamba_mrml.anchors import (
    LevelPoint,
    forget_points,
    level_points,
    make_points_node,
    points_node,
    set_level,
    set_points,
    take_new_point,
)
from segmamba_mrml.reports import report_number
from segmamba_mrml.segmentation import volume_node_of
from segmamba_mrml.vertebra_segments import LEVELS
from SegMambaSlicerLib.messages import anchorsText
from SegMambaSlicerLib.sections.result import ResultSection
from SegMambaSlicerLib.sections.vertebrae import VertebraeSection, saveForUndo

# The level that is chosen most often.
FIRST_LEVEL = "L5"


class AnchorSection(VertebraeSection):
    """Sets the level of the vertebra that is clicked on; the points stay with the volume that was segmented."""

    def __init__(self, ui: Any, results: ResultSection) -> None:
        super().__init__(ui, results)
        self._placing: Any = None
        self._observers: list[tuple[Any, int]] = []
        self._watched: list[tuple[Any, int]] = []
        # For undo: the points after each report that this section caused, and those before the first.
        self._history: list[tuple[int, list[LevelPoint]]] = []
        self._undone = False
        for level in LEVELS:
            ui.anchorLevelComboBox.addItem(level)
        ui.anchorLevelComboBox.currentIndex = ui.anchorLevelComboBox.findText(FIRST_LEVEL)
        ui.placeButton.connect("toggled(bool)", self._onPlace)
        ui.forgetButton.connect("clicked(bool)", lambda _checked: self._say(self._forget))
        results.filled.connect(self.refresh)
        results.shown.connect(self._onShown)
        self.refresh()

    def refresh(self) -> None:
        """Follow the result, and undo in Segment Editor: which levels are set."""
        volume = self._volume()
        if self._placing is not None and volume is not self._placing:
            self._ui.placeButton.checked = False
        self._followUndo(volume)
        self._watch(points_node(volume))
        possible = volume is not None and bool(self._levels())
        self._ui.anchorWidget.visible = possible
        self._tell()

    def stop(self) -> None:
        """Wait for no click any more."""
        self._stopPlacing()
        self._watch(None)

    def _volume(self) -> Any:
        node = self._results.node
        return volume_node_of(node) if node is not None else None

    def _onShown(self) -> None:
        self._history, self._undone = [], False

    def _tell(self, _caller: Any = None, _event: str = "") -> None:
        """Say which levels are set; a person may move, rename or delete the points in the Markups module, too."""
        levels = [place[0] for place in level_points(self._volume())] if self._levels() else []
        self._ui.forgetButton.visible = bool(levels)
        self._ui.anchorsLabel.text = anchorsText(levels)
        self._ui.anchorsLabel.visible = bool(levels)

    def _watch(self, points: Any) -> None:
        watched = self._watched[0][0] if self._watched else None
        if points is watched:
            return
        for node, tag in self._watched:
            node.RemoveObserver(tag)
        events = (points.PointModifiedEvent, points.PointRemovedEvent) if points is not None else ()
        self._watched = [(points, points.AddObserver(event, self._tell)) for event in events]

    def _onPlace(self, checked: bool) -> None:
        self._stopPlacing()
        if not checked:
            return
        self._placing = self._volume()
        points, logic = make_points_node(self._placing), slicer.modules.markups.logic()
        logic.SetActiveList(points)
        logic.StartPlaceMode(False)
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        for node, event, answer in (
            (points, points.PointPositionDefinedEvent, self._onClick),
            (interaction, interaction.InteractionModeChangedEvent, self._onMode),
        ):
            self._observers.append((node, node.AddObserver(event, answer)))
        level = self._ui.anchorLevelComboBox.currentText
        self.said.emit(_("Click on {level} in a slice or 3D view.").format(level=level), False)

    def _onClick(self, _caller: Any, _event: str) -> None:
        # Slicer is still busy with the point.
        qt.QTimer.singleShot(0, self._onPlaced)

    def _onMode(self, interaction: Any, _event: str) -> None:
        if interaction.GetCurrentInteractionMode() != interaction.Place:
            qt.QTimer.singleShot(0, self._onPlaced)

    def _onPlaced(self) -> None:
        """Set the level at the point that was placed, and wait for no other; without a point, only that."""
        volume = self._placing
        if volume is None:
            return
        point = take_new_point(volume)
        self._ui.placeButton.checked = False
        if point is not None and self._results.node is not None:
            self._say(lambda: self._set(volume, point))
        self.refresh()

    def _set(self, volume: Any, point: tuple[float, float, float]) -> str:
        node, level = self._results.node, self._ui.anchorLevelComboBox.currentText
        if not self._history:
            self._history = [(report_number(node), level_points(volume))]
        saveForUndo(node)
        part = set_level(node, level, point)
        self._history.append((report_number(node), level_points(volume)))
        said = {
            "whole": _("This is {level}; all other vertebrae follow, also when you segment again."),
            "below": _("This is {level}; all vertebrae below follow, also when you segment again."),
            "above": _("This is {level}; all vertebrae above follow, also when you segment again."),
        }
        return said[part].format(level=level)

    def _forget(self) -> str:
        forget_points(self._volume())
        self._history = []
        self.refresh()
        return _("The points are gone; the segmentation stays as it is.")

    def _followUndo(self, volume: Any) -> None:
        """Bring back the points that fit the report, where Segment Editor's undo or redo has brought that back."""
        if volume is None or len(self._history) < 2:
            return
        now = report_number(self._results.node)
        undone, was_undone = now < self._history[-1][0], self._undone
        self._undone = undone
        fitting = [places for number, places in self._history if number <= now]
        if fitting and (undone or was_undone):
            set_points(volume, fitting[-1])

    def _stopPlacing(self) -> None:
        for node, tag in self._observers:
            node.RemoveObserver(tag)
        self._observers, volume, self._placing = [], self._placing, None
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        if volume is not None and interaction is not None:
            if interaction.GetCurrentInteractionMode() == interaction.Place:
                interaction.SwitchToViewTransformMode()
            take_new_point(volume)
