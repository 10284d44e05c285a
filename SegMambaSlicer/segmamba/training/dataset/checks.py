"""What a data set cannot be trained with, and what its owner should know of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from segmamba.errors import InputError
from segmamba.io.volume import Volume, are_one_grid
from segmamba.training.dataset.layout import Case, Dataset
from segmamba.utils.arrays import as_labels
from segmamba.utils.words import counted

LARGEST_VALUE = 254
# A spacing so many times the data set's median, or so small a part of it, is reported.
UNUSUAL_SPACING = 3.0


def check_case(case: Case, images: Sequence[Volume], labels: Volume, dataset: Dataset) -> None:
    """Refuse a case that cannot be trained on.

    Raises
    ------
    InputError
        An image's grid is not that of its labels, or the labels hold values that the data set does not name.
    """
    check_grids(case, images, labels)
    found = set(np.unique(as_labels(labels.array, LARGEST_VALUE, str(case.labels))).tolist())
    unknown = sorted(found - {0, *dataset.values, dataset.ignore})
    if unknown:
        values = ", ".join(map(str, unknown))
        raise InputError(f"{case.labels} holds values that the data set does not name ({values}): name or remove them.")
    if case.drawn is not None:
        for name, value in dataset.labels.items():
            if value in found and name not in case.drawn:
                raise InputError(
                    f"{case.labels} holds '{name}', which dataset.json says is not labelled in it: add it."
                )


def check_grids(case: Case, images: Sequence[Volume], labels: Volume) -> None:
    """Refuse a case one of whose images is not on the grid of its labels.

    Raises
    ------
    InputError
    """
    # One file may hold them all.
    paths = case.images if len(case.images) == len(images) else case.images * len(images)
    for path, image in zip(paths, images, strict=True):
        if not are_one_grid(image.geometry, labels.geometry):
            raise InputError(f"{case.labels} is not on the grid of {path.name}: resample it onto the image first.")


def digest(image: Volume) -> str:
    """Return what tells images apart by their voxels alone."""
    return hashlib.blake2b(np.ascontiguousarray(image.array).tobytes(), digest_size=16).hexdigest()


def refuse_copies(digests: Mapping[Case, str]) -> None:
    """Refuse images that are there twice under the names of two people: one would be trained on, one tested.

    Raises
    ------
    InputError
        Two cases of different people have the same first image; the sentence names both.
    """
    first: dict[str, Case] = {}
    for case, found in digests.items():
        other = first.setdefault(found, case)
        if other.person != case.person:
            raise InputError(f"{case.images[0]} holds the same image as {other.images[0].name}: remove one of the two.")


def notes(
    dataset: Dataset, spacings: Sequence[Sequence[float]], voxels: Mapping[str, int], cases_with: Mapping[str, int]
) -> list[str]:
    """Return what the owner of a data set should know before it is trained on, a sentence each.

    Parameters
    ----------
    dataset : Dataset
    spacings : sequence
        Of each case in mm along x, y, z.
    voxels : mapping of str to int
        Of each structure in all cases.
    cases_with : mapping of str to int
        In how many cases it is.
    """
    partial = sum(case.drawn is not None for case in dataset.cases)
    cases = counted(len(dataset.cases), "case")
    found = [f"In {partial} of {cases} only some structures are labelled."] if partial else []
    if dataset.unlabelled:
        images = counted(len(dataset.unlabelled), "image")
        found.append(f"Without labels and left out: {images}, first {dataset.unlabelled[0].name}.")
    found += [f"No case has a voxel of '{name}': it cannot be learnt." for name in dataset.labels if not voxels[name]]
    for name, count in cases_with.items():
        if 0 < count < len(dataset.cases):
            found.append(f"'{name}' is in {count} of {cases}.")
    steps = np.array(spacings)
    ratio = steps / np.median(steps, axis=0)
    for case, own, times in zip(dataset.cases, steps, ratio, strict=True):
        if times.max() > UNUSUAL_SPACING or times.min() < 1 / UNUSUAL_SPACING:
            size = " x ".join(f"{step:g}" for step in own)
            found.append(f"{case.labels.name} has voxels of {size} mm, unlike most cases: make sure that is right.")
    return found
