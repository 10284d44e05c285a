"""The qMRML widgets that a panel uses, over the real scene."""

from __future__ import annotations

import qt
import vtk
from pythonqt import stands_for_cpp
from shiboken6 import Shiboken
from ui_loader import custom_widget


@custom_widget
@stands_for_cpp
class qMRMLWidget(qt.QWidget):
    """A widget that knows the scene and tells others of it, by the connections in its .ui file."""

    mrmlSceneChanged = qt.Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


def _stored(kind, name, default):
    """Make a Qt property that refreshes its widget when it changes."""

    def write(self, value):
        self._values[name] = tuple(value) if isinstance(value, list) else value
        # A panel is loaded without a scene; that comes at its end.
        if self._scene is not None:
            self._refresh()

    return qt.Property(kind, lambda self: self._values.get(name, default), write)


@custom_widget
@stands_for_cpp
class qMRMLNodeComboBox(qt.QWidget):
    """Selects a node of the scene, and follows the nodes that come, go and are renamed.

    As in Slicer it is disabled without a scene; its entries are "None", the nodes, "Create new ..." and "Delete
    current", as far as they are enabled; it selects a node by itself only if that is its first and only entry; and
    where the current node is removed, the entry above becomes current.
    """

    currentNodeChanged = qt.Signal((object,), (bool,))
    currentNodeIDChanged = qt.Signal(str)
    nodeAdded = qt.Signal(object)
    nodeAddedByUser = qt.Signal(object)
    nodeAddedByUserAction = qt.Signal(object)

    nodeTypes = _stored("QStringList", "nodeTypes", ())
    hideChildNodeTypes = _stored("QStringList", "hideChildNodeTypes", ())
    showHidden = _stored(bool, "showHidden", False)
    showChildNodeTypes = _stored(bool, "showChildNodeTypes", True)
    baseName = _stored(str, "baseName", "")
    noneEnabled = _stored(bool, "noneEnabled", False)
    noneDisplay = _stored(str, "noneDisplay", "None")
    addEnabled = _stored(bool, "addEnabled", True)
    removeEnabled = _stored(bool, "removeEnabled", True)
    renameEnabled = _stored(bool, "renameEnabled", False)
    editEnabled = _stored(bool, "editEnabled", False)
    selectNodeUponCreation = _stored(bool, "selectNodeUponCreation", True)
    interactionNodeSingletonTag = _stored(str, "interactionNodeSingletonTag", "Singleton")

    def __init__(self, parent=None):
        super().__init__(parent)
        self._values, self._attributes, self._observed = {}, [], []
        self._scene = self._node = None
        self._nodes = []
        self._box = qt.QComboBox()
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.activated.connect(self._on_activated)
        self.setEnabled(False)

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if self._scene is not None:
            self._forget()
        self._scene = scene
        self.setEnabled(scene is not None)
        self._nodes = []
        self._refresh(alone=False)

    def addAttribute(self, nodeType, name, value=None):
        """Show only nodes of the type that have this attribute (with this value)."""
        self._attributes.append((nodeType, name, value))
        self._refresh()

    def removeAttribute(self, nodeType, name):
        self._attributes = [entry for entry in self._attributes if entry[:2] != (nodeType, name)]
        self._refresh()

    def nodeCount(self):
        return len(self._nodes)

    def nodeFromIndex(self, index):
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    def currentNode(self):
        return self._node

    def setCurrentNode(self, node):
        """Select a node (or its ID); one that is not among the entries counts as none."""
        if isinstance(node, str):
            return self.setCurrentNodeID(node)
        before, self._node = self._node, node if node in self._nodes else None
        self._show_current()
        if self._node is not before:
            self.currentNodeChanged[object].emit(self._node)
            self.currentNodeChanged[bool].emit(self._node is not None)
            self.currentNodeIDChanged.emit(self.currentNodeID)

    def setCurrentNodeID(self, identifier):
        self.setCurrentNode(self._scene.GetNodeByID(identifier) if self._scene and identifier else None)

    currentNodeID = qt.Property(str, lambda self: self._node.GetID() if self._node else "", setCurrentNodeID)

    def setCurrentNodeIndex(self, index):
        self.setCurrentNode(self.nodeFromIndex(index))

    def addNode(self, nodeType=None):
        """Add a node to the scene."""
        node = self._scene.CreateNodeByClass(nodeType or self.nodeTypes[0])
        node.UnRegister(None)
        node.SetName(self._scene.GenerateUniqueName(self.baseName or node.GetDefaultNodeNamePrefix()))
        self._scene.AddNode(node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self):
        self._scene.RemoveNode(self._node)

    def _accepts(self, node, types):
        if not any(node.IsA(kind) for kind in types):
            return False
        exact = self.showChildNodeTypes or node.GetClassName() in types
        hidden = node.GetHideFromEditors() and not self.showHidden
        if not exact or hidden or any(node.IsA(kind) for kind in self.hideChildNodeTypes):
            return False
        found = [(node.GetAttribute(name), value) for kind, name, value in self._attributes if node.IsA(kind)]
        return all(has is not None and value in (None, has) for has, value in found)

    def _refresh(self, *_event, alone=True):
        self._forget()
        if not Shiboken.isValid(self):
            return
        scene, before, types = self._scene, self._nodes, self.nodeTypes
        every = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())] if scene else []
        self._nodes = [node for node in every if self._accepts(node, types)]
        if scene is not None:
            events = [scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent]
            self._observed = [(scene, scene.AddObserver(event, self._refresh)) for event in events]
            modified = vtk.vtkCommand.ModifiedEvent
            self._observed += [(node, node.AddObserver(modified, self._show_current)) for node in self._nodes]
        for node in self._nodes:
            if node not in before:
                self.nodeAdded.emit(node)
        current = self._node
        if current is not None and current not in self._nodes:
            above = before[: before.index(current)] if current in before else []
            current = above[-1] if above and above[-1] in self._nodes else None
        elif current is None and alone and not before and not self._has_other_entries():
            current = self._nodes[0] if self._nodes else None
        self.setCurrentNode(current)

    def _has_other_entries(self):
        return any((self.noneEnabled, self.addEnabled, self.removeEnabled, self.renameEnabled, self.editEnabled))

    def _forget(self):
        for caller, tag in self._observed:
            caller.RemoveObserver(tag)
        self._observed = []

    def _show_current(self, *_event):
        """Fill the list anew, with the current node chosen."""
        if not Shiboken.isValid(self):
            return
        self._box.clear()
        self._box.placeholderText = f"Select a {self._label(self.nodeTypes[0])}" if self.nodeTypes else ""
        if self.noneEnabled:
            self._box.addItem(self.noneDisplay, None)
        for node in self._nodes:
            self._box.addItem(node.GetName(), node)
        chosen = self._nodes.index(self._node) + int(self.noneEnabled) if self._node else 0 if self.noneEnabled else -1
        self._box.setCurrentIndex(chosen)
        if self.addEnabled:
            for kind in self.nodeTypes:
                self._box.addItem(f"Create new {self._label(kind)}", lambda kind=kind: self._create(kind))
        if self.removeEnabled and self._node:
            self._box.addItem("Delete current", self.removeCurrentNode)

    def _label(self, kind):
        return (self._scene and self._scene.GetTypeDisplayNameByClassName(kind)) or "node"

    def _create(self, kind):
        node = self.addNode(kind)
        self.setCurrentNode(node)
        self.nodeAddedByUserAction.emit(node)

    def _on_activated(self, index):
        data = self._box.itemData(index)
        if callable(data):
            data()
        else:
            self.setCurrentNode(data)
