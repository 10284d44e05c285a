"""Which exams may be trained on and which are kept to test with, as a table beside them says."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from segmamba.errors import InputError
from segmamba.evaluation.names import PARTS

SPLIT = "split.csv"


def exams_of_part(folder: Path, names: Sequence[str], part: str) -> list[str]:
    """Return those of the exams in a folder that belong to a part; all of them where the folder has no ``split.csv``.

    Parameters
    ----------
    folder : Path
    names : sequence of str
    part : str
        "train" or "test".

    Raises
    ------
    InputError
        The table does not name an exam, or is no table with the columns exam and part.
    """
    path = folder / SPLIT
    if not path.is_file():
        return list(names)
    parts = read_split(path)
    unnamed = [name for name in names if name not in parts]
    if unnamed:
        raise InputError(f"{path} does not say whether '{unnamed[0]}' is to train or to test: add a line for it.")
    return [name for name in names if parts[name] == part]


def read_split(path: Path) -> dict[str, str]:
    """Return the part, "train" or "test", of each exam.

    Raises
    ------
    InputError
        The file is no such table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            parts = {row["exam"]: row["part"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no table with the columns exam and part: correct it.") from error
    wrong = sorted(set(parts.values()) - set(PARTS))
    if wrong:
        raise InputError(f"{path} has a part '{wrong[0]}': each is train or test.")
    return parts
