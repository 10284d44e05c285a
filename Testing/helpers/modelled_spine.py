"""Label maps of pieces of spine as the shape model's means have them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from segmamba.spine.frames import Frame
from segmamba.spine.levels import DISTANCES_MM
from segmamba.spine.shape_model import GRID, ShapeModel, apply_pose, interpolate, region_of

SPACING = 2.0
SHAPE = (90, 60, 60)
# The highest vertebra's centre, (z, y, x) in mm.
HIGHEST = (142.0, 62.0, 60.0)


def modelled(model: ShapeModel, levels: Sequence[int]) -> np.ndarray:
    """Return a label map (z, y, x) of neighbouring levels, the highest first, a little turned."""
    labels = np.zeros(SHAPE, np.uint8)
    places = np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING
    centre = np.array(HIGHEST)
    for level in levels:
        frame = apply_pose(Frame(centre, np.eye(3), 1.0), [0, 0, 0, 0, 0, 0.06, 0])
        mean, half = model.means[level - 1], model.half_extents[region_of(level)]
        labels[(distance_at(mean, half, frame.to_local(places)) < 0) & (labels == 0)] = level
        centre = centre - [DISTANCES_MM[level - 1], 0, 0]
    return labels


def distance_at(shape: np.ndarray, half: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Return the model's signed distance at local points; beyond its grid, that at the border and the way there."""
    inner = np.clip(local, -half, half)
    places = (inner + half) / (2 * half) * (np.array(GRID) - 1)
    return interpolate(shape, places) + np.linalg.norm(local - inner, axis=-1)


def sure(labels: np.ndarray) -> np.ndarray:
    """Return the probability of a network that sees what is there."""
    return (labels > 0).astype(np.float32)


def hollow(labels: np.ndarray, level: int, radius: int = 2) -> np.ndarray:
    """Return where a ball is missing deep in a vertebra."""
    depth = ndimage.distance_transform_edt(labels == level)
    centre = np.unravel_index(depth.argmax(), depth.shape)
    grid = np.moveaxis(np.indices(labels.shape), 0, -1)
    return (np.linalg.norm(grid - np.array(centre), axis=-1) <= radius) & (labels == level)


def notch(labels: np.ndarray, level: int) -> np.ndarray:
    """Return where a slot through the middle of a vertebra's body is missing, open to the front."""
    z, y, x = np.nonzero(labels == level)
    missing = np.zeros(labels.shape, bool)
    middle = int(np.median(z))
    missing[middle - 1 : middle + 2, y.min() : y.min() + 12, 28:33] = True
    return missing & (labels == level)
