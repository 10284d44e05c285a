"""The levels of the spine and the distances between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

C1, C2, C7, T1, T11, T12, L1, L4, L5, L6, SACRUM = 1, 2, 7, 8, 18, 19, 20, 23, 24, 25, 26
# A thirteenth thoracic vertebra lies between T12 and L1; its number is VerSe's.
T13 = 28
# All levels from the top down.
ORDER = (*range(C1, T12 + 1), T13, *range(L1, L6 + 1))
# Millimetres from the centroid of a level (C1 first) to the next one's, for a column of scale 1: `fit_distances` of
# the training label maps (11 subjects). None of them has an L6: its distance is taken as that above.
DISTANCES_MM = np.array(
    [18.2, 20.5, 17.6, 18.1, 17.6, 18.2, 19.8]  # C1-C2 to C7-T1
    + [22.8, 24.5, 23.6, 23.5, 23.8, 24.4, 24.8, 25.2, 25.7, 28.2, 30.6, 31.1]  # T1-T2 to T12-L1
    + [33.2, 33.8, 33.4, 31.2, 31.2]  # L1-L2 to L5-L6
)
# From the last vertebra's centroid to the whole sacrum's (5 subjects).
SACRUM_MM = 54.0
# The same where the volume ends just below the top of the sacrum: half a vertebra, a disc, and half of what is seen.
SACRUM_TOP_MM = 24.0
# Standard deviation of the logarithm of a distance about the table times the column's scale. The label maps give 0.033;
# collapsed discs, scoliosis and a network's centroids spread more.
DISTANCE_SPREAD = 0.08
# The same of a column's scale: 0.07 among the label maps' adults.
SCALE_SPREAD = 0.12
# Distance of neighbours, in mm, by the volume of one vertebra in mL: factor and exponent, from the same label maps
# (standard deviation of the logarithm 0.07).
DISTANCE_BY_VOLUME = (6.0, 0.41)


def level_name(level: int) -> str:
    """Return the usual name of a level: "C1" to "L6", or "sacrum"."""
    if level == SACRUM:
        return "sacrum"
    if level == T13:
        return "T13"
    first, letter = next((first, letter) for first, letter in ((L1, "L"), (T1, "T"), (C1, "C")) if level >= first)
    return f"{letter}{level - first + 1}"


def level_named(name: str) -> int | None:
    """Return the level that a name, in capitals or not, stands for; None for another text."""
    return {level_name(level): level for level in ORDER}.get(name.strip().upper())


def steps_between(upper: int, lower: int) -> int:
    """Return how many steps down a column one level lies below another: 1 for neighbours, also for T12 and L1."""
    first, second = sorted((ORDER.index(upper), ORDER.index(lower)))
    steps = second - first - (T13 in ORDER[first + 1 : second])
    return steps if ORDER[first] == upper else -steps


def is_next(upper: int, lower: int) -> bool:
    """Say whether one level lies right below another: both are vertebrae, and neighbours."""
    return upper in ORDER and lower in ORDER and steps_between(upper, lower) == 1


def from_top(levels: Iterable[int]) -> list[int]:
    """Return those of some labels that are levels of vertebrae, from the top down."""
    return sorted((level for level in levels if level in ORDER), key=ORDER.index)


def next_level(level: int, step: int) -> int | None:
    """Return the level above (-1) or below (1) another in a usual column; None above C1 and below L6."""
    if level == T13:
        return T12 if step < 0 else L1
    return level + step if C1 <= level + step <= L6 else None


def distance_by_volume(volume_ml: np.ndarray | float) -> np.ndarray:
    """Return the expected distance of neighbours of this volume, in mm."""
    factor, exponent = DISTANCE_BY_VOLUME
    return factor * np.maximum(volume_ml, 0.1) ** exponent


def fit_distances(columns: Sequence[Mapping[int, np.ndarray]]) -> tuple[dict[int, float], float]:
    """Fit common distances between levels and a scale for each column.

    Parameters
    ----------
    columns : sequence of mapping
        For each subject, the centroid (mm) of each level that is whole.

    Returns
    -------
    tuple
        Distance in mm from each level to the next, for the mean scale of the columns; standard deviation of the
        logarithm about the fit.
    """
    found = [
        (subject, level, float(np.log(np.linalg.norm(centres[level + 1] - centre))))
        for subject, centres in enumerate(columns)
        for level, centre in centres.items()
        if level + 1 in centres and level + 1 < SACRUM
    ]
    levels = sorted({level for _, level, _ in found})
    design = np.zeros((len(found) + 1, len(columns) + len(levels)))
    for row, (subject, level, _) in enumerate(found):
        design[row, subject] = design[row, len(columns) + levels.index(level)] = 1
    design[-1, : len(columns)] = 1  # scales are relative: their logarithms sum to 0
    values = np.array([*(value for _, _, value in found), 0.0])
    solution = np.linalg.lstsq(design, values, rcond=None)[0]
    spread = float((design @ solution - values)[:-1].std())
    return dict(zip(levels, np.exp(solution[len(columns) :]).tolist(), strict=True)), spread
