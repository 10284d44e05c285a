"""The record next to an installed checkpoint: its file, its origin and the user's normalization parameters.

The record names its checkpoint and is replaced last, atomically: a checkpoint is installed when its record is.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segmamba.errors import ModelError
from segmamba.models.manifest import IntensityNormalization

RECORD_NAME = "installed.json"
RECORD_VERSION = 2


@dataclass(frozen=True)
class Record:
    """Description of an installed checkpoint.

    Attributes
    ----------
    file : str
        Name of the checkpoint, in the record's own folder.
    size, sha256
        Of that file.
    origin : str
        Its origin, in words.
    source_sha256 : str or None
        SHA-256 of the file that it was converted from.
    normalization : tuple of IntensityNormalization or None
        Parameters that the user gave in the place of the manifest's.
    """

    file: str
    size: int
    sha256: str
    origin: str
    source_sha256: str | None = None
    normalization: tuple[IntensityNormalization, ...] | None = None

    def to_json(self) -> str:
        """Return the record as text."""
        return json.dumps({"version": RECORD_VERSION, **asdict(self)}, indent=2) + "\n"


def record_from_json(text: str, place: str) -> Record:
    """Return the record written by `Record.to_json`; ``place`` names it in errors.

    Raises
    ------
    ModelError
        It is not a record, or one from another version of the software.
    """
    try:
        content = json.loads(text)
        version = content.pop("version")
        if version == RECORD_VERSION:
            return _record(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{place} is damaged ({error}): import or fetch the model again.") from error
    if isinstance(version, int) and version < RECORD_VERSION:
        raise ModelError(f"{place} is from an older version of SegMambaSlicer: import or fetch the model again.")
    raise ModelError(f"{place} has version {version} and this software reads {RECORD_VERSION}: update SegMambaSlicer.")


def read_record(path: Path) -> Record | None:
    """Return the record at ``path``, or None if it does not exist.

    Raises
    ------
    ModelError
        As for `record_from_json`.
    """
    if not os.path.isfile(path):
        return None
    try:
        return record_from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({error}): import or fetch the model again.") from error


def _record(normalization: list[dict[str, Any]] | None = None, **content: Any) -> Record:
    given = None if normalization is None else tuple(IntensityNormalization(**channel) for channel in normalization)
    record = Record(**content, normalization=given)
    # The name leads to a file: it must not lead out of the folder.
    if not isinstance(record.file, str) or Path(record.file).name != record.file or "\\" in record.file:
        raise ValueError(f"it names the file {record.file!r}")
    if not isinstance(record.size, int) or not isinstance(record.sha256, str):
        raise TypeError("size or sha256 is of the wrong kind")
    if record.size < 1:
        raise ValueError(f"it gives the size {record.size}")
    return record
