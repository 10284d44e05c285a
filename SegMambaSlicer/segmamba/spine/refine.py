"""Anatomical refinement: masks that a vertebra could have. Every step says what it changed, and can be left out.

Our own rules; the shapes are those of `segmamba.spine.shape_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from scipy import ndimage

from segmamba.errors import InputError
from segmamba.spine.column import ISLAND_MM3
from segmamba.spine.frames import Frame, column_frames
from segmamba.spine.levels import C1, L6, SACRUM, T1, T12, level_name
from segmamba.spine.shape_model import Fit, ShapeModel, fit
from segmamba.utils.arrays import label_boxes
from segmamba.utils.morphology import HOLE_MM3, TOUCHING, fill_holes, merge_islands
from segmamba.utils.parallel import at_once

STEPS = ("pieces", "split", "remove", "trim", "close")
# Those that a model should have on: each was measured to gain something, or to do no harm (Docs/spine.md).
ON = ("pieces", "split", "close")
# A vertebra with more volume than this, in parts of its neighbours', may be two.
TWO = 1.6
# Of 537 vertebrae of label maps that the model was not learned from, all but one overlap at least 0.65 with their fit
# (benchmarks/refinement.py); a mask that overlaps less than this looks like none.
LOOKS_LIKE_ONE = 0.5
# A gap is closed where the model is this far inside of its surface (the fits err by 1 to 2 mm) and the network is not
# surer than this that there is no vertebra.
INSIDE_MM = 1.5
NOT_AGAINST = 0.3
# In the thorax, 99.5% of the voxels of whole vertebrae of label maps that the model was not learned from lie within
# this distance of their fitted shape (benchmarks/refinement.py): what is further out is a rib's, or a neighbour's.
OUTSIDE_MM = 3.6
# A second piece belongs to a vertebra if this part of it lies in, or this near to, the shape.
PART_IN_SHAPE, NEAR_MM = 0.5, 2.0


def refine(
    labels: np.ndarray,
    vertebra: np.ndarray,
    spacing_mm: float,
    model: ShapeModel,
    steps: Collection[str] = ON,
    check: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Make the masks of a column anatomically clean.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x): levels, sacrum 26; axes up, to posterior and to the left.
    vertebra : ndarray
        Same shape: the network's probability of a vertebra.
    spacing_mm : float
        Of the isotropic grid.
    model : ShapeModel
        What vertebrae look like.
    steps : collection of str
        Of `STEPS`. "pieces": small pieces of a label join what they touch most, or go; holes are filled; a larger
        second piece stays only where the shape has one. "split": a mask that is two vertebrae is cut, if the number of
        one of them is free. "remove": what no vertebra looks like goes. "trim": in the thorax, what lies far
        outside of the shape goes. "close": gaps are closed where the shape is solid and the network not against it.
    check : callable
        Called between vertebrae; what it raises ends the refinement.

    Returns
    -------
    tuple
        The refined labels, and what was done: for each step and label that it changed, a dictionary of ``step``,
        ``level`` (a name), ``voxels`` and ``ml`` that were added, removed or given another label.
    """
    unknown = set(steps) - set(STEPS)
    if unknown:
        raise ValueError(f"There is no step {sorted(unknown)[0]!r}: the steps are {', '.join(STEPS)}.")
    given = labels
    changes: list[dict[str, Any]] = []
    fits: dict[int, Fit] = {}
    for step in (step for step in STEPS if step in steps):
        if step == "pieces":
            refined = _join_pieces(labels, spacing_mm, model, check)
        elif step == "split":
            refined = _split(labels, spacing_mm, model, check)
        else:
            fits = fits or _fits(labels, spacing_mm, model, check)
            if step == "remove":
                refined = _remove(labels, fits)
            elif step == "trim":
                refined, fits = _trim(labels, fits, spacing_mm, model, check)
            else:
                refined = _close(labels, vertebra, fits)
        changes += differences(step, labels, refined, spacing_mm)
        labels = refined
    return (labels.copy() if labels is given else labels), changes


def refine_one(
    labels: np.ndarray, value: int, vertebra: np.ndarray | None, spacing_mm: float, model: ShapeModel
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Tidy one vertebra after an edit by hand, and nothing else.

    Its largest piece stays, with what of the others the shape has; holes are filled; gaps are closed. What was drawn
    is not trimmed to the shape.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x): levels, sacrum 26.
    value : int
        The vertebra, 1 to 25.
    vertebra : ndarray or None
        The network's probability; None where it is not known: then only voxels deep in the shape are added.
    spacing_mm : float
        Of the isotropic grid.
    model : ShapeModel
        What vertebrae look like.

    Raises
    ------
    InputError
        There is no such vertebra in the labels.
    """
    frames = column_frames(labels, spacing_mm)
    if value not in frames:
        raise InputError(f"There is no {_name(value)} in the segmentation: choose a vertebra that is there.")
    found = fit(labels == value, value, model, frames[value], spacing_mm)
    refined = labels.copy()
    view = refined[found.box]
    view[_strays(view == value, found, spacing_mm)] = 0
    own = view == value
    view[ndimage.binary_fill_holes(own) & (view == 0)] = value
    deep = INSIDE_MM if vertebra is not None else 2 * INSIDE_MM
    probable = vertebra[found.box] > NOT_AGAINST if vertebra is not None else np.ones(view.shape, bool)
    _fill(view, value, (found.distance < -deep) & probable)
    return refined, differences("edit", labels, refined, spacing_mm)


def renumber(labels: np.ndarray, value: int, new_value: int, below: bool = False) -> np.ndarray:
    """Give a vertebra another number, and with it all others, so that they stay in order; the sacrum stays.

    Parameters
    ----------
    labels : ndarray of uint8
        Levels, sacrum 26.
    value, new_value : int
        Levels, 1 to 25: what the vertebra is called, and what it is.
    below : bool
        Only what is called so, and the levels below it, get other numbers.

    Raises
    ------
    InputError
        There is no such vertebra, one of them would become none of C1 to L6, or two would have the same number.
    """
    present = [level for level in np.unique(labels).tolist() if C1 <= level <= L6]
    if value not in present:
        raise InputError(f"There is no {_name(value)} in the segmentation: choose a vertebra that is there.")
    shift = new_value - value
    moved = [level for level in present if level >= value or not below]
    for level in moved:
        if level + shift in set(present) - set(moved):
            raise InputError(
                f"If {_name(value)} were {_name(new_value)}, there would be {_name(level + shift)} twice: choose "
                "another number, or renumber the whole column."
            )
        if not C1 <= level + shift <= L6:
            raise InputError(
                f"If {_name(value)} were {_name(new_value)}, {_name(level)} would be no vertebra between C1 and L6: "
                "choose another number, or remove that vertebra first."
            )
    table = np.arange(256, dtype=labels.dtype)
    for level in moved:
        table[level] = level + shift
    return table[labels]


def differences(step: str, before: np.ndarray, after: np.ndarray, spacing_mm: float) -> list[dict[str, Any]]:
    """Return what changed between two label maps, a dictionary for each level: see `refine`."""
    changed = before != after
    gained = np.bincount(after[changed], minlength=256)
    lost = np.bincount(before[changed], minlength=256)
    return [
        {
            "step": step,
            "level": level_name(level),
            "added_voxels": int(gained[level]),
            "removed_voxels": int(lost[level]),
            "added_ml": round(float(gained[level] * spacing_mm**3 / 1000), 3),
            "removed_ml": round(float(lost[level] * spacing_mm**3 / 1000), 3),
        }
        for level in range(C1, SACRUM + 1)
        if gained[level] or lost[level]
    ]


def _name(level: int) -> str:
    return level_name(level) if C1 <= level <= SACRUM else f"level {level}"


def _join_pieces(labels: np.ndarray, spacing_mm: float, model: ShapeModel, check: Callable[[], None]) -> np.ndarray:
    refined = labels.copy()
    merge_islands(refined, ISLAND_MM3 / spacing_mm**3)
    fill_holes(refined, HOLE_MM3 / spacing_mm**3)
    frames = column_frames(refined, spacing_mm)
    boxes = label_boxes(refined)
    for level, frame in frames.items():
        check()
        _, count = ndimage.label(refined[boxes[level]] == level, structure=TOUCHING)
        if count > 1:
            found = fit(refined == level, level, model, frame, spacing_mm)
            view = refined[found.box]
            view[_strays(view == level, found, spacing_mm)] = 0
    return refined


def _strays(mask: np.ndarray, found: Fit, spacing_mm: float) -> np.ndarray:
    """Return the pieces of a mask, but the largest, that the shape does not have."""
    pieces, count = ndimage.label(mask, structure=TOUCHING)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    shaped = np.bincount(pieces[found.distance < NEAR_MM], minlength=count + 1)
    stray = (sizes * spacing_mm**3 < ISLAND_MM3) | (shaped < PART_IN_SHAPE * sizes)
    stray[0] = False
    if count:
        stray[1 + sizes[1:].argmax()] = False
    return stray[pieces]


def _split(labels: np.ndarray, spacing_mm: float, model: ShapeModel, check: Callable[[], None]) -> np.ndarray:
    """Cut what is two vertebrae, where the shapes say so and the level above or below is free."""
    refined = labels
    frames = column_frames(labels, spacing_mm)
    sizes = np.bincount(labels.ravel(), minlength=SACRUM + 1)
    levels = list(frames)
    for place, level in enumerate(levels):
        check()
        beside = [sizes[other] for other in levels[max(0, place - 2) : place + 3] if other != level]
        if not beside or sizes[level] < TWO * np.median(beside):
            continue
        whole = fit(labels == level, level, model, frames[level], spacing_mm).dice
        tries = []
        for upper, lower in ((level, level + 1), (level - 1, level)):
            other = lower if upper == level else upper
            if other in frames or not C1 <= other <= L6:
                continue
            halves = _halves(labels, level, frames[level], spacing_mm)
            dice = [
                fit(half, number, model, _centred(half, frames[level], spacing_mm), spacing_mm).dice
                for half, number in zip(halves, (upper, lower), strict=True)
            ]
            tries.append((min(dice), other, halves[1 if other == lower else 0]))
        if tries:
            best, other, half = max(tries, key=lambda attempt: attempt[0])
            if best > whole:
                refined = refined.copy()
                refined[half] = other
    return refined


def _halves(labels: np.ndarray, level: int, frame: Frame, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the upper and the lower half of a vertebra's mask, cut across the column at its middle."""
    mask = labels == level
    height = np.zeros(labels.shape, np.float32)
    height[mask] = frame.to_local(np.argwhere(mask) * spacing_mm)[:, 0]
    return mask & (height >= 0), mask & (height < 0)


def _centred(mask: np.ndarray, frame: Frame, spacing_mm: float) -> Frame:
    return Frame(np.argwhere(mask).mean(axis=0) * spacing_mm, frame.axes, frame.scale)


def _fits(labels: np.ndarray, spacing_mm: float, model: ShapeModel, check: Callable[[], None]) -> dict[int, Fit]:
    frames = column_frames(labels, spacing_mm)
    return at_once(lambda level: fit(labels == level, level, model, frames[level], spacing_mm), frames, check)


def _remove(labels: np.ndarray, fits: dict[int, Fit]) -> np.ndarray:
    """Remove what no vertebra looks like; what the border cuts may look like anything."""
    refined = labels
    for level, box in label_boxes(labels).items():
        cut = any(part.start == 0 or part.stop == size for part, size in zip(box, labels.shape, strict=True))
        if level in fits and not cut and fits[level].dice < LOOKS_LIKE_ONE:
            refined = refined.copy()
            refined[box][labels[box] == level] = 0
    return refined


def _trim(
    labels: np.ndarray, fits: dict[int, Fit], spacing_mm: float, model: ShapeModel, check: Callable[[], None]
) -> tuple[np.ndarray, dict[int, Fit]]:
    """Take away the parts of ribs that lie far outside of the shapes, and return the fits without them too.

    Such parts, and even more those of a neighbour, pull the fit. So the shape is fitted a second time, without them,
    and the whole mask is compared with the second fit. What the upper or lower border cuts is left, for its fit may
    lie anywhere.
    """
    boxes = label_boxes(labels)

    def trimmed(level: int) -> tuple[np.ndarray, Fit] | None:
        box = boxes[level]
        mask = labels == level
        near = _near(mask, fits[level])
        if near[box].sum() == mask[box].sum():
            return None
        found = fit(near, level, model, fits[level].frame, spacing_mm)
        near = _near(mask, found)
        near[found.box] &= ~_strays(near[found.box], found, spacing_mm)
        return near[box], found

    ribbed = [
        level
        for level, box in boxes.items()
        if T1 <= level <= T12 and box[0].start > 0 and box[0].stop < len(labels) and fits[level].dice >= LOOKS_LIKE_ONE
    ]
    refined, fits = labels.copy(), dict(fits)
    for level, result in at_once(trimmed, ribbed, check).items():
        if result is not None:
            near, found = result
            view = refined[boxes[level]]
            view[(view == level) & ~near] = 0
            fits[level] = found
    return refined, fits


def _near(mask: np.ndarray, found: Fit) -> np.ndarray:
    near = np.zeros_like(mask)
    near[found.box] = mask[found.box] & (found.distance <= OUTSIDE_MM)
    return near


def _close(labels: np.ndarray, vertebra: np.ndarray, fits: dict[int, Fit]) -> np.ndarray:
    refined = labels.copy()
    for level, found in fits.items():
        if found.dice >= LOOKS_LIKE_ONE:
            _fill(refined[found.box], level, (found.distance < -INSIDE_MM) & (vertebra[found.box] > NOT_AGAINST))
    return refined


def _fill(view: np.ndarray, level: int, may_be: np.ndarray) -> None:
    """Give a label the free voxels that may be its own and touch it, directly or through others, in place."""
    own = view == level
    reached = ndimage.binary_propagation(own, structure=TOUCHING, mask=own | (may_be & (view == 0)))
    view[reached & ~own] = level
