"""The stand-in Slicer host means what Slicer means: what these tests pin is what all tests of the panel rest on."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from typing import Annotated

import ctk
import psutil
import pytest
import qt
import slicer

TINY_MODULE = """
from slicer.ScriptedLoadableModule import *

class Tiny(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "Tiny"

class TinyWidget(ScriptedLoadableModuleWidget):
    def __init__(self, parent=None):
        self.heard = []
        ScriptedLoadableModuleWidget.__init__(self, parent)

for moment in ("setup", "enter", "exit", "cleanup"):
    setattr(TinyWidget, moment, lambda self, moment=moment: self.heard.append(moment))
"""


def test_property_reads_as_attribute_and_wins_over_the_method_of_its_name(a_slicer_host):
    label = qt.QLabel("ready")
    assert label.text == "ready"
    assert not callable(label.text)
    with pytest.raises(TypeError, match="not callable"):
        label.text()


def test_property_is_set_by_attribute_and_by_its_setter(a_slicer_host):
    button = qt.QPushButton()
    button.text = "Segment"
    button.setEnabled(False)
    assert (button.text, button.enabled, button.isEnabled()) == ("Segment", False, False)


def test_getter_that_is_virtual_in_qt_is_an_attribute_too(a_slicer_host):
    bar = qt.QProgressBar()
    bar.value, bar.format = 30, "%p of a hundred"
    assert bar.text == "30 of a hundred"
    assert qt.QSpinBox().sizeHint.height() > 0


@pytest.mark.parametrize(("name", "value"), [("txet", "typing error"), ("setText", print), ("text", None)])
def test_qt_object_takes_no_attribute_that_qt_does_not_know(a_slicer_host, name, value):
    with pytest.raises(AttributeError, match=name):
        setattr(qt.QLabel(), name, value)


def test_python_class_of_a_widget_takes_attributes_of_its_own(a_slicer_host):
    class Swatch(qt.QWidget):
        pass

    swatch = Swatch()
    swatch.segment = "L1"
    assert swatch.segment == "L1"


def test_enums_are_integers(a_slicer_host):
    assert qt.Qt.UserRole + 1 == 257
    frame = qt.QFrame()
    frame.frameShape = qt.QFrame.StyledPanel
    assert frame.frameShape == qt.QFrame.StyledPanel


def test_signal_connects_by_its_signature_and_by_its_name(a_slicer_host):
    button, heard = qt.QPushButton(), []
    assert button.connect("clicked(bool)", heard.append)
    assert button.connect("clicked()", lambda: heard.append("no argument"))
    button.clicked.connect(lambda: heard.append("by name"))
    button.click()
    assert heard == [False, "no argument", "by name"]
    assert button.disconnect("clicked(bool)", heard.append)
    button.click()
    assert heard[3:] == ["no argument", "by name"]


def test_misspelt_signal_is_a_line_that_nobody_reads_and_kept_for_the_end_of_the_test(a_slicer_host, capsys):
    assert qt.QPushButton().connect("clickt(bool)", print) is False
    assert "clickt(bool)" in capsys.readouterr().err
    assert a_slicer_host.unknown_signals == ["clickt(bool)"]
    a_slicer_host.unknown_signals.clear()


def test_list_of_texts_reads_as_a_tuple(a_slicer_host):
    browser = qt.QTextBrowser()
    browser.searchPaths = ["a", "b"]
    assert browser.searchPaths == ("a", "b")
    assert _selector().nodeTypes == ("vtkMRMLScalarVolumeNode",)


def test_destroyed_object_raises(a_slicer_host):
    label = qt.QLabel("ready")
    label.deleteLater()
    a_slicer_host.process_events()
    with pytest.raises(ValueError, match="destroyed QLabel"):
        _ = label.text
    with pytest.raises(ValueError, match="destroyed QLabel"):
        label.text = "gone"


def test_python_is_a_launcher_with_a_child_that_gets_no_signal(a_slicer_host):
    program = "import time; print('ready', flush=True); time.sleep(3600)"
    process = slicer.util.launchConsoleProcess([sys.executable, "-IS", "-c", program])
    assert process.stdout.readline() == "ready\n"
    (python,) = psutil.Process(process.pid).children()
    process.terminate()
    assert process.wait() == -signal.SIGTERM and python.is_running()
    python.kill()
    process.stdout.close()


@pytest.mark.parametrize(("end", "status"), [("os._exit(130)", 130), ("os.abort()", 1)])
def test_launcher_says_that_its_child_crashed_and_hides_how(a_slicer_host, end, status):
    assert shutil.which("PythonSlicer") == sys.executable
    process = slicer.util.launchConsoleProcess([sys.executable, "-IS", "-c", f"import os; {end}"])
    said, _none = process.communicate()
    assert (process.returncode, "exit abnormally" in said) == (status, status == 1)


def test_pip_runs_as_a_module_of_slicers_python_one_at_a_time(a_slicer_host, wait_until):
    lines, ends = [], []
    slicer.packaging.pip_install("torch", blocking=False, logCallback=lines.append, completedCallback=ends.append)
    assert slicer.packaging.isPipInstallInProgress()
    with pytest.raises(RuntimeError, match="already in progress"):
        slicer.packaging.pip_install("torch", blocking=False)
    wait_until(lambda: ends)
    assert a_slicer_host.pip.calls == [["pip", "install", "torch"]]
    assert (lines, ends) == (["Successfully installed everything"], [0])
    assert not slicer.packaging.isPipInstallInProgress()


def test_timer_connects_by_signature_too(a_slicer_host, wait_until):
    timer, ticks = qt.QTimer(), []
    timer.singleShot = True
    timer.connect("timeout()", lambda: ticks.append(1))
    timer.start(1)
    assert timer.active
    wait_until(lambda: ticks)
    assert not timer.active


def test_dialog_is_refused(a_slicer_host):
    for opening in (lambda: qt.QMessageBox.question(None, "a", "b"), lambda: qt.QMessageBox().exec_()):
        with pytest.raises(qt.DialogOpenedError, match="QMessageBox"):
            opening()


def test_message_box_of_slicer_is_recorded_and_declined(a_slicer_host):
    assert not slicer.util.confirmOkCancelDisplay("Overwrite?")
    a_slicer_host.answer = qt.QMessageBox.Ok
    assert slicer.util.confirmOkCancelDisplay("Really?")
    assert a_slicer_host.take_messages() == ["Overwrite?", "Really?"]


def test_error_in_a_slot_is_kept_for_the_end_of_the_test(a_slicer_host):
    button = qt.QPushButton()
    button.clicked.connect(lambda: 1 / 0)
    button.click()
    assert [type(error) for error in a_slicer_host.errors] == [ZeroDivisionError]
    a_slicer_host.errors.clear()


def test_settings_of_a_test_are_empty_and_its_own(a_slicer_host):
    assert not qt.QSettings().allKeys()
    slicer.app.settings().setValue("SegMambaSlicer/device", "cpu")
    assert slicer.util.settingsValue("SegMambaSlicer/device", "auto") == "cpu"


def test_ui_file_is_loaded_with_slicers_widgets_and_its_connections_made(a_slicer_host, tmp_path):
    panel = slicer.util.loadUI(str(_ui_file(tmp_path)))
    ui = slicer.util.childWidgetVariables(panel)
    assert ui.selector.mrmlScene() is None
    panel.setMRMLScene(slicer.mrmlScene)
    assert ui.selector.mrmlScene() is slicer.mrmlScene
    assert ui.selector.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    assert not hasattr(panel, "selector")


def test_ui_file_with_an_unknown_widget_is_refused(a_slicer_host, tmp_path):
    path = _ui_file(tmp_path)
    path.write_text(path.read_text().replace("qMRMLNodeComboBox", "qMRMLWonderBox"))
    with pytest.raises(RuntimeError, match="qMRMLWonderBox"):
        slicer.util.loadUI(str(path))


def test_node_selector_follows_the_scene(a_slicer_host):
    selector, heard = _selector(addEnabled=False, removeEnabled=False), []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    assert selector.currentNode() is None
    first = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT 1")
    second = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT 2")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    assert selector.nodeCount() == 2
    assert selector.currentNode() is first
    selector.setCurrentNode(second)
    assert selector.currentNodeID == second.GetID()
    slicer.mrmlScene.RemoveNode(second)
    assert heard == [first, second, first]
    slicer.mrmlScene.Clear(0)
    assert heard[3:] == [None]


@pytest.mark.parametrize("entry", ["noneEnabled", "addEnabled"])
def test_node_selector_with_other_entries_selects_nothing_by_itself(a_slicer_host, entry):
    selector = _selector(**{"addEnabled": False, "removeEnabled": False, entry: True})
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    assert selector.currentNode() is None
    selector.setCurrentNodeIndex(0)
    assert selector.currentNode().GetName() == "CT"
    slicer.mrmlScene.RemoveNode(selector.currentNode())
    assert selector.currentNode() is None


def test_user_creates_a_node_in_the_selector(a_slicer_host):
    selector, heard = _selector(baseName="region"), []
    selector.connect("nodeAddedByUserAction(vtkMRMLNode*)", heard.append)
    box = selector.findChild(qt.QComboBox)
    box.activated.emit(box.findText("Create new Volume"))
    assert heard == [selector.currentNode()]
    assert heard[0].GetName() == "region"


def test_collapsed_section_hides_its_contents_but_not_what_was_hidden_before(a_slicer_host):
    section = ctk.ctkCollapsibleButton()
    layout = qt.QVBoxLayout(section)
    shown, hidden = qt.QLabel("shown"), qt.QLabel("hidden")
    for label in (shown, hidden):
        layout.addWidget(label)
    hidden.visible = False
    section.show()
    section.collapsed = True
    assert not shown.visible
    section.click()
    assert (section.collapsed, shown.visible, hidden.visible) == (False, True, False)


def test_parameter_node_keeps_typed_values_in_the_scene(a_slicer_host):
    parameters = _parameters()
    assert (parameters.quality, parameters.postprocess, parameters.volume) == ("standard", True, None)
    parameters.volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    parameters.postprocess = False
    again = type(parameters)(parameters.parameterNode)
    assert (again.volume.GetName(), again.postprocess) == ("CT", False)
    with pytest.raises(ValueError, match="best"):
        parameters.quality = "best"
    with pytest.raises(TypeError, match="bool"):
        parameters.postprocess = "no"


def test_parameter_and_widget_follow_one_another(a_slicer_host):
    parameters, box, check = _parameters(), qt.QComboBox(), qt.QCheckBox()
    tag = parameters.connectParametersToGui({"quality": box, "postprocess": check})
    assert (box.count, box.currentText, check.checked) == (2, "standard", True)
    box.currentIndex = 0
    assert parameters.quality == "fast"
    parameters.postprocess = False
    assert not check.checked
    parameters.disconnectGui(tag)
    check.checked = True
    assert not parameters.postprocess


def test_widget_that_slicer_cannot_connect_is_refused(a_slicer_host):
    with pytest.raises(RuntimeError, match="bool"):
        _parameters().connectParametersToGui({"postprocess": qt.QLineEdit()})


def test_scripted_module_is_loaded_shown_entered_left_and_reloaded(a_slicer_host, tmp_path):
    path = tmp_path / "Tiny.py"
    path.write_text(TINY_MODULE)
    module = a_slicer_host.load(path)
    assert (module.title, module.name, slicer.util.modulePath("Tiny")) == ("Tiny", "Tiny", str(path))
    module.widgetRepresentation()
    first = slicer.util.getModuleWidget("Tiny")
    slicer.util.selectModule("Tiny")
    slicer.util.selectModule("SegmentEditor")
    assert first.heard == ["setup", "enter", "exit"]
    slicer.util.reloadScriptedModule("Tiny")
    second = slicer.modules.TinyWidget
    assert second is not first
    assert (first.heard[3:], second.heard) == (["cleanup"], ["setup"])
    module.unload()
    assert second.heard == ["setup", "cleanup"]
    assert first.heard[3:] == ["cleanup"]


def test_host_leaves_a_plain_core_behind(tmp_path):
    from slicer_host import SlicerHost

    host = SlicerHost(tmp_path)
    host.start()
    assert slicer.app.applicationName == "Slicer"
    host.stop()
    assert not hasattr(slicer, "app")
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSliceNode") == 0


def _selector(**properties):
    selector = slicer.qMRMLNodeComboBox()
    for name, value in {"nodeTypes": ["vtkMRMLScalarVolumeNode"], "showChildNodeTypes": False, **properties}.items():
        setattr(selector, name, value)
    selector.setMRMLScene(slicer.mrmlScene)
    return selector


def _parameters():
    from slicer.parameterNodeWrapper import Choice, parameterNodeWrapper

    class Parameters:
        volume: slicer.vtkMRMLScalarVolumeNode
        quality: Annotated[str, Choice(["fast", "standard"])] = "standard"
        postprocess: bool = True

    # Evaluated here, where Choice is known: the annotations above are text until then.
    Parameters.__annotations__ = {
        name: eval(hint, {**globals(), "Choice": Choice}) for name, hint in Parameters.__annotations__.items()
    }
    return parameterNodeWrapper(Parameters)(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))


def _ui_file(folder):
    path = folder / "panel.ui"
    text = """<ui version="4.0"><class>P</class>
     <widget class="qMRMLWidget" name="P"><layout class="QVBoxLayout" name="l"><item>
      <widget class="qMRMLNodeComboBox" name="selector">
       <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
      </widget></item></layout></widget>
     <customwidgets>
      <customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends></customwidget>
      <customwidget><class>qMRMLWidget</class><extends>QWidget</extends></customwidget>
     </customwidgets>
     <connections><connection><sender>P</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
      <receiver>selector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""
    path.write_text(re.sub(r"\n\s+", "", text))
    return path
