"""The part of the panel that writes a result for other programs: surfaces, or one label map."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from segmamba_mrml.export import NIFTI, OBJ, STL, export_segmentation
from SegMambaSlicerLib.sections.result import ResultSection
from SegMambaSlicerLib.sections.result_part import ResultPart

FORMATS = {STL: _("STL surfaces"), OBJ: _("OBJ surfaces"), NIFTI: _("NIfTI label map")}


class ExportSection(ResultPart):
    """Exports the segmentation that is shown; see `ResultPart`."""

    def __init__(self, ui: Any, results: ResultSection) -> None:
        super().__init__(ui, results)
        for file_format, title in FORMATS.items():
            ui.exportFormatComboBox.addItem(title, file_format)
        ui.exportButton.connect("clicked(bool)", self._onExport)
        results.shown.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Follow the result."""
        self._ui.exportButton.enabled = self._results.node is not None

    def _onExport(self, _checked: bool = False) -> None:
        title = _("Choose a folder; the export gets a new folder in it")
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title, "")
        # Meanwhile the scene may have been closed.
        if not folder or self._results.node is None:
            return
        self._say(lambda: self._exported(folder))

    def _exported(self, folder: str) -> str:
        with slicer.util.WaitCursor():
            made = export_segmentation(self._results.node, folder, self._ui.exportFormatComboBox.currentData)
        return _("Exported to {folder}.").format(folder=made)
