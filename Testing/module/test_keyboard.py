"""The panel without a mouse, and its tips: the tabulator reaches all, in the order of the eye."""

from __future__ import annotations

import re

import pytest
import qt
import slicer
from PySide6.QtTest import QTest

# Characters: about a sentence and a half.
LONGEST_TIP = 110
INPUTS = (
    *(qt.QAbstractButton, qt.QComboBox, qt.QLineEdit, qt.QAbstractSpinBox),
    *(qt.QTableWidget, qt.QListWidget),
)


@pytest.fixture
def visited(the_module, a_slicer_host):
    """Press the tabulator until it comes round again; returns the widgets that had the keyboard."""

    def visited():
        a_slicer_host.process_events()
        the_module.area.activateWindow()
        the_module.ui.inputSelector.findChild(qt.QComboBox).setFocus()
        first, found = qt.QApplication.focusWidget(), []
        widget = first
        while widget not in found:
            found.append(widget)
            QTest.keyClick(widget, qt.Qt.Key_Tab)
            widget = qt.QApplication.focusWidget()
        return found

    return visited


def operable(panel):
    """Return what a user can operate now."""
    return [
        widget
        for widget in panel.findChildren(qt.QWidget)
        if isinstance(widget, INPUTS)
        and widget.isVisible()
        and widget.isEnabled()
        and not isinstance(widget.parentWidget(), (qt.QAbstractItemView, qt.QAbstractSpinBox))
    ]


def place(widget, panel):
    """Return where a widget is, in lines of the panel, to be sorted by."""
    corner = widget.mapTo(panel, qt.QPoint(0, widget.height // 2 if widget.height < 60 else 10))
    return corner.y() // 12, corner.x()


def test_tabulator_reaches_all_in_the_order_of_the_eye(the_module, panel, a_ct, segment, visited, a_slicer_host):
    assert segment() is not None
    ui = panel.ui
    for section in (ui.advancedSection, ui.modelsSection, ui.dependenciesSection, ui.logSection):
        section.collapsed = False
    ui.resultTable.selectRow(0)
    found = visited()
    missed = [widget.name for widget in operable(the_module.panel) if widget not in found]
    assert missed == []
    order = [widget for widget in found if the_module.panel.isAncestorOf(widget)]
    places = [place(widget, the_module.panel) for widget in order]
    late = [
        (before.name, after.name)
        for before, after, first, second in zip(order, order[1:], places, places[1:], strict=False)
        if first > second
    ]
    assert late == []


def test_enter_in_the_table_shows_the_segment(the_module, panel, a_ct, segment, monkeypatch):
    assert segment() is not None
    jumps = []
    logic = slicer.modules.markups.logic()
    monkeypatch.setattr(slicer.modules.markups, "logic", lambda: Jumping(jumps, logic))
    table = panel.ui.resultTable
    table.setCurrentCell(0, 0)
    QTest.keyClick(table, qt.Qt.Key_Return)
    assert len(jumps) == 1


class Jumping:
    def __init__(self, jumps, logic):
        self._jumps, self._logic = jumps, logic

    def JumpSlicesToLocation(self, *place):
        self._jumps.append(place)


def test_tips_are_there_and_short(the_module):
    # What a model says of itself is a list, with a line for each entry.
    widgets = [
        widget
        for widget in the_module.panel.findChildren(qt.QWidget)
        if widget.name and widget.toolTip and "\n" not in widget.toolTip
    ]
    long = {widget.name: widget.toolTip for widget in widgets if len(widget.toolTip) > LONGEST_TIP}
    # A file's path is as long as it is.
    assert {name: tip for name, tip in long.items() if "/" not in tip} == {}
    assert [widget.toolTip for widget in widgets if len(re.findall(r"[.:] [A-Z]", widget.toolTip)) > 1] == []
    silent = [
        button.name
        for button in the_module.panel.findChildren(qt.QPushButton)
        if not button.toolTip and button.name != "segmentButton"
    ]
    assert silent == []
