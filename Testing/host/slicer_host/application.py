"""What ``slicer.app`` and the main window are to a module."""

from __future__ import annotations

from types import SimpleNamespace

import qt
import slicer
import vtk
from pythonqt import stands_for_cpp


@stands_for_cpp
class SlicerApplication(qt.QApplication):
    """Qt's application, with what Slicer adds to it. Its paths are set by the host for each test."""

    startupCompleted = qt.Signal()
    majorVersion, minorVersion, revision = 5, 12, "0"
    os, arch, platform = "linux", "amd64", "linux-amd64"

    def __init__(self):
        super().__init__(["Slicer"])
        self.setOrganizationName("slicer-stand-in")
        self.setApplicationName("Slicer")
        self._folder, self._manager, self._layout = "", None, LayoutManager()

    temporaryPath = qt.Property(str, lambda self: f"{self._folder}/temporary")
    slicerHome = qt.Property(str, lambda self: f"{self._folder}/home")
    extensionsInstallPath = qt.Property(str, lambda self: f"{self._folder}/extensions")

    def mrmlScene(self):
        return slicer.mrmlScene

    def applicationLogic(self):
        return slicer.segmambaApplicationLogic

    def moduleManager(self):
        return self._manager

    def layoutManager(self):
        return self._layout

    def settings(self):
        return qt.QSettings()

    userSettings = revisionUserSettings = settings

    def testingEnabled(self):
        """Return False: code under test shall behave as it does for a user."""
        return False

    def startupEnvironment(self):
        return qt.QProcessEnvironment.systemEnvironment()

    def translate(self, _context, text):
        return text

    def logUsageEvent(self, _component, _event):
        """Slicer counts uses where the user agreed to it."""


class LayoutManager:
    """The views: none is drawn, their nodes are in the scene."""

    def sliceViewNames(self):
        return [node.GetLayoutName() for node in slicer.util.getNodesByClass("vtkMRMLSliceNode")]

    def mrmlSliceLogics(self):
        return vtk.vtkCollection()

    def threeDViewCount(self):
        return 0

    def resetSliceViews(self):
        """Nothing is drawn."""

    def resetThreeDViews(self):
        """Nothing is drawn."""


class ModuleManager(qt.QObject):
    """Knows the modules, and says when one goes."""

    moduleAboutToBeUnloaded = qt.Signal(str)

    def module(self, name):
        return getattr(slicer.modules, name.lower(), None)

    def modulesNames(self):
        return [module.name for module in vars(slicer.modules).values() if hasattr(module, "name")]

    def factoryManager(self):
        return SimpleNamespace(loadedModuleNames=self.modulesNames)


@stands_for_cpp
class ModuleSelector(qt.QWidget):
    """Shows a module's panel instead of that of another."""

    selectedModule = qt.Property(str, lambda self: self._selected)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._selected = ""

    def selectModule(self, name):
        if slicer.app.moduleManager().module(name) is None:
            raise RuntimeError(f"The stand-in host has no module '{name}'.")
        for module, moment in ((self._selected, "exit"), (name, "enter")):
            widget = getattr(slicer.modules, f"{module}Widget", None)
            getattr(widget, moment, lambda: None)()
        self._selected = name


@stands_for_cpp
class MainWindow(qt.QMainWindow):
    """The window that ``slicer.util.mainWindow()`` finds."""

    def __init__(self):
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self._selector = ModuleSelector(self)

    def moduleSelector(self):
        return self._selector


class SegmentEditor:
    """The Segment Editor module: remembers what it was given to edit, and takes changes back."""

    name, path = "SegmentEditor", ""

    def __init__(self):
        self.editor = self
        self._segmentation = self._volume = None
        self._history = slicer.vtkSegmentationHistory()

    def widgetRepresentation(self):
        return self

    def self(self):
        return self

    def setSegmentationNode(self, node):
        self._segmentation = node
        self._history.SetSegmentation(node.GetSegmentation() if node is not None else None)

    def saveStateForUndo(self):
        self._history.SaveState()

    def undo(self):
        self._history.RestorePreviousState()

    def segmentationNode(self):
        return self._segmentation

    def setSourceVolumeNode(self, node):
        self._volume = node

    def sourceVolumeNode(self):
        return self._volume
