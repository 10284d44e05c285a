"""What a trained network reached on the cases that were held out, by fold: a file each, and what they say together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segmamba.errors import InputError
from segmamba.training.dataset.validation import mean_dice
from segmamba.utils.atomic import atomic_write

RESULTS = "results.json"

Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class FoldResults:
    """The results of one fold.

    Attributes
    ----------
    fold : str
    training : int
        Number of cases that were trained on.
    scores : mapping of case to mapping of structure to Dice
        Of the cases that were held out; empty for the fold "all".
    before : float or None
        Mean Dice of the model that the training began from, on the same cases; None where there was none, or where
        it has other labels.
    base : str or None
        That model's id.
    levels : mapping of case to mapping, or None
        Of a model of vertebrae: how many of how many vertebrae have the right level ("identified", "of").
    """

    fold: str
    training: int
    scores: Scores
    before: float | None = None
    base: str | None = None
    levels: Mapping[str, Mapping[str, int]] | None = None

    @property
    def mean(self) -> float:
        """Mean Dice over the structures of their mean over the cases."""
        return mean_dice(self.scores)

    def by_structure(self) -> dict[str, list[float]]:
        """Return the Dice of each structure, a number for each case that has it."""
        found: dict[str, list[float]] = {}
        for case in self.scores.values():
            for name, value in case.items():
                found.setdefault(name, []).append(value)
        return found


def write_results(results: FoldResults, folder: Path) -> None:
    """Write a fold's results into its folder. Raises OutputError."""
    with atomic_write(folder / RESULTS, (".json",)) as file:
        file.write_text(json.dumps(asdict(results), indent=2) + "\n", encoding="utf-8")


def read_all_results(run: Path) -> list[FoldResults]:
    """Return the results of all folds of a run that are finished, sorted by fold.

    Raises
    ------
    InputError
        One of the files is damaged.
    """
    return [_read(path) for path in sorted(run.glob(f"fold-*/{RESULTS}"))]


def _read(path: Path) -> FoldResults:
    try:
        return FoldResults(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged: delete it, and train that fold again to have it back.") from error


def table(folds: list[FoldResults]) -> list[dict[str, Any]]:
    """Return a row for each structure: its number of cases, mean, worst and each fold's mean Dice."""
    by_fold = {results.fold: results.by_structure() for results in folds if results.scores}
    names = list(dict.fromkeys(name for found in by_fold.values() for name in found))
    rows = []
    for name in names:
        values = [value for found in by_fold.values() for value in found.get(name, [])]
        means = {fold: float(np.mean(found[name])) for fold, found in by_fold.items() if name in found}
        rows.append(
            {"structure": name, "cases": len(values), "mean": float(np.mean(values)), "worst": min(values), **means}
        )
    return rows
