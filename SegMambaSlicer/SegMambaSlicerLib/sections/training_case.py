"""The part of the panel that saves a corrected result as a case to train on."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from segmamba.errors import ModelError, SegMambaError
from segmamba_mrml.reports import parts, read_report
from segmamba_mrml.segmentation import volume_node_of
from segmamba_mrml.training_case import image_digest, save_training_case, saved_case
from segmamba_mrml.volumes import volume_of
from SegMambaSlicerLib.sections.model import ModelSection
from SegMambaSlicerLib.sections.result import ResultSection
from SegMambaSlicerLib.sections.result_part import ResultPart


class TrainingCaseSection(ResultPart):
    """Saves the segmentation that is shown, with its volume; see `ResultPart`.

    Parameters
    ----------
    models : ModelSection
        Knows the structures of the model that made it.
    """

    def __init__(self, ui: Any, results: ResultSection, models: ModelSection) -> None:
        super().__init__(ui, results)
        self._models = models
        ui.trainingCaseButton.connect("clicked(bool)", self._onSave)
        results.shown.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Follow the result."""
        self._ui.trainingCaseButton.enabled = self._results.node is not None

    def _onSave(self, _checked: bool = False) -> None:
        title = _("Choose the folder of your training cases")
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title, "")
        node = self._results.node
        # Meanwhile the scene may have been closed.
        if not folder or node is None:
            return
        volume = volume_node_of(node)
        if volume is None:
            self.said.emit(_("The volume of this result is not in the scene: load it again."), True)
            return
        try:
            with slicer.util.WaitCursor():
                earlier = saved_case(folder, image_digest(volume_of(volume)))
            question = _("This image is in the folder already, as {case}. Replace its labels with these?")
            if earlier and not slicer.util.confirmOkCancelDisplay(question.format(case=earlier)):
                return
            with slicer.util.WaitCursor():
                name = save_training_case(node, volume, folder, self._structures(node), replace=bool(earlier))
        except SegMambaError as error:
            self.said.emit(str(error), True)
        else:
            self.said.emit(_("Saved as {case} in {folder}.").format(case=name, folder=folder), False)

    def _structures(self, node: Any) -> tuple[Any, ...]:
        """Return the structures of the model that made the result; of the chosen one where that is not there."""
        made_by = parts(read_report(node))[0].get("model", {}).get("id", "")
        try:
            return self._models.manifest.model(made_by).labels
        except ModelError:
            return self._models.model.labels if self._models.model is not None else ()
