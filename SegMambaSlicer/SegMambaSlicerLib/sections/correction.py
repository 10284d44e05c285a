"""The part of the panel that corrects a result: the numbers of its vertebrae, and one vertebra's mask."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as waitFor
from typing import Any

import qt
from slicer.i18n import tr as _

from segmamba.errors import SegMambaError
from segmamba.spine.levels import level_name
from segmamba_mrml.anchors import renumber_with_points
from segmamba_mrml.refinement import Refinement
from segmamba_mrml.vertebra_segments import LEVELS
from SegMambaSlicerLib.messages import changeText
from SegMambaSlicerLib.sections.result import ResultSection
from SegMambaSlicerLib.sections.vertebrae import VertebraeSection, saveForUndo
from SegMambaSlicerLib.segmentation_job import THREAD_INTERVAL_MS, THREAD_LISTENING_S


class CorrectionSection(VertebraeSection):
    """Corrects the vertebra whose row is selected."""

    def __init__(self, ui: Any, results: ResultSection) -> None:
        super().__init__(ui, results)
        self._running: tuple[Refinement, Future[None]] | None = None
        self._level: int | None = None
        self._executor = ThreadPoolExecutor(1)
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self._poll)
        # What is below does not move when a row is selected.
        ui.correctionWidget.minimumHeight = ui.refineButton.sizeHint.height()
        for level in LEVELS:
            ui.levelComboBox.addItem(level)
        ui.renumberScopeComboBox.addItem(_("whole column"), False)
        ui.renumberScopeComboBox.addItem(_("from here down"), True)
        ui.resultTable.connect("itemSelectionChanged()", self.refresh)
        ui.levelComboBox.connect("currentIndexChanged(int)", self._allow)
        ui.renumberButton.connect("clicked(bool)", lambda _checked: self._say(self._renumber))
        ui.refineButton.connect("clicked(bool)", self._onRefine)
        results.filled.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Follow the table: what can be corrected, and of what."""
        if self._results.node is None:
            self._forget()
        levels = self._levels()
        self._ui.correctionWidget.visible = bool(levels)
        self._level = levels.get(self._segment())
        if self._level is None:
            self._ui.correctionLabel.text = _("Select a vertebra to correct its level or mask.")
        else:
            name = level_name(self._level)
            self._ui.correctionLabel.text = _("{level} is:").format(level=name)
            self._ui.levelComboBox.currentIndex = self._ui.levelComboBox.findText(name)
        for name in ("levelComboBox", "renumberScopeComboBox", "renumberButton", "refineButton"):
            getattr(self._ui, name).visible = self._level is not None
        self._allow()

    def stop(self) -> None:
        """Correct no more; a refinement that is being computed is dropped."""
        self._forget()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _segment(self) -> str:
        """Return the ID of the segment whose row is selected, or an empty text."""
        items = self._ui.resultTable.selectedItems()
        return str(items[0].data(qt.Qt.UserRole)) if items else ""

    def _allow(self, _index: int = 0) -> None:
        idle = self._running is None
        self._ui.renumberButton.enabled = idle and LEVELS[self._ui.levelComboBox.currentText] != self._level
        self._ui.refineButton.enabled = idle

    def _renumber(self) -> str:
        before, after = level_name(self._level), self._ui.levelComboBox.currentText
        below = self._ui.renumberScopeComboBox.currentData
        saveForUndo(self._results.node)
        renumber_with_points(self._results.node, self._segment(), after, below)
        if below:
            said = _("{before} is now {after}; all vertebrae below were renumbered too.")
        else:
            said = _("{before} is now {after}; all other vertebrae were renumbered too.")
        return said.format(before=before, after=after)

    def _onRefine(self, _checked: bool = False) -> None:
        try:
            refinement = Refinement(self._results.node, self._segment())
        except SegMambaError as error:
            self.said.emit(str(error), True)
            return
        self._running = refinement, self._executor.submit(refinement.compute)
        self._allow()
        self._timer.start(THREAD_INTERVAL_MS)

    def _poll(self) -> None:
        assert self._running is not None
        refinement, future = self._running
        if not waitFor([future], THREAD_LISTENING_S).done:
            self._timer.start(THREAD_INTERVAL_MS)
            return
        self._forget()
        try:
            self._say(lambda: _applied(refinement, future))
        except Exception:
            logging.exception("SegMambaSlicer")
            self.said.emit(_("The vertebra could not be refined: see the Python console."), True)
        self._allow()

    def _forget(self) -> None:
        self._timer.stop()
        self._running = None


def _applied(refinement: Refinement, computed: Future[None]) -> str:
    """Write the new mask, once it is computed, and say what was changed."""
    computed.result()
    saveForUndo(refinement.node)
    changes = refinement.apply()
    if not changes:
        return _("The mask is already clean: nothing was changed.")
    return _("{level} was refined: {change}.").format(level=changes[0]["level"], change=changeText(changes[0]))
