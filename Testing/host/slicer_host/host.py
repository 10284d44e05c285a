"""Starts the stand-in application and takes it away again, so that other tests see a plain ``slicer-core``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ctk  # noqa: F401  (for .ui files)
import pytest
import pythonqt
import qt
import slicer
from launcher import make_launcher

from segmamba_mrml import application as mrml_host
from slicer_host import application, packaging, parameter_node, qmrml, sample_data, scripted_module, slicer_source


@dataclass(frozen=True)
class Message:
    """A message box that Slicer would have shown."""

    text: str
    options: dict


class SlicerHost:
    """One run of the application, for one test.

    Attributes
    ----------
    messages : list of Message
        What Slicer would have shown in a message box; a test that expects one takes it away.
    answer : int
        The button that "the user" clicks in the next message boxes; by default the one that declines.
    errors : list of Exception
        What Python code that Qt called raised; Slicer prints it, a test fails of it.
    unknown_signals : list of str
        Signals that do not exist and that code wanted to connect; PythonQt prints a line, a test fails of it.
    pip : packaging.Pip
        What pip was asked for and shall answer. Nothing is ever installed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.messages: list[Message] = []
        self.answer = qt.QMessageBox.Cancel
        self.errors: list[BaseException] = []
        self.unknown_signals = pythonqt.unknown_signals = []
        self.pip = packaging.Pip(folder)
        self._patch = pytest.MonkeyPatch()

    def start(self):
        """Make ``slicer`` what it is inside the application, with an empty scene."""
        patch = self._patch
        mrml_host.start()
        slicer.mrmlScene.Clear(0)
        assert slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        for name in ("Red", "Green", "Yellow"):
            _add_view("vtkMRMLSliceNode", name)
            _add_view("vtkMRMLSliceCompositeNode", name)
        app = qt.QApplication.instance() or application.SlicerApplication()
        app._folder, app._manager = str(self.folder), application.ModuleManager()
        (self.folder / "temporary").mkdir(parents=True)
        qt.QSettings.setDefaultFormat(qt.QSettings.IniFormat)
        qt.QSettings.setPath(qt.QSettings.IniFormat, qt.QSettings.UserScope, str(self.folder / "settings"))
        launcher = make_launcher(self.folder / "bin")
        patch.setenv("PATH", str(launcher.parent), prepend=os.pathsep)
        patch.setattr(sys, "executable", str(launcher))
        patch.setattr(sys, "excepthook", self._on_error)
        patch.setattr(slicer, "app", app, raising=False)
        patch.setattr(slicer, "modules", SimpleNamespace(**vars(slicer.modules)))
        slicer.modules.segmenteditor = slicer.modules.SegmentEditorWidget = application.SegmentEditor()
        for cls in (
            *(qmrml.qMRMLWidget, qmrml.qMRMLNodeComboBox),
            *(scripted_module.qSlicerScriptedLoadableModule, scripted_module.qSlicerScriptedLoadableModuleWidget),
        ):
            patch.setattr(slicer, cls.__name__, cls, raising=False)
        self._add_modules()
        patch.setattr(slicer.util, "messageBox", self._on_message)
        patch.setattr(slicer.util, "executePythonModule", self.pip.execute)
        self._window = application.MainWindow()

    def _add_modules(self):
        translation = ModuleType("slicer.i18n")
        translation.tr, translation.translate = (lambda text: text), (lambda _context, text: text)
        modules = {
            "SampleData": sample_data,
            "slicer.i18n": translation,
            "slicer.ScriptedLoadableModule": scripted_module,
            "slicer.parameterNodeWrapper": parameter_node,
            "slicer.packaging": packaging,
        }
        checkout = slicer_source.folder()
        if checkout is not None:
            modules = slicer_source.modules(checkout)
        self._patch.setattr(modules["slicer.packaging"], "_pip_install_in_progress", False)
        self._patch.setattr(slicer.modules, "sampleDataSources", {}, raising=False)
        for name, module in modules.items():
            self._patch.setitem(sys.modules, name, module)
            if name.startswith("slicer."):
                self._patch.setattr(slicer, name.removeprefix("slicer."), module, raising=False)

    def stop(self):
        """Undo all of ``start``; the Qt application stays, since a process can have one only."""
        for module in [each for each in vars(slicer.modules).values() if hasattr(each, "unload")]:
            module.unload()
        self._window.deleteLater()
        self.process_events()
        slicer.mrmlScene.Clear(0)
        # Singletons outlive that, as in Slicer; all of them would take the colour tables along.
        for kind in ("vtkMRMLScriptedModuleNode", "vtkMRMLSliceCompositeNode", "vtkMRMLSliceNode"):
            for node in slicer.util.getNodesByClass(kind):
                slicer.mrmlScene.RemoveNode(node)
        self._patch.undo()

    def load(self, path: Path):
        """Load a scripted module's file and return the module (``.widgetRepresentation().self()`` is its panel)."""
        self._patch.delitem(sys.modules, path.stem, raising=False)
        self._patch.setattr(sys, "path", list(sys.path))
        return scripted_module.qSlicerScriptedLoadableModule(path)

    def process_events(self):
        """Let Qt do what is due, deletions too."""
        qt.QApplication.processEvents()
        qt.QApplication.sendPostedEvents(None, qt.QEvent.DeferredDelete)

    def take_messages(self):
        """Return the texts of the message boxes so far, and forget them."""
        texts = [message.text for message in self.messages]
        self.messages.clear()
        return texts

    def _on_message(self, text, parent=None, **options):
        self.messages.append(Message(text, options))
        return self.answer

    def _on_error(self, kind, error, traceback):
        self.errors.append(error)
        sys.__excepthook__(kind, error, traceback)


def _add_view(kind, name):
    node = slicer.mrmlScene.CreateNodeByClass(kind)
    node.UnRegister(None)
    node.SetName(name)
    node.SetLayoutName(name)
    node.SetSingletonTag(name)
    slicer.mrmlScene.AddNode(node)
