"""The part of the panel that chooses what runs: task, model, quality and structures."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from segmamba.errors import ModelError
from segmamba.models.library import load_models
from segmamba.models.manifest import Manifest, Model, Postprocessing
from segmamba.models.store import checkpoint_location, configured
from SegMambaSlicerLib.messages import missingCheckpoint, modelDetails, modelSummary, taskTitle
from SegMambaSlicerLib.model_status import modelStatus
from SegMambaSlicerLib.signal import Signal

# The options of each quality. Of models with two stages the fast one is `fast`.
QUALITIES: dict[str, dict[str, Any]] = {"fast": {"overlap": 0.25}, "standard": {}, "tta": {"tta": True}}
POSTPROCESSING_TIPS = {
    Postprocessing.LARGEST_COLUMN: _("Remove components that do not belong to the largest column of vertebrae."),
    Postprocessing.BOWEL: _(
        "Replace uncertain tumours with the second most likely structure, remove components in the lungs, merge "
        "components under 0.2 mL into the structure that they touch most, and fill small holes."
    ),
}
QUALITY_TITLES = {
    "fast": _("Fast (less accurate)"),
    "standard": _("Standard"),
    "tta": _("Test-time augmentation (slower)"),
}


MODALITY_TITLES = {"auto": _("Automatic"), "CT": "CT", "MR": "MR"}


class ModelSection:
    """Keeps the widgets and the parameter node's task, model, quality, modality and structures the same.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.

    Attributes
    ----------
    manifestPath : Path or None
        The manifest; None for the one that comes with the software.
    manifest : Manifest
    changed : Signal
        Emitted after the user's choice has gone into the parameter node, and when other models are offered.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self.changed = Signal()
        self._parameters: Any = None
        self._updating = False
        self.manifestPath: Path | None = None
        self.manifest = Manifest(())
        ui.taskComboBox.connect("currentIndexChanged(int)", self._onTask)
        ui.modelComboBox.connect("currentIndexChanged(int)", self._onModel)
        ui.qualityComboBox.connect("currentIndexChanged(int)", self._onQuality)
        ui.modalityComboBox.connect("currentIndexChanged(int)", self._onModality)
        ui.structuresList.connect("itemChanged(QListWidgetItem*)", self._onStructures)

    @property
    def model(self) -> Model | None:
        """The model that is chosen."""
        models = [model for model in self.manifest.models if model.id == self._ui.modelComboBox.currentData]
        return models[0] if models else None

    @property
    def root(self) -> Path | None:
        """The folder that the paths of bundled files start from; None for that of the software."""
        return self.manifestPath.parent if self.manifestPath else None

    def load(self, path: Path | None = None) -> None:
        """Read a manifest; by default the one that comes with the software.

        Raises
        ------
        ModelError
            It cannot be read.
        """
        self.manifestPath = path
        self.manifest = load_models(path)
        with self._silently():
            self._ui.taskComboBox.clear()
            for task in self.manifest.tasks:
                self._ui.taskComboBox.addItem(taskTitle(task, self.manifest.default(task).title), task)
        if self._parameters is not None:
            self.show(self._parameters)
            self.changed.emit()

    def reload(self) -> None:
        """Read the manifest again: a model of the user's own may have come or gone. Raises ModelError."""
        self.load(self.manifestPath)

    def show(self, parameters: Any) -> None:
        """Show what a parameter node holds; what does not exist any more gives way to the first choice."""
        self._parameters = parameters
        with self._silently():
            _select(self._ui.taskComboBox, parameters.task)
            self._fillModels(parameters.model)
            self._fillQualities(parameters.quality)
            self._fillModalities(parameters.modality)
            self._fillStructures({part for part in parameters.structures.split(",") if part})
            self._describe()

    def refresh(self) -> None:
        """Show the parameter node again, after somebody else changed it."""
        if not self._updating and self._parameters is not None:
            self.show(self._parameters)

    def structures(self) -> list[str] | None:
        """Return the values of the structures that are wanted, or None for all."""
        return [part for part in self._parameters.structures.split(",") if part] or None

    def problem(self) -> str:
        """Return why the model cannot run, or an empty text."""
        if self.model is None:
            return _("No model is chosen.")
        try:
            path = checkpoint_location(self.model, self.root)
        except ModelError as error:
            return str(error)
        return "" if path.is_file() else missingCheckpoint(self.model, path)

    def _fillModels(self, chosen: str) -> None:
        combo, task = self._ui.modelComboBox, self._ui.taskComboBox.currentData
        combo.clear()
        for model in self.manifest.models:
            if model.task == task:
                combo.addItem(model.title, model.id)
        _select(combo, chosen)

    def _fillQualities(self, chosen: str) -> None:
        combo, model = self._ui.qualityComboBox, self.model
        combo.clear()
        for quality, title in QUALITY_TITLES.items():
            # A model without axes to mirror would run the same as with the standard.
            if quality != "tta" or (model is not None and model.flip_axes):
                combo.addItem(title, quality)
        _select(combo, chosen, "standard")

    def _fillModalities(self, chosen: str) -> None:
        combo = self._ui.modalityComboBox
        combo.clear()
        for modality, title in MODALITY_TITLES.items():
            combo.addItem(title, modality)
        _select(combo, chosen, "auto")

    def _fillStructures(self, chosen: set[str]) -> None:
        widget = self._ui.structuresList
        widget.clear()
        for label in self.model.labels if self.model else ():
            item = qt.QListWidgetItem(label.name)
            item.setData(qt.Qt.UserRole, str(label.value))
            item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled)
            wanted = not chosen or str(label.value) in chosen
            item.setCheckState(qt.Qt.Checked if wanted else qt.Qt.Unchecked)
            widget.addItem(item)

    def _describe(self) -> None:
        model, summary = self.model, ""
        if model is not None:
            status = modelStatus(model, self.root)
            if status.found is not None:
                model = configured(model, status.found)
            summary = modelSummary(model, status.origin)
        self._ui.modelSummaryLabel.text = summary
        self._ui.modelSummaryLabel.toolTip = modelDetails(model) if model else ""
        self._offer(
            self._ui.refineCheckBox,
            model is not None and bool(model.refinement),
            _("Clean the masks with a shape model of vertebrae: loose components, holes, parts of ribs, gaps."),
        )
        self._offer(
            self._ui.postprocessCheckBox,
            model is not None and model.postprocessing is not Postprocessing.NONE,
            POSTPROCESSING_TIPS.get(model.postprocessing, "") if model is not None else "",
        )

    @staticmethod
    def _offer(checkBox: Any, possible: bool, text: str) -> None:
        """Let a step of the run be chosen where the model has it."""
        checkBox.enabled = possible
        checkBox.toolTip = text if possible else _("The chosen model has no such step.")

    def _onTask(self, _index: int) -> None:
        self._write(task=self._ui.taskComboBox.currentData, model="", structures="")

    def _onModel(self, _index: int) -> None:
        self._write(model=self._ui.modelComboBox.currentData, structures="")

    def qualityOptions(self) -> dict[str, Any]:
        """Return the options of the chosen quality for the chosen model."""
        quality = self._ui.qualityComboBox.currentData
        two_stages = self.model is not None and self.model.fine is not None
        return {"fast": True} if quality == "fast" and two_stages else QUALITIES[quality]

    def _onQuality(self, _index: int) -> None:
        self._write(quality=self._ui.qualityComboBox.currentData)

    def _onModality(self, _index: int) -> None:
        self._write(modality=self._ui.modalityComboBox.currentData)

    def _onStructures(self, _item: Any) -> None:
        widget = self._ui.structuresList
        items = [widget.item(index) for index in range(widget.count)]
        wanted = [item.data(qt.Qt.UserRole) for item in items if item.checkState() == qt.Qt.Checked]
        self._write(structures="" if len(wanted) == len(items) else ",".join(wanted))

    def _write(self, **values: str) -> None:
        if self._updating or self._parameters is None:
            return
        with self._silently():
            for name, value in values.items():
                setattr(self._parameters, name, value or "")
        # The list of structures is not filled again from within its own signal.
        if set(values) != {"structures"}:
            self.show(self._parameters)
        self.changed.emit()

    @contextmanager
    def _silently(self) -> Any:
        before, self._updating = self._updating, True
        try:
            yield
        finally:
            self._updating = before


def _select(combo: Any, data: str, otherwise: str = "") -> None:
    index = combo.findData(data)
    combo.currentIndex = index if index >= 0 else max(0, combo.findData(otherwise))
