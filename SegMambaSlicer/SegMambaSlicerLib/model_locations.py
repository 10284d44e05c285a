"""Where the user's models are kept and come from: shown, and kept in the settings file."""

from __future__ import annotations

from functools import partial
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from segmamba.errors import SegMambaError
from segmamba.models.settings import MIRROR, MODELS, SHARED_MODELS, setting, settings_file, write_setting
from segmamba.models.store import default_models_folder
from SegMambaSlicerLib.signal import Signal


class ModelLocations:
    """The models folder, the shared folder and the mirror.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.

    Attributes
    ----------
    said : Signal
        Emitted with a sentence for the user, and whether it is about a problem.
    changed : Signal
        Emitted when a setting has changed.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self.said, self.changed = Signal(), Signal()
        self._edits = {MODELS: ui.modelsFolderEdit, SHARED_MODELS: ui.sharedFolderEdit, MIRROR: ui.mirrorEdit}
        self._shown: dict[str, str] = {}
        for name, edit in self._edits.items():
            edit.connect("editingFinished()", partial(self._onEdited, name))
        ui.chooseFolderButton.connect("clicked(bool)", self._onChoose)

    def refresh(self) -> None:
        """Show what is set; what an environment variable sets cannot be changed here."""
        self._ui.modelsFolderEdit.placeholderText = str(default_models_folder())
        for name, edit in self._edits.items():
            try:
                chosen = setting(name)
            except SegMambaError as error:
                self.said.emit(str(error), True)
                self._show(edit, name, "", str(error), False)
                continue
            source = chosen.source or _("not set; stored in {file}").format(file=settings_file())
            self._show(edit, name, chosen.value or "", _("From {source}.").format(source=source), not chosen.fixed)
        self._ui.chooseFolderButton.enabled = self._ui.modelsFolderEdit.enabled

    def _show(self, edit: Any, name: str, text: str, tip: str, free: bool) -> None:
        self._shown[name] = edit.text = text
        edit.toolTip, edit.enabled = tip, free

    def _onEdited(self, name: str) -> None:
        self._keep(name, self._edits[name].text.strip())

    def _onChoose(self, _checked: bool = False) -> None:
        start = self._ui.modelsFolderEdit.text
        path = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Choose a folder for models"), start)
        if path:
            self._keep(MODELS, path)

    def _keep(self, name: str, value: str) -> None:
        # Leaving a field ends its editing, too.
        if value == self._shown.get(name):
            return
        try:
            write_setting(name, value)
        except SegMambaError as error:
            self.said.emit(str(error), True)
        else:
            self.said.emit(_("Saved in {file}.").format(file=settings_file()), False)
            self.changed.emit()
        self.refresh()
