"""Loads .ui files with the widgets that only Slicer has."""

from __future__ import annotations

import functools
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
        content, wanted = _for_qt(bytes(file.readAll().data()))
        buffer = QBuffer()
        buffer.setData(QByteArray(content))
        buffer.open(QBuffer.OpenModeFlag.ReadOnly)
        with pythonqt.ignoring_new_attributes():
            widget = _loader().load(buffer)
        for sender, signal, receiver, slot in wanted:
            _named(widget, sender).connect(signal, _named(widget, receiver), slot)
        return widget


@functools.cache
def _loader():
    loader = _PySideLoader()
    for cls in CUSTOM_WIDGETS.values():
        loader.registerCustomWidget(cls)
    return loader


@functools.cache
def _for_qt(content):
    """Return a file as Qt's loader can take it, and the connections that are to be made after it.

    It cannot connect signals with nodes and scenes in them.
    """
    root = ElementTree.fromstring(content)
    declared = {element.findtext("class") for element in root.iter("customwidget")}
    if missing := declared - set(CUSTOM_WIDGETS):
        raise RuntimeError(f"The stand-in host has no {', '.join(sorted(missing))}.")
    connections = root.find("connections")
    if connections is None:
        return content, ()
    wanted = [
        [connection.findtext(part) for part in ("sender", "signal", "receiver", "slot")] for connection in connections
    ]
    root.remove(connections)
    return ElementTree.tostring(root), wanted


def _named(widget, name):
    found = widget if widget.objectName == name else widget.findChild(QObject, name)
    if found is None:
        raise RuntimeError(f"A connection in the .ui file names '{name}', which is not there.")
    return found
