"""Slicer's own Python files in the place of this host's, from a checkout that ``SLICER_SOURCE`` names."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path

import ctk
import pytest
import qt
import slicer
from pythonqt import stands_for_cpp

VARIABLE = "SLICER_SOURCE"
# Widgets that Slicer's files name and this module's panel has none of.
UNUSED = {
    ctk: (
        *("ctkCheckBox", "ctkCheckablePushButton", "ctkColorPickerButton", "ctkComboBox", "ctkDirectoryButton"),
        *("ctkDoubleRangeSlider", "ctkDoubleSlider", "ctkDoubleSpinBox", "ctkPathLineEdit", "ctkRangeWidget"),
        "ctkSliderWidget",
    ),
    slicer: ("qMRMLRangeWidget", "qMRMLSliderWidget", "qMRMLSpinBox", "qSlicerWidget"),
}


def folder() -> Path | None:
    """Return the checkout, or None where there is none."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else None


@functools.cache
def modules(checkout: Path) -> dict[str, object]:
    """Return Slicer's own modules by their names in ``sys.modules``.

    They see Qt as this host shows it, and what is of C++ as ``slicer-core`` has it.
    """
    for place, names in UNUSED.items():
        for name in names:
            setattr(place, name, stands_for_cpp(type(name, (qt.QWidget,), {})))
    base = checkout / "Base" / "Python" / "slicer"
    files = {
        "slicer.i18n": base / "i18n.py",
        "slicer.util": base / "util.py",
        "slicer.packaging": base / "packaging.py",
        "slicer.ScriptedLoadableModule": base / "ScriptedLoadableModule.py",
        "slicer.parameterNodeWrapper": base / "parameterNodeWrapper" / "__init__.py",
        "SampleData": checkout / "Modules" / "Scripted" / "SampleData" / "SampleData.py",
    }
    with pytest.MonkeyPatch.context() as patch:
        return {name: _load(patch, name, path) for name, path in files.items()}


def _load(patch: pytest.MonkeyPatch, name: str, path: Path) -> object:
    inside = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=inside)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Those that follow import it.
    patch.setitem(sys.modules, name, module)
    if name.startswith("slicer."):
        patch.setattr(slicer, name.removeprefix("slicer."), module, raising=False)
    spec.loader.exec_module(module)
    return module
