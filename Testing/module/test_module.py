"""The scripted module's entry: what it loads, what Slicer is told of it, and its self-tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unittest
from xml.etree import ElementTree

import pytest
import slicer
from helpers.repository import PACKAGES

from segmamba.models.manifest import load_manifest

TESTING = PACKAGES.parent / "Testing"

IMPORT_ONLY = """
import sys
from types import ModuleType
for name in ("slicer", "slicer.i18n", "slicer.ScriptedLoadableModule", "slicer.util"):
    sys.modules[name] = ModuleType(name)
sys.modules["slicer.i18n"].tr = sys.modules["slicer.i18n"].translate = None
sys.modules["slicer.util"].VTKObservationMixin = type("Mixin", (), {})
for kind in ("", "Widget", "Logic", "Test"):
    setattr(sys.modules["slicer.ScriptedLoadableModule"], "ScriptedLoadableModule" + kind, type("Base", (), {}))
import SegMambaSlicer
own = {"segmamba", "segmamba_mrml", "SegMambaSlicerLib"}
heavy = ({"torch", "monai", "SimpleITK", "scipy", "matplotlib"} | own) & set(sys.modules)
assert not heavy, heavy
"""

OPEN_PANEL = """
import sys
from pathlib import Path
from slicer_host import SlicerHost
host = SlicerHost(Path(sys.argv[1]))
host.start()
widget = host.load(Path("SegMambaSlicer.py").absolute()).widgetRepresentation().self()
host.process_events()
assert widget.ui.modelSummaryLabel.text
assert not host.errors
assert "torch" not in sys.modules
host.stop()
"""


def run_python(code, *arguments):
    paths = os.pathsep.join(map(str, (PACKAGES, TESTING / "host")))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=PACKAGES, env=environment, capture_output=True, text=True, check=False)


def test_import_loads_nothing_heavy():
    done = run_python(IMPORT_ONLY)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_panel_opens_without_torch(tmp_path):
    done = run_python(OPEN_PANEL, tmp_path / "slicer")
    assert done.returncode == 0, done.stderr


def test_slicer_finds_the_four_classes_by_name(the_module):
    assert {name for name in vars(the_module.python) if name.startswith("SegMambaSlicer")} == {
        f"SegMambaSlicer{kind}" for kind in ("", "Widget", "Logic", "Test")
    }


def test_module_says_what_it_is_whom_to_thank_and_that_it_is_for_research(the_module):
    entry = the_module.module
    assert entry.categories == ["Segmentation"]
    assert "not a medical device" in entry.helpText
    assert all(modality in entry.helpText for model in load_manifest().models for modality in model.modalities)
    assert "10.1109/TMI.2025.3589797" in entry.acknowledgementText
    assert "SpineMamba" in entry.acknowledgementText
    assert not entry.icon.isNull()


def test_every_widget_that_the_code_uses_is_in_the_ui_file():
    names = {
        widget.get("name") for widget in ElementTree.parse(PACKAGES / "Resources/UI/SegMambaSlicer.ui").iter("widget")
    }
    sources = [PACKAGES / "SegMambaSlicer.py", *(PACKAGES / "SegMambaSlicerLib").glob("*.py")]
    used = {name for path in sources for name in re.findall(r"\bui\.(\w+)", path.read_text(encoding="utf-8"))}
    assert used
    assert used <= names


def test_tasks_and_models_of_the_panel_are_those_of_the_manifest(the_module):
    manifest, combo = load_manifest(), the_module.ui.taskComboBox
    assert tuple(combo.itemData(index) for index in range(combo.count)) == manifest.tasks
    models = the_module.ui.modelComboBox
    for index in range(combo.count):
        combo.currentIndex = index
        shown = [models.itemData(each) for each in range(models.count)]
        assert shown == [model.id for model in manifest.models if model.task == combo.currentData]


def test_no_file_of_the_module_is_longer_than_a_sitting():
    sources = [PACKAGES / "SegMambaSlicer.py", *(PACKAGES / "SegMambaSlicerLib").glob("*.py")]
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 400 for path in sources)


def test_icon_is_a_square_png():
    data = (PACKAGES / "Resources/Icons/SegMambaSlicer.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(data[16 + 4 * axis : 20 + 4 * axis], "big") for axis in range(2)] == [128, 128]


def test_self_test_of_the_module_passes(the_module):
    the_module.module.self().runTest()


def test_tests_registered_for_slicer_pass(the_module, monkeypatch):
    monkeypatch.syspath_prepend(TESTING / "Python")
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromName("SegMambaSlicerSceneTest").run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures


def test_documentation_names_a_test_for_every_control():
    interactive = {"qMRMLNodeComboBox", "QComboBox", "QPushButton", "QProgressBar", "QTableWidget", "QListWidget"}
    interactive |= {"QCheckBox", "QPlainTextEdit", "QLineEdit", "QDoubleSpinBox", "ctkCollapsibleButton"}
    widgets = ElementTree.parse(PACKAGES / "Resources/UI/SegMambaSlicer.ui").iter("widget")
    controls = {widget.get("name") for widget in widgets if widget.get("class") in interactive}
    page = (PACKAGES.parent / "Docs/contributing/panel-controls.md").read_text("utf-8")
    rows = re.findall(r"^\| (\w[^|]*) \| (test_[^|]*) \|$", page, re.M)
    assert {name for names, _tests in rows for name in names.split(", ")} == controls
    sources = "".join(path.read_text(encoding="utf-8") for path in (TESTING / "module").glob("test_*.py"))
    assert all(f"def {test}(" in sources for _names, tests in rows for test in tests.split(", "))


def test_samples_are_offered_once_slicer_has_started_with_verifiable_files(the_module):
    assert slicer.modules.sampleDataSources == {}
    for _repetition in range(2):
        slicer.app.startupCompleted.emit()
    (category, sources), *others = slicer.modules.sampleDataSources.items()
    assert (category, others) == ("SegMambaSlicer", [])
    assert [source.nodeNames for source in sources] == [["CTChest"], ["CTLiver"]]
    for source in sources:
        digest = source.checksums[0].removeprefix("SHA256:")
        # The address at which Slicer keeps a file is its digest.
        assert len(digest) == 64 and source.uris == [f"{slicer.util.TESTING_DATA_URL}SHA256/{digest}"]
