"""Signals between the parts of the panel, like Qt's, without being an object of Qt's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Signal:
    """Calls what is connected to it, in the order in which it was connected.

    Examples
    --------
    >>> changed = Signal()
    >>> changed.connect(print)
    >>> changed.emit("L1", 0.5)
    L1 0.5
    """

    def __init__(self) -> None:
        self._slots: list[Callable[..., Any]] = []

    def connect(self, slot: Callable[..., Any] | None) -> None:
        """Call ``slot`` at each `emit` from now on; None connects nothing."""
        if slot is not None:
            self._slots.append(slot)

    def disconnect(self, slot: Callable[..., Any]) -> None:
        """Call ``slot`` no more; ValueError if it is not connected."""
        self._slots.remove(slot)

    def emit(self, *values: Any) -> None:
        """Call all slots with values. An error in one is raised, and those after it are not called."""
        for slot in list(self._slots):
            slot(*values)
