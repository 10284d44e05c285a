"""``slicer.ScriptedLoadableModule``, and the C++ objects around a scripted module: they load it, show it, reload it."""

from __future__ import annotations

import importlib.util
import logging
import sys
import unittest
from pathlib import Path

import qt
import slicer
from pythonqt import stands_for_cpp

from slicer_host.qmrml import qMRMLWidget


class ScriptedLoadableModule:
    """A module's entry; ``parent`` is the C++ module, which carries title, categories and icon."""

    def __init__(self, parent):
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.helpText, parent.acknowledgementText = "", "", ""
        parent.categories, parent.dependencies, parent.contributors = [], [], []
        icons = Path(parent.path).parent / "Resources" / "Icons"
        found = [path for path in (icons / f"{self.moduleName}{kind}" for kind in (".svg", ".png")) if path.is_file()]
        parent.icon = qt.QIcon(str(found[0])) if found else qt.QIcon()

    def resourcePath(self, filename):
        return str(Path(self.parent.path).parent / "Resources" / filename)

    def runTest(self, msec=100, **kwargs):
        test = getattr(sys.modules[type(self).__module__], f"{self.moduleName}Test")()
        test.messageDelay = msec
        test.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    """A module's panel. Without ``parent`` it makes itself a window, sets itself up and shows itself."""

    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent or slicer.qMRMLWidget()
        if not parent:
            self.parent.setLayout(qt.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        self.layout = self.parent.layout()
        if not parent:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename):
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)

    def setup(self):
        """Slicer adds its reload buttons here for developers."""

    def cleanup(self):
        """For the module to override."""

    def _onModuleAboutToBeUnloaded(self, name):
        if name == self.moduleName:
            self.cleanup()
            manager = slicer.app.moduleManager()
            manager.disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)


class ScriptedLoadableModuleLogic:
    """A module's logic, with its parameter node in the scene."""

    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self):
        nodes = self.getAllParameterNodes()
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            nodes = [node] if node else []
        node = nodes[0] if nodes else slicer.mrmlScene.AddNode(self.createParameterNode())
        node.SetAttribute("ModuleName", self.moduleName)
        return node

    def getAllParameterNodes(self):
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self):
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """A module's self-test."""

    def delayDisplay(self, message, requestedDelay=None, msec=None):
        logging.info(message)
        slicer.app.processEvents()

    def runTest(self):
        for name in [name for name in dir(self) if name.startswith("test")]:
            self.setUp()
            getattr(self, name)()
            self.tearDown()


@stands_for_cpp
class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The C++ widget that a scripted panel lives in."""

    def __init__(self, module):
        super().__init__()
        self._module, self._python = module, None
        qt.QVBoxLayout(self)

    def self(self):
        return self._python

    def setup(self):
        name = f"{self._module.name}Widget"
        self._python = getattr(sys.modules[self._module.name], name)(self)
        setattr(slicer.modules, name, self._python)
        self._python.setup()

    reload = setup


@stands_for_cpp
class qSlicerScriptedLoadableModule(qt.QObject):
    """The C++ module: loads the file, makes entry and panel.

    Parameters
    ----------
    path : Path
        The module's ``.py`` file. Its folder goes on the path, as in Slicer.
    """

    def __init__(self, path):
        super().__init__()
        self._file, self._widget = str(path), None
        self._said = {}
        self.setObjectName(path.stem)
        setattr(slicer.modules, path.stem.lower(), self)
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[path.stem])
        self._python = getattr(sys.modules[path.stem], path.stem)(self)
        setattr(slicer.modules, f"{path.stem}Instance", self._python)

    path = property(lambda self: self._file)

    def self(self):
        return self._python

    def widgetRepresentation(self):
        """Return the panel, made and set up at the first call."""
        if self._widget is None:
            self._widget = qSlicerScriptedLoadableModuleWidget(self)
            self._widget.setMRMLScene(slicer.mrmlScene)
            self._widget.setup()
        return self._widget

    def unload(self):
        """Take the panel away, as Slicer does when it closes."""
        slicer.app.moduleManager().moduleAboutToBeUnloaded.emit(self.name)
        if self._widget is not None:
            self._widget.hide()
            self._widget.deleteLater()
            self._widget = None


def _said(name):
    return property(lambda self: self._said[name], lambda self, value: self._said.update({name: value}))


for _name in ("title", "helpText", "acknowledgementText", "categories", "dependencies", "contributors", "icon"):
    setattr(qSlicerScriptedLoadableModule, _name, _said(_name))
