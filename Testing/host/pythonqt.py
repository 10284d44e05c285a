"""Gives PySide6 the meaning of PythonQt, the binding through which Slicer's Python code sees Qt.

The two differ where a panel's code is most easily wrong: in PythonQt ``label.text`` is the text and ``label.text()`` an
error. So every Qt property becomes an attribute here, and wins over a method of its name; an attribute that Qt does
not know cannot be set on a Qt object; and signals connect by signature too (``button.connect("clicked(bool)", f)``).

A list of texts reads as a tuple, a property of an object that Qt has destroyed raises ValueError, and to connect a
signal that does not exist prints a line and returns False, all as in PythonQt; such signals are kept for the tests.

Known to be different: only properties give lists of texts as tuples, methods do not; a method of a destroyed object
raises RuntimeError (PythonQt: ValueError); dynamic properties are read by ``property()`` only.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys

# Enums are integers in PythonQt. PySide6 makes them so if it is told before it is imported: integers (2), reachable
# from the class (4, 8, 16), and 0 and unknown bits allowed (32, 64).
os.environ["PYSIDE6_OPTION_PYTHON_ENUM"] = str(2 + 4 + 8 + 16 + 32 + 64)

from PySide6 import QtCore, QtGui, QtWidgets  # noqa: E402
from shiboken6 import Shiboken  # noqa: E402

MODULES = (QtCore, QtGui, QtWidgets)
# Seen in PySide6 6.12 on Python 3.11: each call of a method that returns nothing drops a reference to None, and when
# none is left the interpreter aborts. From Python 3.12 on None is immortal; before, it gets references to lose.
if sys.version_info < (3, 12):
    ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40
_ignoring = False
# What code wanted to connect that is not there.
unknown_signals: list[str] = []


class QtProperty:
    """A property of a Qt class, as an attribute.

    Parameters
    ----------
    name : str
        The property's name in Qt.
    method : callable or None
        PySide6's method of that name, which the attribute hides.
    """

    def __init__(self, name, method):
        self.name = name
        self.method = method
        self._reading = set()

    def __get__(self, instance, owner=None):
        if instance is None:
            return self.method
        _check(instance, f"read attribute '{self.name}'")
        key = id(instance)
        # Some getters are virtual, and Qt looks for a Python override of them here while the property is being read.
        if key in self._reading:
            return self.method.__get__(instance)
        self._reading.add(key)
        try:
            value = instance.property(self.name)
            return tuple(value) if isinstance(value, list) else value
        finally:
            self._reading.discard(key)

    def __set__(self, instance, value):
        _check(instance, f"set attribute '{self.name}'")
        value = list(value) if isinstance(value, tuple) else value
        if value is None or not instance.setProperty(self.name, value):
            raise AttributeError(f"Property '{self.name}' of {type(instance).__name__} cannot be set to {value!r}.")


def _check(instance, what):
    if not Shiboken.isValid(instance):
        raise ValueError(f"Trying to {what} of a destroyed {type(instance).__name__} object")


@contextlib.contextmanager
def ignoring_new_attributes():
    """Drop what PySide6's loader of .ui files does on its own: an attribute of the panel for each widget in it."""
    global _ignoring
    _ignoring = True
    try:
        yield
    finally:
        _ignoring = False


def stands_for_cpp(cls):
    """Mark a Python class of this host as one that is C++ in Slicer (class decorator)."""
    cls.stands_for_cpp = True
    return cls


def apply():
    """Change PySide6's classes; calling again does nothing."""
    if isinstance(vars(QtCore.QObject).get("objectName"), QtProperty):
        return
    classes = [getattr(module, name) for module in MODULES for name in dir(module)]
    classes = [cls for cls in classes if isinstance(cls, type) and issubclass(cls, QtCore.QObject)]
    # Bases first, so that a class finds its base's property and not yet hidden methods of its own.
    for cls in sorted(set(classes), key=lambda cls: len(cls.__mro__)):
        _make_attributes_of_properties(cls)
        cls.__setattr__ = _set_attribute
        if "__getattribute__" in vars(cls):
            cls.__getattribute__ = _getter(cls.__getattribute__)
    QtCore.QObject.name = QtCore.QObject.objectName = QtProperty("objectName", QtCore.QObject.objectName)
    QtCore.QObject.className = lambda self: self.metaObject().className()
    _stored.cache_clear()


def _make_attributes_of_properties(cls):
    meta = cls.staticMetaObject
    for index in range(meta.propertyCount()):
        name = meta.property(index).name()
        # Of a base's properties, those whose getter the class has again (sizeHint).
        if index >= meta.propertyOffset() or name in vars(cls):
            setattr(cls, name, QtProperty(name, getattr(cls, name, None)))


def _getter(plain):
    # Some classes of PySide6 look some names up in C, past what the class has: connect, QTimer.singleShot.
    def get(self, name):
        if name in ("connect", "disconnect"):
            return functools.partial(_signal, self, name)
        stored = _stored(type(self), name)
        return stored.__get__(self) if isinstance(stored, QtProperty) else plain(self, name)

    return get


@functools.cache
def _stored(cls, name):
    """Return what a class or a base has by a name; what counts here is made with the classes, and stays."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _set_attribute(self, name, value):
    cls = type(self)
    stored = _stored(cls, name)
    if isinstance(stored, QtCore.Property):
        QtProperty(name, None).__set__(self, value)
        return
    is_qt = cls.__module__.startswith("PySide6.") or ("stands_for_cpp" in vars(cls) and not name.startswith("_"))
    # PySide6 itself keeps a signal with its object once it was used.
    if not is_qt or hasattr(type(stored), "__set__") or isinstance(value, QtCore.SignalInstance):
        Shiboken.Object.__setattr__(self, name, value)
    elif not _ignoring:
        raise AttributeError(f"{cls.__name__} has no property '{name}' that can be set.")


def _signal(sender, verb, signal, receiver, slot=None):
    if isinstance(signal, QtCore.QObject):
        # PySide6's own QTimer.singleShot, which names the sender again.
        return getattr(QtCore.QObject, verb)(signal, receiver, slot)
    # Nodes and scenes are Python objects for PySide6.
    signature = QtCore.QMetaObject.normalizedSignature(re.sub(r"vtk\w+\s*\*", "PyObject", signal)).data().decode()
    if sender.metaObject().indexOfSignal(signature) < 0:
        unknown_signals.append(signal)
        print(f"QObject::{verb}: {type(sender).__name__} has no signal '{signal}'.", file=sys.stderr)
        return False
    if slot is not None:
        receiver = getattr(receiver, slot.split("(")[0])
    return bool(getattr(QtCore.QObject, verb)(sender, QtCore.SIGNAL(signature), receiver))
