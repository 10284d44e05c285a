"""Local coordinates of a vertebra: position, orientation along the column, and scale of the column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from segmamba.spine.levels import DISTANCES_MM, ORDER, T12, T13, distance_by_volume, from_top
from segmamba.utils.arrays import label_boxes, mean_index


@dataclass(frozen=True)
class Frame:
    """Coordinates of a vertebra.

    Attributes
    ----------
    centre : ndarray
        Shape (3,): (z, y, x) in mm.
    axes : ndarray
        Shape (3, 3): unit vectors (z, y, x) up the column, to posterior and to the left, one a row.
    scale : float
        Of the column, 1 for a mean adult: local lengths are divided by it.
    """

    centre: np.ndarray
    axes: np.ndarray
    scale: float

    def to_world(self, local: np.ndarray) -> np.ndarray:
        """Return points (..., 3) in mm from local ones."""
        return local @ self.axes * self.scale + self.centre

    def to_local(self, world: np.ndarray) -> np.ndarray:
        """Return local points (..., 3) from those in mm."""
        return (world - self.centre) @ self.axes.T / self.scale


def column_frames(labels: np.ndarray, spacing_mm: float) -> dict[int, Frame]:
    """Return the frame of every vertebra (not the sacrum) of a label map, the highest level first.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x): levels.
    spacing_mm : float
        Of its isotropic grid.
    """
    centres, volumes = {}, {}
    for level, box in label_boxes(labels).items():
        if level in ORDER:
            mask = labels[box] == level
            centres[level] = (mean_index(mask) + [part.start for part in box]) * spacing_mm
            volumes[level] = np.count_nonzero(mask) * spacing_mm**3 / 1000
    levels = from_top(centres)
    scale = column_scale(centres, volumes)
    frames = {}
    for index, level in enumerate(levels):
        above, below = levels[max(0, index - 1)], levels[min(len(levels) - 1, index + 1)]
        frames[level] = Frame(centres[level], _axes(centres[above] - centres[below]), scale)
    return frames


def column_scale(centres: Mapping[int, np.ndarray], volumes: Mapping[int, float]) -> float:
    """Return the scale of a column, 1 for a mean adult, from distances of neighbours, or from volumes."""
    ratios = [
        np.linalg.norm(centres[level] - centres[level + 1]) / DISTANCES_MM[level - 1]
        for level in centres
        if level + 1 in centres
    ] or [distance_by_volume(volumes[level]) / _distance_below(level) for level in centres]
    return float(np.clip(np.median(ratios), 0.5, 1.6)) if ratios else 1.0


def _distance_below(level: int) -> float:
    """Return the usual distance from a level to the next one, in mm; T13 has that of T12, L6 that of L5."""
    return float(DISTANCES_MM[min(T12 if level == T13 else level, len(DISTANCES_MM)) - 1])


def _axes(up: np.ndarray) -> np.ndarray:
    if not up.any():
        return np.eye(3)
    first = up / np.linalg.norm(up)
    if abs(first[1]) > 0.95:  # a horizontal column: posterior is not independent of it
        return np.eye(3)
    second = np.array([0.0, 1.0, 0.0]) - first[1] * first
    second /= np.linalg.norm(second)
    third = np.array([0.0, 0.0, 1.0]) - first[2] * first
    third -= (third @ second) * second
    return np.stack([first, second, third / np.linalg.norm(third)])
