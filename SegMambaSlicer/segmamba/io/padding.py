"""What fills the image beyond the scanner's circle, read as if it were tissue or metal: it becomes air."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

AIR = -1000
# No scanner's Hounsfield units reach this. What is here was written as a negative number and read as a positive one.
BRIGHTEST = 31000
# A constant is padding if it is this part of all voxels at least, and if nothing is between half of it and it.
SMALLEST_PART = 0.001
TOLD = "The volume is padded with {}, which was taken for air."


def padding_to_air(
    array: np.ndarray, modality: str | None, declared: Sequence[float] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return an array with its padding as dark as air, and what to tell the user.

    Parameters
    ----------
    array : ndarray
        Shape (z, y, x). Changed in place where there is padding.
    modality : str or None
        A CT's air is -1000, that of others is as dark as their darkest voxel.
    declared : sequence of float
        Values that its header declares to be padding. One that tissue can have counts where it touches the border.

    Returns
    -------
    array : ndarray
    notes : tuple of str
    """
    brightest = float(array.max())
    found = [value for value in declared if not (modality == "CT" and value <= AIR)]
    if brightest > BRIGHTEST and brightest not in found:
        found.append(brightest)
    if not found:
        return array, ()
    padded = np.zeros(array.shape, bool)
    values = []
    for value in found:
        mask = _mask(array, value, value in declared)
        if mask is not None:
            padded |= mask
            values.append(value)
    if not values or padded.all():
        return array, ()
    darkest = array[~padded].min()
    if modality == "CT" and array.dtype.kind in "if":
        darkest = min(darkest, AIR)
    array[padded] = darkest
    return array, (TOLD.format(" and ".join(f"{value:g}" for value in values)),)


def declared_padding(stored: float, bits: tuple[int, int], rescale: tuple[float, float]) -> tuple[float, ...]:
    """Return what a stored Pixel Padding Value may have been read as.

    Parameters
    ----------
    stored : float
        As the header has it, perhaps with the sign of another pixel representation.
    bits : tuple of int
        Allocated and stored.
    rescale : tuple of float
        Slope and intercept.
    """
    whole = 1 << bits[0]
    number = round(stored)
    read = dict.fromkeys((number, number % whole, number % whole - whole, number % (1 << bits[1])))
    slope, intercept = rescale
    return tuple(dict.fromkeys(slope * value + intercept for value in read))


def _mask(array: np.ndarray, value: float, declared: bool) -> np.ndarray | None:
    """Return where a value is padding, or None."""
    mask = array == value
    count = np.count_nonzero(mask)
    if count == 0:
        return None
    if abs(value) > BRIGHTEST:
        alone = declared or not np.any((array > value / 2) & ~mask)
        return mask if alone and (declared or count >= SMALLEST_PART * array.size) else None
    # Tissue may have this value, too: padding is what reaches the border of the slices.
    components, _ = ndimage.label(mask)
    edges = (components[:, 0], components[:, -1], components[:, :, 0], components[:, :, -1])
    numbers = np.unique(np.concatenate([edge.ravel() for edge in edges]))
    mask = np.isin(components, numbers[numbers > 0])
    return mask if np.count_nonzero(mask) >= SMALLEST_PART * array.size else None
