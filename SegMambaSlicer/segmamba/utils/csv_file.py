"""Writing a table as CSV, whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segmamba.utils.atomic import atomic_write


def write_csv(
    path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], errors: str = "strict"
) -> None:
    """Write rows with these columns; what is None is an empty cell.

    ``errors`` is what becomes of characters that UTF-8 cannot hold, as in `open`.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    with (
        atomic_write(path, (".csv",)) as temporary,
        temporary.open("w", encoding="utf-8", errors=errors, newline="") as stream,
    ):
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
