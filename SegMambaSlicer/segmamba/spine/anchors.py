"""Levels that are set: by a person who says "this is L5", or by another segmentation of the same patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from segmamba.errors import InputError
from segmamba.spine.decode import Column, relabelled
from segmamba.spine.hmm import label_with_anchors
from segmamba.spine.levels import level_name, next_level

# An anchor holds for the nearest vertebra within this distance: less than half of that of two lumbar vertebrae.
ANCHOR_MM = 15.0
FAR = f"no vertebra lies within {ANCHOR_MM:g} mm of it"
ALL_FAR = f"no vertebra lies within {ANCHOR_MM:g} mm of one of its own"
TWICE = "one vertebra cannot have two levels"


@dataclass(frozen=True, eq=False)
class Anchor:
    """A level that is set.

    Attributes
    ----------
    level : int
    point : ndarray
        Shape (3,): a point of the vertebra, (z, y, x) in mm from the centre of the column's voxel (0, 0, 0).
    by_person : bool
        Otherwise it is from another segmentation, some of whose vertebrae may not be in view.
    """

    level: int
    point: np.ndarray
    by_person: bool = True


@dataclass(frozen=True, eq=False)
class Anchored:
    """A column in which levels were set.

    Attributes
    ----------
    column : Column
        With the levels as they were where the anchors contradict each other, or where none is near a vertebra.
    owners : tuple of (int or None)
        For each anchor the index of the instance that has its level; None if it was not used.
    problem : str
        A sentence if an anchor of a person, or no level of another segmentation, was used; else empty.
    """

    column: Column
    owners: tuple[int | None, ...]
    problem: str = ""


def set_levels(column: Column, anchors: Sequence[Anchor], spacing_mm: float) -> Anchored:
    """Label the levels of a column again, some of which are set.

    Parameters
    ----------
    column : Column
        From `segmamba.spine.decode.decode`.
    anchors : sequence of Anchor
    spacing_mm : float
        Of the column's grid.
    """
    owners = _owners(column, anchors, spacing_mm)
    if all(owner is None for owner in owners):
        return _unused(column, anchors, FAR if anchors[0].by_person else ALL_FAR)
    far = [anchor for anchor, owner in zip(anchors, owners, strict=True) if owner is None and anchor.by_person]
    return _labelled(column, anchors, owners, _sentence(far, FAR) if far else "")


def set_levels_beyond(found: Anchored, anchors: Sequence[Anchor], extended: Column) -> Anchored:
    """Return a column in which anchors hold for vertebrae at its ends that only the fine pass tells from the next ones.

    Parameters
    ----------
    found : Anchored
        From `set_levels`.
    anchors : sequence of Anchor
    extended : Column
        From `segmamba.spine.fine.recover_truncated_ends`, of the same column. Where an anchor is nearer to one of its
        new vertebrae than to the instance that has the anchor's level, that instance gets the next level.
    """
    old, kept = found.column, np.flatnonzero(found.column.numbering.levels)
    moved = list(anchors)
    for number, (anchor, owner) in enumerate(zip(anchors, found.owners, strict=True)):
        for end, step in ((0, -1), (-1, 1)):
            if owner is None or owner != kept[end] or extended.levels[end] == old.levels[end]:
                continue
            own_and_beyond = [1, 0] if end == 0 else [-2, -1]
            distances = np.linalg.norm(extended.centres[own_and_beyond] - anchor.point, axis=1)
            level = next_level(anchor.level, -step)
            if distances[1] < distances[0] and level is not None:
                moved[number] = Anchor(level, anchor.point, anchor.by_person)
    if moved == list(anchors):
        return found
    return _labelled(old, moved, found.owners, found.problem)


def _labelled(column: Column, anchors: Sequence[Anchor], owners: Sequence[int | None], problem: str) -> Anchored:
    levels: dict[int, int] = {}
    for anchor, owner in zip(anchors, owners, strict=True):
        if owner is not None and levels.setdefault(owner, anchor.level) != anchor.level:
            return _unused(column, anchors, TWICE)
    try:
        numbering = label_with_anchors(column.observations, levels, column.numbering)
    except InputError as error:
        return _unused(column, anchors, str(error))
    return Anchored(relabelled(column, numbering), tuple(owners), problem)


def _unused(column: Column, anchors: Sequence[Anchor], why: str) -> Anchored:
    return Anchored(column, (None,) * len(anchors), _sentence(anchors, why))


def _owners(column: Column, anchors: Sequence[Anchor], spacing_mm: float) -> list[int | None]:
    """Return the index of the instance that each anchor is for; None where none is near.

    Of levels of another segmentation that are for one instance, that of a person counts alone, or else the one that is
    nearest to its centroid.
    """
    labels = column.instances.labels
    voxels = np.argwhere(labels)
    if not len(voxels):
        return [None] * len(anchors)
    distances, nearest = KDTree(voxels * spacing_mm).query([anchor.point for anchor in anchors])
    numbers = labels[tuple(voxels[nearest].T)]
    owners = [int(n) - 1 if far <= ANCHOR_MM else None for n, far in zip(numbers, distances, strict=True)]

    def rank(number: int) -> tuple[bool, float]:
        centre = column.instances.centres[owners[number]]
        return not anchors[number].by_person, float(np.linalg.norm(centre - anchors[number].point))

    taken: set[int | None] = {None}
    for number in sorted((n for n, owner in enumerate(owners) if owner is not None), key=rank):
        if owners[number] in taken and not anchors[number].by_person:
            owners[number] = None
        taken.add(owners[number])
    return owners


def _sentence(anchors: Sequence[Anchor], why: str) -> str:
    """Return the sentence about anchors that were not used."""
    names = [level_name(anchor.level) for anchor in anchors if anchor.by_person]
    if not names:
        return f"The levels of the other segmentation were not used, as {why}."
    said = f"anchor {names[0]} was" if len(names) == 1 else f"anchors {', '.join(names)} were"
    return f"The {said} not used, as {why}."
