"""How the panel's tables look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt

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


def showRows(table: Any, rows: int, fewest: int, most: int) -> None:
    """Make a table high enough for its rows, within limits; the rest is scrolled."""
    height = table.horizontalHeader().sizeHint.height() + ROW_HEIGHT * min(max(rows, fewest), most)
    table.minimumHeight = height + 2 * table.frameWidth
