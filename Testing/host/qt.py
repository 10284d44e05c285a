"""The module ``qt`` of Slicer: all classes of Qt under one name, with PythonQt's meaning. No dialog opens from it."""

from __future__ import annotations

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import pythonqt  # noqa: E402

pythonqt.apply()
for _module in pythonqt.MODULES:
    globals().update({_name: getattr(_module, _name) for _name in dir(_module) if not _name.startswith("_")})

from ui_loader import QUiLoader  # noqa: E402, F401


class DialogOpenedError(RuntimeError):
    """Code under test opened a dialog, which nobody would close."""


def _refuse(name):
    def opened(*_arguments, **_options):
        raise DialogOpenedError(f"{name} opened a dialog.")

    return opened


_STARTERS = {
    "QDialog": ["exec", "exec_", "open"],
    "QMenu": ["exec", "exec_"],
    "QMessageBox": ["about", "critical", "information", "question", "warning", "exec", "exec_", "open"],
    "QFileDialog": [
        *("getExistingDirectory", "getOpenFileName", "getOpenFileNames", "getSaveFileName"),
        *("exec", "exec_", "open"),
    ],
    "QInputDialog": ["getDouble", "getInt", "getItem", "getMultiLineText", "getText", "exec", "exec_", "open"],
}
for _name, _methods in _STARTERS.items():
    for _method in _methods:
        setattr(globals()[_name], _method, staticmethod(_refuse(f"{_name}.{_method}")))
