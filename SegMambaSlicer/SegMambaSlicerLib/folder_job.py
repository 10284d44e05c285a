"""A folder of volumes: ``segmamba batch`` in a process of its own, while Slicer stays usable."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from collections import deque
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from segmamba.batch.layout import ROWS
from segmamba.batch.table import read_rows
from segmamba.cli.batch import SOME_FAILED
from segmamba.cli.options import to_arguments
from segmamba.errors import ERRORS_BY_NAME, InputError, InstallationError, WorkerError
from segmamba.utils.child import how_it_ended
from segmamba.worker.client import LOG_LINES
from SegMambaSlicerLib.cli_process import startCommand
from SegMambaSlicerLib.messages import commandOutcome
from SegMambaSlicerLib.parameters import requestOf
from SegMambaSlicerLib.sections.dependency import missingForFolders, missingRequirements
from SegMambaSlicerLib.segmentation_job import waitForEnd
from SegMambaSlicerLib.signal import Signal

REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
# What the command says when it has looked through the folder.
FOUND = re.compile(r"(\d+) cases")


class FolderJob:
    """The volumes of a folder being segmented; made by the logic's ``segmentFolderAsync``.

    Parameters
    ----------
    inputFolder, outputFolder : str or Path
        ``Docs/batches.md`` says what the output folder contains at the end, and which cases are skipped.
    pattern : str, optional
        Which files below the folder; by default all NIfTI, NRRD and MetaImage files and DICOM series.
    skipExisting : bool
        If False, finished cases are segmented again.
    format : str
        Of the segmentations: "seg.nrrd", "nii.gz", "dcm", "labelmap.dcm", "rtstruct.dcm" or "sr.dcm".
    **parameters
        As for `requestOf`, the same for all volumes.

    Attributes
    ----------
    progressed : Signal
        Emitted with a text and the fraction of finished volumes. If a slot raises an error, the run stops
        and ends with that.
    ended : Signal
        Emitted with this job, once, when it has ended in whatever way.
    finished : bool
    rows : list of dict
        One for each finished volume, see `segmamba.batch.outcome.done_row`; ``status`` is "done", "failed" (and
        ``error`` says why) or "skipped".
    error : Exception or None
        Why the run as a whole did not finish.

    Raises
    ------
    SegMambaError
        The run cannot start.
    """

    def __init__(
        self,
        inputFolder: str | Path,
        outputFolder: str | Path,
        pattern: str | None = None,
        skipExisting: bool = True,
        format: str = "seg.nrrd",
        **parameters: Any,
    ) -> None:
        if "output" in parameters:
            raise InputError("The results of a folder are files: choose no output segmentation.")
        request = requestOf(**{"overwrite": not skipExisting, **parameters})
        missing = [*missingRequirements(REQUIREMENTS), *missingForFolders(REQUIREMENTS)]
        if missing:
            text = _("Packages for folders are missing ({names}): install them in the panel's section Dependencies.")
            raise InstallationError(text.format(names=", ".join(missing)))
        self.progressed, self.ended = Signal(), Signal()
        self.finished = False
        self.rows: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self._output = Path(outputFolder).absolute()
        self._total = 0
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        source = os.path.abspath(inputFolder)
        given = source if pattern is None else os.path.join(glob.escape(source), pattern)
        arguments = ["batch", given, str(self._output), "--json", "--format", format, *to_arguments(request)]
        self._program = startCommand(arguments, self._hear, self._end)

    def cancel(self) -> None:
        """Ask the run to stop; it ends within seconds, with the table of what is done, and nothing half done stays."""
        self._program.askToStop()

    def wait(self) -> list[dict[str, Any]]:
        """Wait for the end, with Slicer's events processed, and return the rows.

        Raises
        ------
        SegMambaError
            With a sentence that says what to do.
        """
        waitForEnd(self)
        return self.rows

    def _hear(self, line: str) -> None:
        found = FOUND.fullmatch(line)
        if found:
            self._total = int(found[1])
            self._tell(line)
        elif line.startswith("{"):
            # One that another line got into is left to the end, when all are read from their file.
            with contextlib.suppress(ValueError):
                self.rows.append(json.loads(line))
                self._tell(f"{self.rows[-1]['case']}: {self.rows[-1]['error'] or self.rows[-1]['status']}")
        else:
            self._lines.append(line)

    def _tell(self, text: str) -> None:
        if self.error is not None:
            return
        try:
            self.progressed.emit(text, len(self.rows) / max(1, self._total))
        except Exception as error:
            # Raised here it would be lost in the event loop, and the run would go on.
            self.error = error
            self.cancel()

    def _end(self, status: int) -> None:
        if status in (0, SOME_FAILED):
            self.rows = list(read_rows(self._output / ROWS))
        elif self.error is None:
            end = how_it_ended(status, self._lines)
            kind = next((kind for kind in ERRORS_BY_NAME.values() if kind.exit_code == status), WorkerError)
            if end.killed or end.crash:
                # The launcher's own status says nothing.
                kind = WorkerError
            self.error = kind(commandOutcome(self._lines, status))
        self.finished = True
        self.ended.emit(self)
