"""The part of the panel that keeps what happened, to read and to copy into a report."""

from __future__ import annotations

import time
from typing import Any

import slicer

LINES = 2000


class LogSection:
    """Shows lines with the time at which they came.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.
    """

    def __init__(self, ui: Any) -> None:
        self._text = ui.logText
        self._text.maximumBlockCount = LINES
        ui.copyLogButton.connect("clicked(bool)", self._onCopy)

    def add(self, line: str) -> None:
        """Add a line."""
        self._text.appendPlainText(f"{time.strftime('%H:%M:%S')}  {line}")

    def clear(self) -> None:
        """Forget the last run."""
        self._text.clear()

    def _onCopy(self, _checked: bool = False) -> None:
        slicer.app.clipboard().setText(self._text.plainText)
