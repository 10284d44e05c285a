"""The table of a run: a row a case, as CSV for spreadsheets and as Parquet with types for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from segmamba.batch.layout import PARQUET, TABLE
from segmamba.batch.outcome import Row
from segmamba.errors import InstallationError
from segmamba.utils.atomic import atomic_write
from segmamba.utils.csv_file import write_csv

STRUCTURES = "structures"
# Names of files may hold bytes that are not text: they are written as numbers.
UNPRINTABLE = "backslashreplace"
# Rows that are in memory at a time.
ROWS_AT_A_TIME = 500


def read_rows(path: Path) -> Iterator[Row]:
    """Give the rows of a file with one JSON object a line, one after the other."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def write_table(rows: Path, folder: Path, order: Sequence[str]) -> None:
    """Write the table of a run, both files whole or not at all.

    Parameters
    ----------
    rows : Path
        As for `read_rows`.
    folder : Path
        Gets ``table.csv`` and ``table.parquet``.
    order : sequence of str
        Names of the structures, in the order of their columns.

    Raises
    ------
    OutputError
        A file cannot be written.
    InstallationError
        pyarrow is missing.
    """
    columns = _columns(rows, order)
    write_csv(folder / TABLE, list(columns), (flattened(row) for row in read_rows(rows)), UNPRINTABLE)
    with atomic_write(folder / PARQUET, (".parquet",)) as temporary:
        _write_parquet(temporary, rows, columns)


def check_pyarrow() -> None:
    """Make sure, before any work is done, that a table can be written.

    Raises
    ------
    InstallationError
        pyarrow is missing.
    """
    if find_spec("pyarrow") is None:
        raise InstallationError(
            "The table of a batch needs pyarrow: install it with 'pip install \"segmamba-slicer[batch]\"'."
        )


def flattened(row: Row, prefix: str = "") -> dict[str, Any]:
    """Return a row without nesting: names of inner figures are joined with dots, lists with semicolons."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        # "L1 vertebra.volume_ml", not "structures.L1 vertebra.volume_ml".
        whole = f"{prefix}{name}"
        if isinstance(value, dict):
            flat |= flattened(value, "" if whole == STRUCTURES else f"{whole}.")
        else:
            flat[whole] = "; ".join(map(str, value)) if isinstance(value, list) else value
    return flat


def _columns(rows: Path, order: Sequence[str]) -> dict[str, type]:
    """Return all columns and their types: those of the case, then those of the structures in their order."""
    seen: dict[str, type] = {}
    for row in read_rows(rows):
        for name, value in flattened(row).items():
            kind = bool if isinstance(value, bool) else float if isinstance(value, (int, float)) else str
            if value is None:
                seen.setdefault(name, type(None))
            else:
                seen[name] = kind if seen.get(name, type(None)) in (type(None), kind) else str
    places = {name: place for place, name in enumerate(order, start=1)}
    return {name: seen[name] for name in sorted(seen, key=lambda name: places.get(name.rpartition(".")[0], 0))}


def _write_parquet(path: Path, rows: Path, columns: dict[str, type]) -> None:
    import pyarrow
    from pyarrow import parquet

    types: dict[type, Any] = {bool: pyarrow.bool_(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, types.get(kind, pyarrow.string())) for name, kind in columns.items()])
    with parquet.ParquetWriter(path, schema) as writer:
        for part in _parts(read_rows(rows)):
            cells = [{name: _cell(row.get(name), kind) for name, kind in columns.items()} for row in part]
            writer.write_table(pyarrow.Table.from_pylist(cells, schema))


def _parts(rows: Iterable[Row]) -> Iterator[list[dict[str, Any]]]:
    remaining = iter(rows)
    while part := [flattened(row) for row in islice(remaining, ROWS_AT_A_TIME)]:
        yield part


def _cell(value: Any, kind: type) -> Any:
    if value is None or kind in (bool, float):
        return value
    return str(value).encode("utf-8", UNPRINTABLE).decode("utf-8")
