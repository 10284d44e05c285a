"""The part of the panel that chooses the other volumes of a model that takes several: a selector for each."""

from __future__ import annotations

from functools import partial
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from segmamba.errors import InputError
from segmamba.models.manifest import InputChannel
from segmamba_mrml.segment import check_nodes
from SegMambaSlicerLib.parameters import channelVolume, setChannelVolume
from SegMambaSlicerLib.sections.model import ModelSection


class ChannelSection:
    """Shows a volume selector for each channel of the chosen model but the first, which is the input volume.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.
    models : ModelSection

    Attributes
    ----------
    selectors : list of qMRMLNodeComboBox
        In the model's order; those beyond its channels are hidden.
    """

    def __init__(self, ui: Any, models: ModelSection) -> None:
        self._ui, self._models = ui, models
        self._parameters: Any = None
        self._updating = False
        self._inputText = ui.inputSelectorLabel.text
        # The ID of the node that each selector shows.
        self._chosen: dict[int, str | None] = {}
        self._labels: list[Any] = []
        self.selectors: list[Any] = []
        self._layout = qt.QFormLayout(ui.channelsWidget)
        self._layout.setContentsMargins(0, 0, 0, 0)
        ui.channelsWidget.visible = False
        models.changed.connect(self.refresh)

    @property
    def _channels(self) -> tuple[InputChannel, ...]:
        """Those besides the input."""
        model = self._models.model
        return model.input_channels[1:] if model is not None else ()

    def show(self, parameters: Any) -> None:
        """Show what a parameter node holds."""
        self._parameters = parameters
        self.refresh()

    def refresh(self) -> None:
        """Follow a change of the model or of the parameter node."""
        if self._updating or self._parameters is None:
            return
        channels, model = self._channels, self._models.model
        while len(self.selectors) < len(channels):
            self._addRow()
        self._updating = True
        for number, (label, selector) in enumerate(zip(self._labels, self.selectors, strict=True)):
            label.visible = selector.visible = number < len(channels)
            if number < len(channels):
                label.text, selector.toolTip = _named(channels[number]), _described(channels[number])
                node = channelVolume(self._parameters, channels[number].name)
                self._chosen[number] = node.GetID() if node is not None else None
                selector.setCurrentNode(node)
        self._updating = False
        self._ui.channelsWidget.visible = bool(channels)
        # The input is a channel, too.
        several = model is not None and bool(channels)
        self._ui.inputSelectorLabel.text = _named(model.input_channels[0]) if several else self._inputText

    def nodes(self) -> dict[str, Any]:
        """Return the volume node of each channel besides the input that one is chosen for."""
        found = {channel.name: channelVolume(self._parameters, channel.name) for channel in self._channels}
        return {name: node for name, node in found.items() if node is not None}

    def problem(self) -> str:
        """Return in one sentence what is missing or chosen twice, or an empty text."""
        nodes, model = self.nodes(), self._models.model
        missing = [channel.name for channel in self._channels if channel.name not in nodes]
        if missing:
            return _("Choose a volume for {names}: the model takes several, of one examination.").format(
                names=", ".join(missing)
            )
        if nodes and model is not None:
            try:
                check_nodes([self._parameters.inputVolume, *nodes.values()], model)
            except InputError as error:
                return str(error)
        return ""

    def _addRow(self) -> None:
        label, selector = qt.QLabel(), slicer.qMRMLNodeComboBox()
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.showChildNodeTypes = selector.addEnabled = selector.removeEnabled = selector.renameEnabled = False
        selector.noneEnabled = True
        selector.noneDisplay = _("Select a volume")
        selector.setMRMLScene(slicer.mrmlScene)
        # As wide as the labels above and below, so that the selectors stand under one another.
        label.minimumWidth = self._ui.outputSelectorLabel.sizeHint.width()
        selector.connect("currentNodeChanged(vtkMRMLNode*)", partial(self._onChosen, len(self.selectors)))
        self._layout.addRow(label, selector)
        self._labels.append(label)
        self.selectors.append(selector)

    def _onChosen(self, number: int, node: Any) -> None:
        if self._updating or self._parameters is None or number >= len(self._channels):
            return
        before, self._chosen[number] = self._chosen.get(number), node.GetID() if node is not None else None
        if before and slicer.mrmlScene.GetNodeByID(before) is None:
            # The selector went to a neighbour because its volume was removed: nobody has chosen that one.
            self._chosen[number] = node = None
        setChannelVolume(self._parameters, self._channels[number].name, node)
        self.refresh()


def _named(channel: InputChannel) -> str:
    return _("Volume {name}:").format(name=channel.name)


def _described(channel: InputChannel) -> str:
    """Return what a channel's selector says under the mouse."""
    what = channel.title or channel.name
    return _("{what}, of the same examination as the input. It is not changed.").format(what=what)
