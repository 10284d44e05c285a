"""How the panel's tables and sentences look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt

from SegMambaSlicerLib.messages import WARNING_STYLE, inPanel

ROW_HEIGHT = 22


def prepareTable(table: Any, titles: Sequence[str]) -> None:
    """Give a table its columns, the first of which takes the room that the others leave."""
    table.columnCount = len(titles)
    table.setHorizontalHeaderLabels(list(titles))
    header = table.horizontalHeader()
    header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
    # Otherwise all titles turn bold with each row that is selected.
    header.highlightSections = False
    table.verticalHeader().defaultSectionSize = ROW_HEIGHT
    # The arrow keys go from row to row, and the tabulator to what is below.
    table.tabKeyNavigation = False


def showRows(table: Any, rows: int, fewest: int, most: int) -> None:
    """Make a table high enough for its rows, within limits; the rest is scrolled."""
    height = table.horizontalHeader().sizeHint.height() + ROW_HEIGHT * min(max(rows, fewest), most)
    table.minimumHeight = height + 2 * table.frameWidth


def showSentence(label: Any, text: str, problem: bool = False) -> None:
    """Show a sentence in a label, marked if it is about a problem; an empty one hides the label.

    Options of the command line that the engine speaks of are named as the panel's controls.
    """
    label.text = inPanel(text)
    label.styleSheet = WARNING_STYLE if problem else ""
    label.visible = bool(text)
