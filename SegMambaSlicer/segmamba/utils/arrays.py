"""Boxes and label values of arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from segmamba.errors import InputError

if TYPE_CHECKING:
    import torch


# Slices along z, y and x.
LabelBox: TypeAlias = tuple[slice, slice, slice]


def label_boxes(labels: np.ndarray) -> dict[int, LabelBox]:
    """Return the bounding box (slices along z, y, x) of every label value that is present.

    Examples
    --------
    >>> labels = np.zeros((4, 5, 6), dtype=np.uint8)
    >>> labels[1:3, 2, 4] = 20
    >>> label_boxes(labels)
    {20: (slice(1, 3, None), slice(2, 3, None), slice(4, 5, None))}
    """
    around = bounding_box(labels)
    if around is None:
        return {}
    # Most of a volume has no label: what has is searched alone, run of equal voxels by run.
    part = labels[around]
    flat = np.ascontiguousarray(part).reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    first, last = np.r_[0, changes + 1], np.r_[changes, flat.size - 1]
    first, last = (ends[flat[first] > 0] for ends in (first, last))
    order = np.argsort(flat[first], kind="stable")
    first, last = first[order], last[order]
    values, groups = np.unique(flat[first], return_index=True)
    low, high = (np.stack(np.unravel_index(ends, part.shape)) for ends in (first, last))
    # A run that goes on in the next line or plane reaches from one end of it to the other.
    for axis, length in ((1, part.shape[1]), (2, part.shape[2])):
        over = (low[:axis] != high[:axis]).any(axis=0)
        low[axis, over], high[axis, over] = 0, length - 1
    start = np.array([side.start for side in around])[:, None]
    low, high = np.minimum.reduceat(low, groups, axis=1) + start, np.maximum.reduceat(high, groups, axis=1) + start + 1
    boxes = zip(values.tolist(), low.T.tolist(), high.T.tolist(), strict=True)
    return {value: (slice(a[0], b[0]), slice(a[1], b[1]), slice(a[2], b[2])) for value, a, b in boxes}


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Return the box (a slice along each axis) around all that is true in a mask; None where nothing is.

    Of numbers, around all above 0: without a mask of them that takes a third of the time.

    Examples
    --------
    >>> mask = np.zeros((4, 5), dtype=bool)
    >>> mask[1, 2:4] = True
    >>> bounding_box(mask)
    (slice(1, 2, None), slice(2, 4, None))
    >>> bounding_box(mask & False) is None
    True
    """
    box: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        part = mask[tuple(box)]
        filled = np.flatnonzero(part.any(axis=others) if mask.dtype == bool else part.max(axis=others) > 0)
        if not filled.size:
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def mean_index(mask: np.ndarray) -> np.ndarray:
    """Return the mean index (z, y, x) of what is true in a mask of that shape, from sums along its axes.

    As the mean of ``np.argwhere``, in a tenth of its time.

    Examples
    --------
    >>> mask = np.zeros((4, 5, 6), dtype=bool)
    >>> mask[1:3, 2, 4] = True
    >>> mean_index(mask).tolist()
    [1.5, 2.0, 4.0]
    """
    # No volume has more planes than uint16 counts.
    plane = mask.view(np.uint8).sum(axis=0, dtype=np.uint16)
    counts = (np.count_nonzero(mask, axis=(1, 2)), plane.sum(axis=1, dtype=int), plane.sum(axis=0, dtype=int))
    total = counts[0].sum()
    return np.array([float(count @ np.arange(len(count)) / total) for count in counts])


def indices_of(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the indices, as ``np.nonzero`` gives them, of what is true, or above 0, in an array that is mostly not."""
    box = bounding_box(values)
    if box is None:
        return np.nonzero(values)
    return tuple(index + part.start for index, part in zip(np.nonzero(values[box]), box, strict=True))


def in_main_memory(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return an array as it is, and a tensor, which may lie on a GPU, as an array."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def at_voxels(values: np.ndarray | torch.Tensor, voxels: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return an array's or a tensor's values (channels, n) at voxels; of a tensor on a GPU only these are copied.

    Parameters
    ----------
    values : ndarray or Tensor
        Shape (channels, z, y, x).
    voxels : tuple of ndarray
        Indices (n,) along z, y and x, as ``np.nonzero`` gives them.
    """
    if isinstance(values, np.ndarray):
        return np.stack([channel[voxels] for channel in values])
    return in_main_memory(tensor_at_voxels(values, voxels))


def tensor_at_voxels(values: np.ndarray | torch.Tensor, voxels: tuple[np.ndarray, ...]) -> torch.Tensor:
    """Return what `at_voxels` returns as a tensor, on a GPU where the values are on one."""
    import torch

    given = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    flat = torch.from_numpy(np.ravel_multi_index(voxels, tuple(given.shape[1:]))).to(given.device)
    return given.flatten(1)[:, flat]


def as_labels(values: np.ndarray, highest: int, name: str) -> np.ndarray:
    """Return the values of a label map as uint8.

    Raises
    ------
    InputError
        They are not whole numbers from 0 to ``highest``; ``name`` is that of the label map in the sentence.
    """
    if values.min() < 0 or values.max() > highest or (values != np.floor(values)).any():
        raise InputError(f"{name} is not a label map with values from 0 to {highest}: convert its numbering first.")
    return values.astype(np.uint8)


def grown_box(box: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return a box with one voxel more on each side, where the array has one."""
    return tuple(slice(max(0, part.start - 1), min(size, part.stop + 1)) for part, size in zip(box, shape, strict=True))
