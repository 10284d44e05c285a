"""The module's file, imported on slicer-core with stand-ins for what only the Slicer application has."""

from __future__ import annotations

import importlib
import sys
import unittest
from types import ModuleType, SimpleNamespace

import pytest
import slicer

from segmamba_mrml import host


class _Base:
    def __init__(self, parent=None):
        self.parent = parent


class _TestBase(unittest.TestCase):
    pass


@pytest.fixture
def module(monkeypatch):
    """The imported ``SegMambaSlicer.py``."""
    host.start()
    translation, bases = ModuleType("slicer.i18n"), ModuleType("slicer.ScriptedLoadableModule")
    translation.tr = lambda text: text
    translation.translate = lambda context, text: text
    for kind in ("", "Widget", "Logic"):
        setattr(bases, f"ScriptedLoadableModule{kind}", _Base)
    bases.ScriptedLoadableModuleTest = _TestBase
    monkeypatch.setitem(sys.modules, "slicer.i18n", translation)
    monkeypatch.setitem(sys.modules, "slicer.ScriptedLoadableModule", bases)
    monkeypatch.setattr(slicer, "app", SimpleNamespace(processEvents=lambda: None), raising=False)
    monkeypatch.delitem(sys.modules, "SegMambaSlicer", raising=False)
    slicer.mrmlScene.Clear(0)
    yield importlib.import_module("SegMambaSlicer")
    sys.modules.pop("SegMambaSlicer", None)
