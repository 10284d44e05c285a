"""Anatomical refinement of the masks of vertebrae. Every step reports its changes and can be left out.

The rules are our own; the shapes are those of `segmamba.spine.shape_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from segmamba.errors import InputError
from segmamba.spine.atlas import separate_atlas
from segmamba.spine.column import SMALL_COMPONENT_MM3
from segmamba.spine.frames import Frame, column_frames
from segmamba.spine.levels import L1, ORDER, SACRUM, T1, T12, T13, level_name, next_level
from segmamba.spine.shape_model import Fit, FitTogether, ShapeModel, fit, fit_one, part_near
from segmamba.utils.arrays import bounding_box, grown_box, in_main_memory, label_boxes
from segmamba.utils.morphology import CONNECTIVITY_26, HOLE_MM3, fill_holes, merge_small_components
from segmamba.utils.parallel import at_once
from segmamba.utils.runs import runs_of

if TYPE_CHECKING:
    import torch

STEPS = ("pieces", "split", "atlas", "remove", "trim", "close")
# The recommended steps: each was measured to gain something, or to do no harm (Docs/spine.md).
ON = ("pieces", "split", "atlas", "close")
# A vertebra with more than this multiple of its neighbours' median volume may be two.
TWO = 1.6
# Below this Dice with its fit a mask is not a vertebra: of 537 vertebrae of label maps that the model was not learned
# from, all but one have at least 0.65 (benchmarks/refinement.py).
LEAST_DICE = 0.5
# A gap is closed at least this deep inside the fitted shape (the fits err by 1 to 2 mm), where the network's
# probability of a vertebra is above this.
INSIDE_MM = 1.5
LEAST_PROBABILITY = 0.3
# In the thorax, 99.5% of the voxels of whole vertebrae of label maps that the model was not learned from lie within
# this distance of their fitted shape (benchmarks/refinement.py): voxels further out belong to a rib or a neighbour.
OUTSIDE_MM = 3.6
# A second component belongs to a vertebra if this part of it lies in the shape, or within this distance.
PART_IN_SHAPE, NEAR_MM = 0.5, 2.0


def refine(
    labels: np.ndarray,
    vertebra: np.ndarray | torch.Tensor,
    spacing_mm: float,
    model: ShapeModel,
    steps: Collection[str] = ON,
    check: Callable[[], None] = lambda: None,
    together: FitTogether | None = None,
) -> tuple[np.ndarray, list[dict[str, Any]], dict[int, Fit]]:
    """Make the masks of a column anatomically clean.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x): levels, sacrum 26; axes up, to posterior and to the left.
    vertebra : ndarray or Tensor
        Same shape: the network's probability of a vertebra.
    spacing_mm : float
        Of the isotropic grid.
    model : ShapeModel
        Shapes of vertebrae.
    steps : collection of str
        Of `STEPS`. "pieces": small components of a label join the label that they touch most, or are removed; holes
        are filled; a larger second component stays only where the shape has one. "split": a mask of two vertebrae is
        cut, if the level of one of them is free. "atlas": see `segmamba.spine.atlas`. "remove": masks unlike any
        vertebra are removed. "trim": in the thorax, voxels far outside the shape are removed. "close": gaps well inside
        the shape are closed unless the network's probability is low.
    check : callable
        Called between vertebrae; an exception that it raises ends the refinement.
    together : callable, optional
        Fits a column at once; by default its vertebrae are fitted one by one, on all processors.

    Returns
    -------
    tuple
        The refined labels (z, y, x), a list of the changes, see `differences`, and the fits of "remove", "trim" and
        "close", by level; none without these.
    """
    unknown = set(steps) - set(STEPS)
    if unknown:
        raise ValueError(f"There is no step {sorted(unknown)[0]!r}: the steps are {', '.join(STEPS)}.")
    given = labels
    changes: list[dict[str, Any]] = []
    fits: dict[int, Fit] = {}
    for step in (step for step in STEPS if step in steps):
        if step == "pieces":
            refined = _merge_components(labels, spacing_mm, model, check, together)
        elif step == "split":
            refined = _split(labels, spacing_mm, model, check)
        elif step == "atlas":
            refined = separate_atlas(labels, spacing_mm, model, check, together)
        else:
            fits = fits or fit_column(labels, spacing_mm, model, check, together)
            if step == "remove":
                refined = _remove(labels, fits)
            elif step == "trim":
                refined, fits = _trim(labels, fits, spacing_mm, model, check)
            else:
                refined = _close(labels, in_main_memory(vertebra > LEAST_PROBABILITY), fits)
        changes += differences(step, labels, refined, spacing_mm)
        labels = refined
    return (labels.copy() if labels is given else labels), changes, fits


def refine_one(
    labels: np.ndarray, value: int, vertebra: np.ndarray | None, spacing_mm: float, model: ShapeModel
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Clean up one vertebra after an edit by hand, and nothing else.

    Its largest component stays, and others that the shape has; holes are filled; gaps are closed. The mask is not
    trimmed to the shape.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x): levels, sacrum 26.
    value : int
        The vertebra's level.
    vertebra : ndarray or None
        Shape (z, y, x): the network's probability; None if unknown: then only voxels deep in the shape are added.
    spacing_mm : float
        Of the isotropic grid.
    model : ShapeModel
        Shapes of vertebrae.

    Raises
    ------
    InputError
        There is no such vertebra in the labels.
    """
    frames = column_frames(labels, spacing_mm)
    if value not in frames:
        raise InputError(f"There is no {_name(value)} in the segmentation: choose one of its vertebrae.")
    found = fit(labels == value, value, model, frames[value], spacing_mm)
    refined = labels.copy()
    view = refined[found.box]
    view[_strays(view == value, found, spacing_mm)] = 0
    own = view == value
    view[ndimage.binary_fill_holes(own) & (view == 0)] = value
    deep = INSIDE_MM if vertebra is not None else 2 * INSIDE_MM
    probable = vertebra[found.box] > LEAST_PROBABILITY if vertebra is not None else np.ones(view.shape, bool)
    _fill(view, value, (found.distance < -deep) & probable)
    return refined, differences("edit", labels, refined, spacing_mm)


def differences(step: str, before: np.ndarray, after: np.ndarray, spacing_mm: float) -> list[dict[str, Any]]:
    """Return the changes between two label maps, one dictionary for each level that changed.

    Its keys are ``step``, ``level`` (a name), ``added_voxels``, ``removed_voxels``, ``added_ml`` and ``removed_ml``; a
    voxel that changes its level is removed from one and added to the other.
    """
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
        for level in (*ORDER, SACRUM)
        if gained[level] or lost[level]
    ]


def _name(level: int) -> str:
    return level_name(level) if level in (*ORDER, SACRUM) else f"level {level}"


def _merge_components(
    labels: np.ndarray,
    spacing_mm: float,
    model: ShapeModel,
    check: Callable[[], None],
    together: FitTogether | None,
) -> np.ndarray:
    refined = labels.copy()
    merge_small_components(refined, SMALL_COMPONENT_MM3 / spacing_mm**3)
    fill_holes(refined, HOLE_MM3 / spacing_mm**3)
    frames = column_frames(refined, spacing_mm)
    boxes = label_boxes(refined)

    def pieces(level: int) -> int:
        return len(runs_of(refined[boxes[level]] == level, corners=True).sizes)

    for level, count in at_once(pieces, frames, check).items():
        if count > 1:
            found = fit_one(together, refined == level, level, model, frames[level], spacing_mm)
            view = refined[found.box]
            view[_strays(view == level, found, spacing_mm)] = 0
    return refined


def _strays(mask: np.ndarray, found: Fit, spacing_mm: float) -> np.ndarray:
    """Return the components of a mask that the shape does not have, never the largest one."""
    components, count = ndimage.label(mask, structure=CONNECTIVITY_26)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    shaped = np.bincount(components[found.distance < NEAR_MM], minlength=count + 1)
    stray = (sizes * spacing_mm**3 < SMALL_COMPONENT_MM3) | (shaped < PART_IN_SHAPE * sizes)
    stray[0] = False
    if count:
        stray[1 + sizes[1:].argmax()] = False
    return stray[components]


def _split(labels: np.ndarray, spacing_mm: float, model: ShapeModel, check: Callable[[], None]) -> np.ndarray:
    """Cut masks of two vertebrae, if both halves fit better than the whole and the level above or below is free."""
    refined = labels
    frames = column_frames(labels, spacing_mm)
    sizes = np.bincount(labels[labels > 0], minlength=T13 + 1)
    levels = list(frames)
    for index, level in enumerate(levels):
        check()
        neighbours = [sizes[other] for other in levels[max(0, index - 2) : index + 3] if other != level]
        if not neighbours or sizes[level] < TWO * np.median(neighbours):
            continue
        whole = fit(labels == level, level, model, frames[level], spacing_mm).dice
        tries = []
        for step in (1, -1):
            other = next_level(level, step)
            if other is None or other in frames or (T13 in frames and {level, other} == {T12, L1}):
                continue
            upper, lower = (level, other) if step > 0 else (other, level)
            halves = _halves(labels, level, frames[level], spacing_mm)
            dice = [
                fit(half, half_level, model, _centred(half, frames[level], spacing_mm), spacing_mm).dice
                for half, half_level in zip(halves, (upper, lower), strict=True)
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


def fit_column(
    labels: np.ndarray,
    spacing_mm: float,
    model: ShapeModel,
    check: Callable[[], None],
    together: FitTogether | None,
    levels: Collection[int] | None = None,
) -> dict[int, Fit]:
    """Return the fits of vertebrae of a column, by level: of all, or of some. Parameters as for `refine`."""
    frames = column_frames(labels, spacing_mm)
    if levels is not None:
        frames = {level: frame for level, frame in frames.items() if level in levels}
    if together is not None:
        boxes = label_boxes(labels)
        masks = {level: (boxes[level], labels[boxes[level]] == level) for level in frames}
        return together(masks, labels.shape, model, frames, spacing_mm, check=check)
    return at_once(lambda level: fit(labels == level, level, model, frames[level], spacing_mm), frames, check)


def _remove(labels: np.ndarray, fits: dict[int, Fit]) -> np.ndarray:
    """Remove masks unlike any vertebra, unless the border truncates them."""
    refined = labels
    for level, box in label_boxes(labels).items():
        cut = any(part.start == 0 or part.stop == size for part, size in zip(box, labels.shape, strict=True))
        if level in fits and not cut and fits[level].dice < LEAST_DICE:
            refined = refined.copy()
            refined[box][labels[box] == level] = 0
    return refined


def _trim(
    labels: np.ndarray, fits: dict[int, Fit], spacing_mm: float, model: ShapeModel, check: Callable[[], None]
) -> tuple[np.ndarray, dict[int, Fit]]:
    """Remove parts of ribs that lie far outside the shapes; return labels and fits without them.

    Such parts, and even more those of a neighbour, bias the fit. So the shape is fitted a second time without them, and
    the whole mask is compared with the second fit. Vertebrae truncated by the upper or lower border are left alone,
    because their fits are unreliable.
    """
    boxes = label_boxes(labels)

    def trimmed(level: int) -> tuple[np.ndarray, Fit] | None:
        box = boxes[level]
        mask = labels == level
        near = part_near(mask, fits[level], OUTSIDE_MM)
        if near[box].sum() == mask[box].sum():
            return None
        found = fit(near, level, model, fits[level].frame, spacing_mm)
        near = part_near(mask, found, OUTSIDE_MM)
        near[found.box] &= ~_strays(near[found.box], found, spacing_mm)
        return near[box], found

    ribbed = [
        level
        for level, box in boxes.items()
        if (T1 <= level <= T12 or level == T13)
        and box[0].start > 0
        and box[0].stop < len(labels)
        and fits[level].dice >= LEAST_DICE
    ]
    refined, fits = labels.copy(), dict(fits)
    for level, result in at_once(trimmed, ribbed, check).items():
        if result is not None:
            near, found = result
            view = refined[boxes[level]]
            view[(view == level) & ~near] = 0
            fits[level] = found
    return refined, fits


def _close(labels: np.ndarray, probable: np.ndarray, fits: dict[int, Fit]) -> np.ndarray:
    refined = labels.copy()
    for level, found in fits.items():
        if found.dice >= LEAST_DICE:
            _fill(refined[found.box], level, (found.distance < -INSIDE_MM) & probable[found.box])
    return refined


def _fill(view: np.ndarray, level: int, may_be: np.ndarray) -> None:
    """Add to a label, in place, the free voxels allowed by ``may_be`` that are connected to it."""
    free = may_be & (view == 0)
    box = bounding_box(free)
    if box is None:
        return
    # Most vertebrae have few free voxels, or none: the components of those are looked at, not the whole mask.
    box = grown_box(box, view.shape)
    components, count = ndimage.label(free[box], structure=CONNECTIVITY_26)
    beside = ndimage.binary_dilation(view[box] == level, structure=CONNECTIVITY_26)
    reached = np.zeros(count + 1, bool)
    reached[components[beside]] = True
    reached[0] = False
    view[box][reached[components]] = level
