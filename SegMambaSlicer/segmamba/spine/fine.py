"""From the fine pass to the masks of a labelled column."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from segmamba.spine.decode import SACRUM_CHANNEL, Column, Values, find_sacrum
from segmamba.spine.instances import assign, find_next, votes_of
from segmamba.spine.levels import L6, SACRUM, next_level
from segmamba.utils.arrays import in_main_memory


@dataclass(frozen=True, eq=False)
class Cast:
    """The votes of the fine pass.

    Attributes
    ----------
    mask : ndarray of bool
        Shape (z, y, x): voxels that are most probably vertebra.
    indices, votes : ndarray
        Of its voxels, as `votes_of` gives them.
    """

    mask: np.ndarray
    indices: np.ndarray
    votes: np.ndarray


def cast_votes(probabilities: Values, offsets: Values, spacing_mm: float) -> Cast:
    """Return the votes of the fine pass; parameters as for `decode_fine`."""
    mask = _most_probable_vertebra(probabilities)
    return Cast(mask, *votes_of(mask, offsets, spacing_mm))


def recover_truncated_ends(
    column: Column,
    probabilities: Values,
    offsets: Values,
    spacing_mm: float,
    origin_mm: np.ndarray,
    cast: Cast | None = None,
) -> Column:
    """Return a column with the truncated vertebrae at its ends that only the fine pass separates from their neighbours.

    What the upper or lower border leaves of a vertebra votes for a point between its own centroid and its neighbour's,
    so that the coarse pass may take the two for one. Where the last vertebra of the coarse pass touches the border and
    the votes of the fine pass for it have two clusters, the outer one is the next vertebra.

    Parameters
    ----------
    column : Column
        From `segmamba.spine.decode.decode`.
    probabilities, offsets, spacing_mm, origin_mm, cast
        As for `decode_fine`.
    """
    for end, face, step in ((0, -1, -1), (-1, 0, 1)):
        if len(column.levels) < 2 or not (column.labels[face] == column.levels[end]).any():
            continue
        # An L6 is never made of a sliver.
        beyond = next_level(int(column.levels[end]), step)
        if beyond in (None, L6) or (step > 0 and column.sacrum is not None):
            continue
        cast = cast or cast_votes(probabilities, offsets, spacing_mm)
        found = find_next((cast.indices, cast.votes), spacing_mm, np.asarray(origin_mm), column.centres[::step])
        if found is not None:
            column = _extended(column, end, step, *found)
    return column


def decode_fine(
    probabilities: Values,
    offsets: Values,
    spacing_mm: float,
    origin_mm: np.ndarray,
    column: Column,
    cast: Cast | None = None,
) -> np.ndarray:
    """Return the levels (z, y, x), uint8, of the fine pass's voxels: 0, 1 to 25, sacrum 26, T13 28.

    Parameters
    ----------
    probabilities, offsets, spacing_mm
        As for `segmamba.spine.decode.decode`, on the fine grid, whose axes are those of the coarse one.
    origin_mm : ndarray
        Where the centre of the fine voxel (0, 0, 0) lies: (z, y, x) in mm from that of the coarse voxel (0, 0, 0).
    column : Column
        What `segmamba.spine.decode.decode` found.
    cast : Cast, optional
        The votes, where they are known.
    """
    cast = cast or cast_votes(probabilities, offsets, spacing_mm)
    centres = np.vstack([column.centres, column.sacral])
    numbers = assign(cast.mask, cast.votes, origin_mm, centres)
    labels = np.r_[0, column.levels, [SACRUM] * len(column.sacral)].astype(np.uint8)[numbers]
    if column.sacrum is not None:
        labels[find_sacrum(probabilities[SACRUM_CHANNEL], spacing_mm)[0] & (labels == 0)] = SACRUM
    return labels


def _most_probable_vertebra(probabilities: Values) -> np.ndarray:
    """Return the mask (z, y, x) where vertebra is the most probable class; it wins ties with sacrum, not background."""
    background, vertebra, sacrum = probabilities
    return in_main_memory((vertebra > background) & (vertebra >= sacrum))


def _extended(column: Column, end: int, step: int, own: np.ndarray, following: np.ndarray) -> Column:
    """Return a column with one more vertebra at an end (0 or -1), and new centroids of the last one and of that one."""
    centres = column.centres.copy()
    centres[end] = own
    index = 0 if end == 0 else len(centres)
    beyond = next_level(int(column.levels[end]), step)
    assert beyond is not None
    rival, all_rivals = column.runner_up, column.numbering.runner_up
    if rival is not None and all_rivals is not None:
        level = next_level(int(all_rivals[all_rivals > 0][end]), step)
        all_rivals = None if level is None else np.insert(all_rivals, 0 if end == 0 else len(all_rivals), level)
        rival = None if level is None else np.insert(rival, index, level)
    return replace(
        column,
        numbering=replace(column.numbering, runner_up=all_rivals),
        runner_up=rival,
        levels=np.insert(column.levels, index, beyond),
        centres=np.insert(centres, index, following, axis=0),
        confidence=np.insert(column.confidence, index, column.confidence[end]),
    )
