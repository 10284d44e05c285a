"""A PACS as the source of a batch: its series are the cases, and their results are stored there.

The case's folder in OUT is complete before anything is stored. What was stored is noted in ``OUT/pacs/CASE.json``, and
the identifiers of results follow from what they are (ADR 0034): a run that was killed between two steps does the next
one, and what it does again changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from segmamba.batch.batch_case import BatchCase, archived_case
from segmamba.batch.case import WORTH_ANOTHER_ATTEMPT, RunEngine, do_case
from segmamba.batch.case_record import CaseRecord, are_outputs_there, read_record
from segmamba.batch.fingerprint import digest_of, fingerprint_of
from segmamba.batch.layout import CASES, working_folder
from segmamba.batch.local import local_pool
from segmamba.batch.outcome import DONE, FAILED, Row, done_row, failed_row, skipped_row
from segmamba.batch.plan import Plan
from segmamba.batch.pool import Pool
from segmamba.batch.run import BatchSettings
from segmamba.errors import InputError, OutputError, SegMambaError
from segmamba.io.dicom_headers import pydicom
from segmamba.io.dicom_index import group_series, why_left_out
from segmamba.pacs.archive import Archive
from segmamba.utils.atomic import replacing

FOLDER = "pacs"
NOTHING = "Nothing in the PACS matches the query: ask for less, such as Modality=CT."


@dataclass(frozen=True)
class Note:
    """What is known of a case besides its record.

    Attributes
    ----------
    images : str
        Hash of the identifiers of the images that the series had in the PACS.
    content : str
        Hash of these images, as in the record of the results that were made of them.
    stored : list of str
        Identifiers of the results that the PACS has.
    """

    images: str = ""
    content: str = ""
    stored: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Note:
        """Return the note in a file; an empty one where it is missing or damaged."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        return cls()

    def write(self, path: Path) -> None:
        """Write the note, whole or not at all; OSError if that fails."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


class PacsSource:
    """The series of a PACS that a query finds; a `segmamba.batch.run.Source`.

    Parameters
    ----------
    archive : Archive
    filters : dict
        As `segmamba.pacs.archive.parse_query` gives them.
    limit : int
        The most bytes that the images of a series may have, of which each worker has one at a time.
    stopped : callable
    """

    def __init__(self, archive: Archive, filters: dict[str, str], limit: int, stopped: Callable[[], bool]) -> None:
        self._archive, self._filters, self._limit, self._stopped = archive, filters, limit, stopped

    def find(
        self, pool: Pool, folder: Path, stopped: Callable[[], bool], log: Callable[[str], None]
    ) -> list[BatchCase]:
        place = self._archive.address.partition("://")[2]
        cases = [
            archived_case(place, each.study, each.series, each.description or each.modality)
            for each in self._archive.series(self._filters)
        ]
        if not cases:
            raise InputError(NOTHING)
        return sorted(cases, key=lambda case: case.path)

    def workers(
        self, settings: BatchSettings, device: str, log: Callable[[str], None]
    ) -> contextlib.AbstractContextManager[Pool]:
        if settings.scheduler is not None:
            raise InputError("A PACS is for the workers of this computer: leave out --scheduler.")
        return local_pool(settings.workers, device, self.do)

    def do(
        self, case: BatchCase, plan: Plan, attempt: int, run: RunEngine, device: str | None = None
    ) -> tuple[Row, bool]:
        """Fetch, segment and store a case, as far as that is not done yet; as `segmamba.batch.case.do_case`."""
        try:
            row, again = self._done(case, plan, attempt, run, device)
            try:
                if row["status"] == DONE:
                    self._store(case, plan)
            except SegMambaError as error:
                # The results are there, and are stored by the next attempt.
                row, again = {**row, "status": FAILED, "error": str(error)}, isinstance(error, WORTH_ANOTHER_ATTEMPT)
            return row, again
        except SegMambaError as error:
            return failed_row(case, plan, str(error), attempt), isinstance(error, WORTH_ANOTHER_ATTEMPT)
        except OSError as error:
            text = f"Operating system error ({error.strerror}): check the folders, permissions and free space."
            return failed_row(case, plan, text, attempt), False

    def _done(self, case: BatchCase, plan: Plan, attempt: int, run: RunEngine, device: str | None) -> tuple[Row, bool]:
        """Return the row of a case whose results are in its folder, or that has none."""
        study, series = case.series.split()
        target = Path(plan.folder) / CASES / case.name
        headers = self._archive.headers(study, series)
        reason = why_left_out(headers) if headers else "It holds no image."
        if reason is not None:
            return skipped_row(replace(case, skipped=reason), plan), False
        images = digest_of(sorted(str(header.get("SOPInstanceUID")) for header in headers))
        file = _note_file(plan, case)
        note = Note.read(file)
        record = None if plan.request["overwrite"] else _finished(target, plan, note, images)
        if record is not None:
            return done_row(record, plan, target, this_run=False), False
        with working_folder(Path(plan.folder), f"{case.name}.series") as place:
            images_folder = place / "images"
            images_folder.mkdir()
            self._check_room(headers, images_folder)
            files = self._archive.fetch(study, series, images_folder, self._limit, self._stopped)
            found = group_series(map(Path, files))
            if len(found) != 1 or found[0].left_out:
                said = (found[0].left_out if len(found) == 1 else None) or "It is several series in one."
                return skipped_row(replace(case, skipped=said), plan), False
            files = sorted(found[0].files)
            # Before the results, which say by its content what they were made of.
            Note(images, fingerprint_of(files).content, note.stored).write(file)
            listing = place / "files.json"
            listing.write_text(json.dumps(files), encoding="utf-8")
            return do_case(replace(case, listing=str(listing)), plan, attempt, run, device)

    def _check_room(self, headers: list[Any], folder: Path) -> None:
        size = sum(
            int(header.get("Rows") or 0)
            * int(header.get("Columns") or 0)
            * int(header.get("NumberOfFrames") or 1)
            * (int(header.get("BitsAllocated") or 16) // 8)
            for header in headers
        )
        if size > 2 * shutil.disk_usage(folder).free:
            raise OutputError("There is no room for the images of the series: free some space, or choose another OUT.")

    def _store(self, case: BatchCase, plan: Plan) -> None:
        """Store the results of a case that the PACS does not have yet.

        Raises
        ------
        SegMambaError
            The PACS cannot be reached, or does not take them; they are in the case's folder all the same.
        """
        file, target = _note_file(plan, case), Path(plan.folder) / CASES / case.name
        for path in sorted(target.glob("segmentation*.dcm")):
            dataset = pydicom().dcmread(path)
            note = Note.read(file)
            if str(dataset.SOPInstanceUID) in note.stored:
                continue
            if self._stopped():
                return
            if not self._archive.has(dataset):
                self._archive.store(dataset)
            replace(note, stored=[*note.stored, str(dataset.SOPInstanceUID)]).write(file)


def _note_file(plan: Plan, case: BatchCase) -> Path:
    return Path(plan.folder) / FOLDER / f"{case.name}.json"


def _finished(target: Path, plan: Plan, note: Note, images: str) -> CaseRecord | None:
    """Return the record of results that are whole, of these settings, and of the images that the PACS has now."""
    record = read_record(target)
    if record is None or record.settings != plan.settings or note.images != images:
        return None
    return record if record.input.content == note.content and are_outputs_there(target, record) else None
