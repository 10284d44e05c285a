"""Which cases are trained on and which are held out: by person, in folds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segmamba.errors import InputError
from segmamba.training.dataset.layout import Case, Dataset

# nnU-Net's file of splits: a list with the names of cases to train with and to validate with, one entry a fold.
SPLITS = "splits_final.json"
FOLDS = 5
SEED = 12345


@dataclass(frozen=True)
class Split:
    """The cases of one fold."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]


def make_splits(dataset: Dataset) -> list[Split]:
    """Return the folds: those of ``splits_final.json`` in the data set's folder, or of people dealt out at random.

    Raises
    ------
    InputError
        The file is not valid, names a case that is not there or has a person on both sides; or there is one person.
    """
    path = dataset.folder / SPLITS
    return read_splits(path, dataset) if path.is_file() else deal(dataset.cases, dataset.folder)


def deal(cases: Sequence[Case], folder: Path) -> list[Split]:
    """Deal the people out to at most `FOLDS` folds, the same way each time. Raises InputError for a single one."""
    people = sorted({case.person for case in cases})
    if len(people) < 2:
        raise InputError(
            f"{folder} holds images of one person only: add another person, or train without validation (--fold all)."
        )
    order = np.random.default_rng(SEED).permutation(len(people))
    folds = min(FOLDS, len(people))
    splits = []
    for fold in range(folds):
        held_out = {people[index] for index in order[fold::folds]}
        training = tuple(case for case in cases if case.person not in held_out)
        splits.append(Split(training, tuple(case for case in cases if case.person in held_out)))
    return splits


def read_splits(path: Path, dataset: Dataset) -> list[Split]:
    """Read nnU-Net's file of splits. Raises InputError; see `make_splits`."""
    by_name = {case.name: case for case in dataset.cases}
    splits = []
    try:
        for fold in json.loads(path.read_text(encoding="utf-8")):
            training, validation = (tuple(by_name[name] for name in fold[part]) for part in ("train", "val"))
            splits.append(Split(training, validation))
    except KeyError as error:
        raise InputError(f"{path} names {error}, which the data set does not have: correct the file.") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is not a list of folds with train and val ({error}): correct it, or delete it."
        ) from error
    for number, split in enumerate(splits):
        if not split.training:
            raise InputError(f"{path} has no case to train with in fold {number}: correct it, or delete it.")
        both = {case.person for case in split.training} & {case.person for case in split.validation}
        if both:
            raise InputError(f"{path} has {min(both)} on both sides of fold {number}: put a person on one side.")
    return splits
