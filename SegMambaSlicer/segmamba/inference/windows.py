"""Where the windows of a sliding window lie: apart from `sliding_window`, because it needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows along one axis begin: evenly spread, the first at 0, the last ending at ``length``.

    Parameters
    ----------
    length, window : int
        Voxels of the volume and of a window, ``window <= length``.
    overlap : float
        Part of a window that the next one covers at least, 0 <= overlap < 1.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap} and must be at least 0 and below 1")
    span = length - window
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil(span / step)
    return [round(span * index / count) for index in range(count + 1)] if count else [0]


def window_count(size: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """Return how many windows `sliding_window.predict` runs over a volume, mirrorings not counted."""
    axes = zip(size, patch, strict=True)
    return math.prod(len(window_starts(max(length, width), width, overlap)) for length, width in axes)
