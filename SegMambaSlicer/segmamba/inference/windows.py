"""Where the windows of a sliding window lie: apart from `sliding_window`, because it needs no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Lengths of a larger window: the networks halve a map four times.
STEP = 16
# A larger window than a network's own, along an axis and in voxels.
GROWTH, LARGEST = 1.5, 2.0
# A shorter one, along an axis, of the larger voxels that the first stage of a fast run has.
SHRUNK = 0.9
# Windows at a time on a GPU, in voxels: more give no speed.
BATCH_VOXELS = 2 * 128**3
# Answers larger than this go from a GPU to main memory, slab by slab.
LARGEST_ON_GPU = 2**30


@dataclass(frozen=True)
class Windows:
    """How a volume is cut into windows.

    Attributes
    ----------
    patch : tuple of int
        Window in voxels along z, y, x.
    overlap : float
        Part of a window that its neighbour covers at least.
    flip_axes : tuple of int
        Axes (0, 1, 2 for z, y, x) to average flips along; n axes cost 2 to the n as much time.
    pad_values : tuple of float or None
        Value of each channel beyond the volume; None stands for its lowest.
    """

    patch: tuple[int, ...]
    overlap: float = 0.5
    flip_axes: tuple[int, ...] = ()
    pad_values: tuple[float, ...] | None = None


def most_at_a_time(window: Sequence[int]) -> int:
    """Return how many windows fill a GPU."""
    return max(1, BATCH_VOXELS // math.prod(window))


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows along one axis begin: evenly spread, the first at 0, the last ending at ``length``.

    Parameters
    ----------
    length, window : int
        Voxels of the volume and of a window, ``window <= length``.
    overlap : float
        Part of a window that the next one covers at least, 0 <= overlap < 1.

    Examples
    --------
    >>> window_starts(100, 64, 0.25)
    [0, 36]
    >>> window_starts(160, 64, 0.5)
    [0, 32, 64, 96]
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap} and must be at least 0 and below 1")
    span = length - window
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil(span / step)
    return [round(span * index / count) for index in range(count + 1)] if count else [0]


def window_count(size: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """Return how many windows `sliding_window.predict` runs over a volume, flips not counted.

    Examples
    --------
    >>> window_count((160, 100, 64), (64, 64, 64), 0.25)
    6
    """
    axes = zip(size, patch, strict=True)
    return math.prod(len(window_starts(max(length, width), width, overlap)) for length, width in axes)


def fitted_patch(size: Sequence[int], patch: Sequence[int], overlap: float, least: float = 1.0) -> tuple[int, int, int]:
    """Return the window with which a volume takes the fewest voxels of windows.

    It is no shorter than ``patch``, or than ``least`` of it along axes where the volume is shorter than that.

    A volume of a few voxels more than a window would take two of them along that axis, nearly all of it twice. A window
    grows by `GROWTH` along an axis and by `LARGEST` in all at most: it takes memory, and is not what the network was
    trained on. Smaller ones are worse (Docs/adr/0006), but for a tenth less of larger voxels (`SHRUNK`).

    Examples
    --------
    >>> fitted_patch((167, 149, 180), (160, 96, 96), 0.3)
    (176, 96, 112)
    >>> fitted_patch((60, 90, 40), (160, 96, 96), 0.3)
    (160, 96, 96)
    >>> fitted_patch((60, 90, 40), (160, 96, 96), 0.3, SHRUNK)
    (144, 96, 96)
    """

    def cost(window: Sequence[int]) -> tuple[int, int]:
        # Of two that take as many voxels, the one nearer to the patch.
        return window_count(size, window, overlap) * math.prod(window), math.prod(window)

    def widths(length: int, width: int) -> range:
        first = STEP * math.ceil(least * width / STEP) if length < width else width
        return range(first, int(GROWTH * width) + 1, STEP)

    fitting = (
        window
        for window in itertools.product(*map(widths, size, patch))
        if math.prod(window) <= LARGEST * math.prod(patch)
    )
    z, y, x = min(fitting, key=cost)
    return z, y, x
