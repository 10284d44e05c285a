"""Loads .ui files with the widgets that only Slicer has."""

from __future__ import annotations

from xml.etree import ElementTree

import pythonqt
from PySide6.QtCore import QBuffer, QByteArray, QObject
from PySide6.QtUiTools import QUiLoader as _PySideLoader

# Class name -> class; the modules of this host add theirs.
CUSTOM_WIDGETS: dict[str, type] = {}


def custom_widget(cls):
    """Let .ui files use a widget class of this host (class decorator)."""
    CUSTOM_WIDGETS[cls.__name__] = cls
    return cls


class QUiLoader:
    """Qt's loader, which also knows the custom widgets and connects their signals.

    Raises
    ------
    RuntimeError
        The file uses a widget class that this host does not have.
    """

    def load(self, file):
        """Return the widget that an open ``QFile`` describes."""
        root = ElementTree.fromstring(bytes(file.readAll().data()))
        declared = {element.findtext("class") for element in root.iter("customwidget")}
        if missing := declared - set(CUSTOM_WIDGETS):
            raise RuntimeError(f"The stand-in host has no {', '.join(sorted(missing))}.")
        connections = root.find("connections")
        wanted = [
            [connection.findtext(part) for part in ("sender", "signal", "receiver", "slot")]
            for connection in (connections if connections is not None else [])
        ]
        if connections is not None:
            # Qt's loader cannot connect signals with nodes and scenes in them: done below.
            root.remove(connections)
        loader = _PySideLoader()
        for cls in CUSTOM_WIDGETS.values():
            loader.registerCustomWidget(cls)
        buffer = QBuffer()
        buffer.setData(QByteArray(ElementTree.tostring(root)))
        buffer.open(QBuffer.OpenModeFlag.ReadOnly)
        with pythonqt.ignoring_new_attributes():
            widget = loader.load(buffer)
        for sender, signal, receiver, slot in wanted:
            _named(widget, sender).connect(signal, _named(widget, receiver), slot)
        return widget


def _named(widget, name):
    found = widget if widget.objectName == name else widget.findChild(QObject, name)
    if found is None:
        raise RuntimeError(f"A connection in the .ui file names '{name}', which is not there.")
    return found
