"""The scripted module's file, without the Slicer application. Driving the real panel needs the stand-in host."""

from __future__ import annotations

import re
import subprocess
import sys
import unittest
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import slicer

from segmamba.errors import DeviceError
from segmamba.manifest import load_manifest

MODULE = Path(__file__).resolve().parents[2] / "SegMambaSlicer"

IMPORT_ONLY = """
import sys
from types import ModuleType
for name in ("slicer", "slicer.i18n", "slicer.ScriptedLoadableModule"):
    sys.modules[name] = ModuleType(name)
sys.modules["slicer.i18n"].tr = sys.modules["slicer.i18n"].translate = None
for kind in ("", "Widget", "Logic", "Test"):
    setattr(sys.modules["slicer.ScriptedLoadableModule"], "ScriptedLoadableModule" + kind, type("Base", (), {}))
import SegMambaSlicer
heavy = {"torch", "monai", "SimpleITK", "scipy", "matplotlib", "segmamba", "segmamba_mrml"} & set(sys.modules)
assert not heavy, heavy
"""


def test_import_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", IMPORT_ONLY], cwd=MODULE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_slicer_finds_the_four_classes_by_name(module):
    assert {name for name in vars(module) if name.startswith("SegMambaSlicer")} == {
        f"SegMambaSlicer{kind}" for kind in ("", "Widget", "Logic", "Test")
    }


def test_module_says_what_it_is_whom_to_thank_and_that_it_is_for_research(module):
    parent = SimpleNamespace()
    module.SegMambaSlicer(parent)
    assert parent.categories == ["Segmentation"]
    assert "not a medical device" in parent.helpText
    assert "10.1109/TMI.2025.3589797" in parent.acknowledgementText
    assert "SpineMamba" in parent.acknowledgementText


def test_every_widget_that_the_code_uses_is_in_the_ui_file():
    names = {
        widget.get("name") for widget in ElementTree.parse(MODULE / "Resources/UI/SegMambaSlicer.ui").iter("widget")
    }
    used = set(re.findall(r"self\.ui\.(\w+)", (MODULE / "SegMambaSlicer.py").read_text(encoding="utf-8")))
    assert used
    assert used <= names


def test_tasks_of_the_panel_are_those_of_the_manifest():
    source = (MODULE / "SegMambaSlicer.py").read_text(encoding="utf-8")
    tasks = re.findall(r'taskComboBox\.addItem\(_\("[^"]+"\), "(\w+)"\)', source)
    assert tuple(tasks) == load_manifest().tasks


def test_icon_is_a_square_png():
    data = (MODULE / "Resources/Icons/SegMambaSlicer.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(data[16 + 4 * axis : 20 + 4 * axis], "big") for axis in range(2)] == [128, 128]


def test_self_test_of_the_module_passes_on_the_mrml_core(module):
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(module.SegMambaSlicerTest).run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures


def test_tests_registered_for_slicer_pass_on_the_mrml_core(module, monkeypatch):
    monkeypatch.syspath_prepend(MODULE.parent / "Testing" / "Python")
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromName("SegMambaSlicerSceneTest").run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures


def test_start_needs_a_volume(module):
    widget = _widget(module, logic=None, node=None)
    widget.onInputChanged()
    assert not widget.ui.segmentButton.enabled
    widget = _widget(module, logic=None)
    widget.onInputChanged()
    assert widget.ui.segmentButton.enabled


def test_result_is_announced_and_the_button_is_ready_again(module):
    def segment(node, task, progress, cancelled):
        assert (node.GetName(), task) == ("case 7", "vertebrae")
        assert widget.ui.segmentButton.text == "Cancel"
        assert not widget.ui.inputSelector.enabled
        progress("predict", 0.5)
        assert widget.ui.statusLabel.text == "predict: 50 %"
        assert not cancelled()
        return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "case 7 vertebrae")

    widget = _widget(module, SimpleNamespace(segment=segment))
    widget.onSegmentButton()
    assert widget.ui.statusLabel.text == "0 structures found: 'case 7 vertebrae'."
    assert _is_ready(widget)


def test_second_click_cancels(module):
    def segment(node, task, progress, cancelled):
        widget.onSegmentButton()
        assert cancelled()
        raise DeviceError("stopped here")

    widget = _widget(module, SimpleNamespace(segment=segment))
    widget.onSegmentButton()
    assert _is_ready(widget)


def test_typed_error_is_shown_as_its_sentence(module):
    def segment(node, task, progress, cancelled):
        raise DeviceError("The GPU is busy: choose CPU.")

    widget = _widget(module, SimpleNamespace(segment=segment))
    widget.onSegmentButton()
    assert widget.ui.statusLabel.text == "The GPU is busy: choose CPU."
    assert _is_ready(widget)


def test_unexpected_error_reaches_the_console_and_leaves_the_panel_usable(module):
    def segment(node, task, progress, cancelled):
        raise KeyError("surprise")

    widget = _widget(module, SimpleNamespace(segment=segment))
    with pytest.raises(KeyError):
        widget.onSegmentButton()
    assert "Python console" in widget.ui.statusLabel.text
    assert _is_ready(widget)


def _widget(module, logic, node="case 7"):
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", node) if node else None
    widget = module.SegMambaSlicerWidget()
    widget.logic = logic
    # PythonQt gives Qt properties as attributes, so plain attributes stand for them.
    widget.ui = SimpleNamespace(
        inputSelector=SimpleNamespace(currentNode=lambda: volume, enabled=True),
        taskComboBox=SimpleNamespace(currentData="vertebrae", enabled=True),
        segmentButton=SimpleNamespace(text="Segment", enabled=False),
        statusLabel=SimpleNamespace(text=""),
    )
    return widget


def _is_ready(widget):
    ui = widget.ui
    return ui.segmentButton.text == "Segment" and ui.segmentButton.enabled and ui.inputSelector.enabled
