"""``slicer.parameterNodeWrapper`` for the types that panels use: str, bool, int, float and nodes.

Stores and checks values as Slicer does, and refuses the pairs of widget and type that Slicer refuses.
"""

from __future__ import annotations

import types
import typing

import qt
import slicer
import vtk

SlicerParameterNamePropertyName = "SlicerParameterName"


class Default:
    """Annotation: the value of a parameter that was never set."""

    def __init__(self, value=None, *, generator=None):
        self._make = generator or (lambda: value)

    value = property(lambda self: self._make())


class Choice:
    """Annotation: the values that are allowed."""

    def __init__(self, choices):
        self.choices = choices

    def validate(self, value):
        if value not in self.choices:
            raise ValueError(f"{value!r} is none of {self.choices}.")


class Parameter:
    """One annotated attribute: its type, its default, its checks, and how the node stores it.

    Raises
    ------
    TypeError
        The type is not one that this host has.
    """

    def __init__(self, name, hint, cls):
        self.name, self.hint = name, hint
        kind, *annotations = [hint.__origin__, *hint.__metadata__] if hasattr(hint, "__metadata__") else [hint]
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            arguments = [argument for argument in typing.get_args(kind) if argument is not type(None)]
            kind = arguments[0] if len(arguments) == 1 and self._is_node(arguments[0]) else kind
        if kind not in (str, bool, int, float) and not self._is_node(kind):
            raise TypeError(f"The stand-in host cannot store '{name}' of type {hint}.")
        self.type, self.annotations = kind, annotations
        given = self.annotation(Default)
        blank = None if self._is_node(kind) else kind()
        self.default = getattr(cls, name) if hasattr(cls, name) else given.value if given else blank

    @staticmethod
    def _is_node(kind):
        return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)

    def annotation(self, kind):
        return next((each for each in self.annotations if isinstance(each, kind)), None)

    def read(self, node):
        if self._is_node(self.type):
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        return text == "True" if self.type is bool else self.type(text)

    def write(self, node, value):
        if self._is_node(self.type):
            if value is not None and not isinstance(value, self.type):
                raise TypeError(f"'{self.name}' takes a {self.type.__name__} and not {value!r}.")
            node.SetParameter(self.name, "")
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
            return
        if not isinstance(value, (int, float) if self.type is float else self.type):
            raise TypeError(f"'{self.name}' takes a {self.type.__name__} and not {value!r}.")
        for annotation in self.annotations:
            getattr(annotation, "validate", lambda _value: None)(value)
        node.SetParameter(self.name, str(value))


class Wrapper:
    """What the decorator adds to a class of typed attributes."""

    def __init__(self, parameterNode, prefix=None):
        self.parameterNode, self._guis, self._updating = parameterNode, {}, False
        for parameter in self.allParameters.values():
            if not parameterNode.HasParameter(parameter.name):
                parameter.write(parameterNode, parameter.default)

    def getValue(self, name):
        return self.allParameters[name].read(self.parameterNode)

    def setValue(self, name, value):
        with slicer.util.NodeModify(self.parameterNode):
            self.allParameters[name].write(self.parameterNode, value)

    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        self.parameterNode.RemoveObserver(tag)

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, before):
        return self.parameterNode.EndModify(before)

    def Modified(self):
        self.parameterNode.Modified()

    def connectGui(self, gui):
        """Connect the widgets of a panel (or of ``childWidgetVariables``) that name a parameter."""
        widgets = gui.findChildren(qt.QWidget) if isinstance(gui, qt.QWidget) else vars(gui).values()
        named = {widget.property(SlicerParameterNamePropertyName): widget for widget in widgets}
        return self.connectParametersToGui({name: widget for name, widget in named.items() if name})

    def connectParametersToGui(self, mapping):
        """Let each parameter and its widget follow one another; returns what ``disconnectGui`` takes."""
        if unknown := set(mapping) - set(self.allParameters):
            raise ValueError(f"Widgets name parameters that do not exist: {', '.join(sorted(unknown))}.")
        connections = [Connection(widget, self.allParameters[name]) for name, widget in mapping.items()]
        for connection in connections:
            connection.write(self.getValue(connection.parameter.name))
            connection.start(lambda connection=connection: self._take(connection))
        tag = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_event: self._show(connections))
        self._guis[tag] = connections
        return tag

    def disconnectGui(self, tag):
        for connection in self._guis.pop(tag, []):
            connection.stop()
        self.RemoveObserver(tag)

    def _take(self, connection):
        if not self._updating:
            self.setValue(connection.parameter.name, connection.read())

    def _show(self, connections):
        if self._updating:
            return
        self._updating = True
        try:
            for connection in connections:
                connection.write(self.getValue(connection.parameter.name))
        finally:
            self._updating = False


class Connection:
    """One parameter and its widget.

    Raises
    ------
    RuntimeError
        Slicer cannot connect this type with this widget, or the stand-in does not have that pair yet.
    """

    # Exact classes, as Slicer compares them: types, signal, and the widget's property that holds the value.
    KINDS = {
        qt.QCheckBox: ((bool,), "stateChanged", "checked"),
        qt.QPushButton: ((bool,), "toggled", "checked"),
        qt.QComboBox: ((str, int, float, bool), "currentIndexChanged", "currentIndex"),
        qt.QLineEdit: ((str,), "textChanged", "text"),
        qt.QLabel: ((str,), None, "text"),
        qt.QTextEdit: ((str,), "textChanged", "plainText"),
    }

    def __init__(self, widget, parameter):
        self.widget, self.parameter, self._choices, self._slot = widget, parameter, None, None
        kinds, self._signal, self._property = self.KINDS.get(type(widget), ((), None, None))
        if type(widget) is slicer.qMRMLNodeComboBox and Parameter._is_node(parameter.type):
            self._signal = "currentNodeChanged"
            widget.nodeTypes = [parameter.type.__name__]
        elif parameter.type not in kinds:
            raise RuntimeError(f"'{parameter.name}' ({parameter.hint}) cannot be connected to {type(widget)}.")
        elif isinstance(widget, qt.QComboBox):
            self._fill()
        elif isinstance(widget, qt.QPushButton):
            widget.checkable = True

    def _fill(self):
        choice = self.parameter.annotation(Choice)
        if choice is None:
            raise RuntimeError(f"'{self.parameter.name}' needs the annotation Choice to be connected to a combo box.")
        self._choices = list(choice.choices)
        self.widget.clear()
        for value in self._choices:
            self.widget.addItem(str(value))

    def read(self):
        if self._property is None:
            return self.widget.currentNode()
        value = getattr(self.widget, self._property)
        return self._choices[value] if self._choices else self.parameter.type(value)

    def write(self, value):
        if self._property is None:
            self.widget.setCurrentNode(value)
        else:
            setattr(self.widget, self._property, self._choices.index(value) if self._choices else value)

    def start(self, slot):
        if self._signal:
            self._slot = lambda *_arguments: slot()
            getattr(self.widget, self._signal).connect(self._slot)

    def stop(self):
        if self._slot:
            getattr(self.widget, self._signal).disconnect(self._slot)


def parameterNodeWrapper(cls=None):
    """Turn a class of annotated attributes into a view of a parameter node (class decorator)."""
    if cls is None:
        return parameterNodeWrapper
    hints = typing.get_type_hints(cls, include_extras=True)
    parameters = {name: Parameter(name, hint, cls) for name, hint in hints.items()}
    members = {name: _attribute(name) for name in parameters}
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__", *members)}
    return type(cls.__name__, (Wrapper,), {**own, **members, "allParameters": parameters})


def isParameterNodeWrapper(thing):
    """Tell whether this is such a class or an instance of one."""
    return hasattr(thing, "allParameters")


def _attribute(name):
    return property(lambda self: self.getValue(name), lambda self, value: self.setValue(name, value))
