"""The part of the panel that brings checkpoints in, checks and removes them; a child process does all the work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from segmamba.errors import InstallationError, ModelError
from segmamba.models.manifest import ListedModel
from segmamba.models.store import model_folder, models_folder
from SegMambaSlicerLib.cli_process import Program, startCommand
from SegMambaSlicerLib.import_options import ImportOptions
from SegMambaSlicerLib.messages import commandOutcome
from SegMambaSlicerLib.model_locations import ModelLocations
from SegMambaSlicerLib.model_status import ModelStatus, modelStatus
from SegMambaSlicerLib.sections.model import ModelSection
from SegMambaSlicerLib.signal import Signal
from SegMambaSlicerLib.widgets import prepareTable, showSentence

COLUMNS = (_("Model"), _("Installed"), _("Size"), _("Origin"))
FILES = _("Models (*.pt *.pth *.safetensors *.zip model.json);;All files (*)")
PROGRESS = re.compile(r"\w+ (\d+)%")


class CheckpointSection:
    """Shows which models are installed, and runs ``segmamba models ...`` for its buttons, one at a time.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.
    models : ModelSection
        Has the manifest, and the model that is chosen.
    stopWorker : callable
        Ends the worker before a model goes: on Windows, a file that is in use cannot be removed.
    log : callable
        Gets each sentence that is shown.

    Attributes
    ----------
    changed : Signal
        Emitted when what is installed may have changed.
    """

    def __init__(
        self, ui: Any, models: ModelSection, stopWorker: Callable[[], None], log: Callable[[str], None]
    ) -> None:
        self._ui, self._models, self._stopWorker, self._log = ui, models, stopWorker, log
        self.changed = Signal()
        self._states: list[ModelStatus] = []
        self._program: Program | None = None
        self._locked = False
        table = ui.modelsTable
        prepareTable(table, COLUMNS)
        table.connect("itemSelectionChanged()", self._allow)
        ui.importButton.connect("clicked(bool)", self._onImport)
        ui.downloadButton.connect("clicked(bool)", self._onDownload)
        ui.authorsButton.connect("clicked(bool)", self._onAuthors)
        ui.verifyButton.connect("clicked(bool)", self._onVerify)
        ui.removeButton.connect("clicked(bool)", self._onRemove)
        ui.modelsFolderButton.connect("clicked(bool)", self._onFolder)
        ui.cancelModelsButton.connect("clicked(bool)", self._onCancel)
        self._options = ImportOptions(ui)
        self._locations = ModelLocations(ui)
        self._locations.said.connect(self._say)
        self._locations.changed.connect(self._onLocations)
        self._say("")
        self._setBusy(False)

    def refresh(self) -> None:
        """Look again at what is installed; the model that was selected stays so."""
        try:
            self._models.reload()
        except ModelError as error:
            self._say(str(error), True)
        chosen = self._chosen()
        wanted = chosen.model if chosen is not None else self._models.model
        self._states = [modelStatus(model, self._models.root) for model in self._models.manifest.listed]
        self._options.offer(self._models.manifest.listed)
        self._locations.refresh()
        table = self._ui.modelsTable
        blocked = table.blockSignals(True)
        table.rowCount = len(self._states)
        for row, state in enumerate(self._states):
            self._fill(row, state)
        table.blockSignals(blocked)
        self._select(wanted)
        self._allow()

    def reveal(self) -> None:
        """Open the section at the model that is chosen for the run."""
        self._ui.modelsSection.collapsed = False
        self.refresh()
        self._select(self._models.model)

    def lock(self, locked: bool) -> None:
        """Keep the models while a job runs."""
        self._locked = locked
        self._allow()

    def stop(self) -> None:
        """End the command that runs: what was installed stays, and what was not yet is not."""
        program, self._program = self._program, None
        if program is not None:
            program.end()

    def _fill(self, row: int, state: ModelStatus) -> None:
        found, size = state.found, state.model.file.size
        if found is not None:
            size = found.path.stat().st_size
        there = _("damaged") if state.problem else _("yes") if found is not None else _("no")
        texts = (
            state.model.title,
            there,
            f"{size / 1e6:.1f} MB" if size is not None else "–",
            found.origin if found is not None else "–",
        )
        details = state.problem or (str(found.path) if found is not None else state.model.file.note or "")
        if state.model.unsupported:
            details = _("Cannot be used: {reason}").format(reason=state.model.unsupported) + f"\n{details}"
        for column, text in enumerate(texts):
            item = qt.QTableWidgetItem(text)
            item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
            item.setToolTip(f"{texts[0]}\n{details}".strip())
            self._ui.modelsTable.setItem(row, column, item)

    def _select(self, model: ListedModel | None) -> None:
        for row, state in enumerate(self._states):
            if model is not None and state.model.id == model.id:
                self._ui.modelsTable.selectRow(row)

    def _chosen(self) -> ModelStatus | None:
        row = self._ui.modelsTable.currentRow()
        return self._states[row] if 0 <= row < len(self._states) else None

    def _allow(self) -> None:
        """Enable what can be done with the selected model."""
        ui, chosen, free = self._ui, self._chosen(), self._program is None
        ui.importButton.enabled = free
        ui.downloadButton.enabled = free and chosen is not None and chosen.downloadable
        ui.authorsButton.visible = chosen is not None and chosen.offeredByAuthors
        ui.authorsButton.enabled = free
        ui.verifyButton.enabled = free and chosen is not None and bool(chosen.found or chosen.problem)
        ui.removeButton.enabled = free and not self._locked and chosen is not None and chosen.removable

    def _onImport(self, _checked: bool = False) -> None:
        self._import(_("Import a model"))

    def _onAuthors(self, _checked: bool = False) -> None:
        """Open the authors' page, and take the file that the user comes back with, as the model that it is for."""
        model = self._chosen().model
        qt.QDesktopServices.openUrl(qt.QUrl(model.file.page))
        self._options.choose(model)
        if not self._import(_("Choose '{name}' when it is downloaded").format(name=model.file.name)):
            self._say(_("When '{name}' is downloaded, press 'Import...'.").format(name=model.file.name))

    def _import(self, title: str) -> bool:
        """Ask for a file and import it; tell whether one was chosen."""
        path = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title, "", FILES)
        if path:
            chosen = self._options.arguments(Path(path))
            self._run(_("Importing {name}...").format(name=Path(path).name), "import", path, *chosen)
        return bool(path)

    def _onDownload(self, _checked: bool = False) -> None:
        model = self._chosen().model
        self._run(_("Downloading {title}...").format(title=model.title), "fetch", model.id)

    def _onVerify(self, _checked: bool = False) -> None:
        state = self._chosen()
        done = _("{title}: size and SHA-256 match.")
        if state.found is not None and state.found.sha256 is None:
            done = _("{title}: readable; its SHA-256 is unknown, so nothing could be compared.")
        title = state.model.title
        self._run(_("Checking {title}...").format(title=title), "verify", state.model.id, done=done.format(title=title))

    def _onRemove(self, _checked: bool = False) -> None:
        model = self._chosen().model
        question = _("Remove '{title}' from {folder}?").format(title=model.title, folder=model_folder(model))
        if slicer.util.confirmOkCancelDisplay(question):
            self._stopWorker()
            self._run(_("Removing {title}...").format(title=model.title), "remove", model.id)

    def _onFolder(self, _checked: bool = False) -> None:
        try:
            folder = models_folder()
            folder.mkdir(parents=True, exist_ok=True)
        except ModelError as error:
            self._say(str(error), True)
            return
        except OSError as error:
            self._say(
                _("{folder} cannot be created ({reason}): choose another folder.").format(
                    folder=folder, reason=error.strerror
                ),
                True,
            )
            return
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(folder)))

    def _onLocations(self) -> None:
        self.refresh()
        self.changed.emit()

    def _onCancel(self, _checked: bool = False) -> None:
        self.stop()
        self._end(_("Cancelled: installed models are unchanged. A download resumes next time."), False)

    def _run(self, text: str, *arguments: str, done: str = "") -> None:
        """Start a command, and say at its end what it said, or ``done``."""
        lines: list[str] = []

        def hear(line: str) -> None:
            lines.append(line)
            self._show(line)

        def end(status: int) -> None:
            self._program = None
            self._end(commandOutcome(lines, status) or done, status != 0)

        manifest = self._models.manifestPath
        named = ["--manifest", str(manifest)] if manifest else []
        try:
            self._program = startCommand(["models", *named, *arguments], hear, end)
        except InstallationError as error:
            self._say(str(error), problem=True)
            return
        self._say(text)
        self._setBusy(True)

    def _show(self, line: str) -> None:
        """Show how far the command is: the fraction where it says one, else that it is busy."""
        told = PROGRESS.fullmatch(line)
        self._ui.modelsProgressBar.maximum = 100 if told else 0
        if told:
            self._ui.modelsProgressBar.value = int(told[1])

    def _end(self, text: str, problem: bool) -> None:
        self._setBusy(False)
        self._say(text, problem)
        self.refresh()
        self.changed.emit()

    def _setBusy(self, busy: bool) -> None:
        self._ui.modelsProgressBar.maximum = 0
        self._ui.modelsProgressBar.visible = self._ui.cancelModelsButton.visible = busy
        self._allow()

    def _say(self, text: str, problem: bool = False) -> None:
        showSentence(self._ui.modelsLabel, text, problem)
        if text:
            self._log(text)
