"""The options of an import in the panel: the model, and its normalization parameters where they are an estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from segmamba.models.bundle import is_bundle
from segmamba.models.import_checkpoint import estimated_channel
from segmamba.models.library import DESCRIPTION
from segmamba.models.manifest import ListedModel, Model
from SegMambaSlicerLib.messages import WARNING_STYLE

BY_WEIGHTS = ""


class ImportOptions:
    """The options next to the button *Import*.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._models: dict[str, ListedModel] = {}
        self._parameters = (ui.clipLowSpinBox, ui.clipHighSpinBox, ui.meanSpinBox, ui.stdSpinBox)
        ui.importAsComboBox.connect("currentIndexChanged(int)", self._onModel)
        ui.ownNormalizationCheckBox.connect("toggled(bool)", self._onOwn)
        self._onModel()

    def offer(self, models: tuple[ListedModel, ...]) -> None:
        """Offer the models of a manifest; what was chosen stays where they are the same."""
        if list(models) == list(self._models.values()):
            return
        combo = self._ui.importAsComboBox
        blocked = combo.blockSignals(True)
        self._models = {model.id: model for model in models}
        combo.clear()
        combo.addItem(_("Detect from the weights"), BY_WEIGHTS)
        for model in models:
            combo.addItem(model.title, model.id)
        combo.blockSignals(blocked)
        self._onModel()

    def choose(self, model: ListedModel) -> None:
        """Choose the model that the next file is for."""
        self._ui.importAsComboBox.currentIndex = self._ui.importAsComboBox.findData(model.id)

    def arguments(self, path: Path) -> list[str]:
        """Return what ``segmamba models import`` needs to know about a file; nothing for what describes itself."""
        model = self._ui.importAsComboBox.currentData
        if not model or is_bundle(path) or path.name == DESCRIPTION:
            return []
        if not self._own():
            return ["--as", model]
        low, high, mean, std = (str(box.value) for box in self._parameters)
        return ["--as", model, "--clip", low, high, "--mean", mean, "--std", std]

    def _own(self) -> bool:
        return not self._ui.normalizationBox.isHidden() and self._ui.ownNormalizationCheckBox.checked

    def _onModel(self, _index: int = 0) -> None:
        model = self._models.get(self._ui.importAsComboBox.currentData or BY_WEIGHTS)
        estimate = estimated_channel(model) if model is not None else None
        self._ui.normalizationBox.visible = estimate is not None
        self._ui.ownNormalizationCheckBox.checked = False
        if estimate is not None:
            for box, value in zip(
                self._parameters, (estimate.low, estimate.high, estimate.mean, estimate.std), strict=True
            ):
                box.value = value
        self._onOwn()

    def _onOwn(self, _checked: bool = False) -> None:
        """Let the parameters be changed, or say that they are an estimate."""
        own = self._ui.ownNormalizationCheckBox.checked
        for box in self._parameters:
            box.enabled = own
        model = self._models.get(self._ui.importAsComboBox.currentData or BY_WEIGHTS)
        if own:
            text = _("Your values are stored with the checkpoint and written to each report.")
        elif isinstance(model, Model) and model.preprocessing.estimated:
            text = _("Note: {text}. Each result says so.").format(text=model.preprocessing.estimated)
        else:
            text = ""
        self._ui.normalizationLabel.text = text
        self._ui.normalizationLabel.styleSheet = "" if own else WARNING_STYLE
