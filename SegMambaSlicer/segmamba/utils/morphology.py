"""Small connected components and holes of label maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from segmamba.utils.arrays import grown_box, label_boxes
from segmamba.utils.parallel import at_once
from segmamba.utils.runs import runs_of

HOLE_MM3 = 500.0
# The structuring element of components that also touch at edges and corners.
CONNECTIVITY_26 = np.ones((3, 3, 3), dtype=bool)

# From so many voxels on, components are looked for by ITK, on all processors.
LARGE = 1 << 22

Component = tuple[tuple[slice, ...], np.ndarray]  # box, mask within it


def connected_components(mask: np.ndarray, corners: bool = False) -> tuple[np.ndarray, int]:
    """Return the number of each voxel's connected component, from 1 in the order of the array, and how many there are.

    Parameters
    ----------
    mask : ndarray of bool
        Shape (z, y, x).
    corners : bool
        Voxels that touch at edges and corners are connected, too, not only those that share a face.
    """
    if mask.size < LARGE:
        numbers, count = ndimage.label(mask, CONNECTIVITY_26 if corners else None)
        return numbers, int(count)
    numbers = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(mask.view(np.uint8)), corners))
    return numbers, int(numbers.max())


def dilated(mask: np.ndarray, steps: int = 1) -> np.ndarray:
    """Return a mask (z, y, x) grown by voxels that share a face with it, so often.

    As `scipy.ndimage.binary_dilation` does, in a tenth of its time.
    """
    for _ in range(steps):
        grown = mask.copy()
        for axis in range(mask.ndim):
            to, of = np.moveaxis(grown, axis, 0), np.moveaxis(mask, axis, 0)
            to[1:] |= of[:-1]
            to[:-1] |= of[1:]
        mask = grown
    return mask


def filled(mask: np.ndarray) -> np.ndarray:
    """Return a mask (z, y, x) with its holes.

    As `scipy.ndimage.binary_fill_holes` does, in a fifth of its time.
    """
    around = runs_of(~mask)
    whole = mask.copy()
    whole.reshape(-1)[around.voxels(~around.at_border(mask.shape))] = True
    return whole


def further_inside(mask: np.ndarray, distance: float) -> np.ndarray:
    """Return which voxels of a mask (z, y, x) lie further from the nearest one outside than a distance in voxels.

    As by `scipy.ndimage.distance_transform_edt` of the mask with a border of background, in a fifth of its time for a
    few voxels.
    """
    reach = int(distance)
    # Squares of distances along one axis after the other; larger ones than are asked for need not be right.
    padded = np.pad(mask, 1)
    squares = np.where(padded, np.uint16((reach + 1) ** 2), np.uint16(0))
    for axis in range(mask.ndim):
        nearest, given = np.moveaxis(squares.copy(), axis, 0), np.moveaxis(squares, axis, 0)
        for step in range(1, min(reach, len(given) - 1) + 1):
            further = given + np.uint16(step**2)
            np.minimum(nearest[step:], further[:-step], out=nearest[step:])
            np.minimum(nearest[:-step], further[step:], out=nearest[:-step])
        squares = np.moveaxis(nearest, 0, axis)
    deep: np.ndarray = np.sqrt(squares[1:-1, 1:-1, 1:-1], dtype=np.float64) > distance
    return deep


def merge_small_components(labels: np.ndarray, smallest: float) -> None:
    """Give connected components of fewer than ``smallest`` voxels to the label that they touch most, in place.

    Components join larger ones, or small ones that have already joined. Those that touch neither become background.
    """
    components, undecided = _small_components(labels, smallest)
    while components:
        left = []
        for place, mask in components:
            grown = grown_box(place, labels.shape)
            own = np.zeros([part.stop - part.start for part in grown], dtype=bool)
            own[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(place, grown, strict=True))] = mask
            around, open_ = labels[grown], undecided[grown]
            counts = np.bincount(around[ndimage.binary_dilation(own, structure=CONNECTIVITY_26) & ~open_], minlength=1)
            counts[0] = 0
            if counts.any():
                around[own], open_[own] = counts.argmax(), False
            else:
                left.append((place, mask))
        if len(left) == len(components):
            labels[undecided] = 0
            return
        components = left


def _small_components(labels: np.ndarray, smallest: float) -> tuple[list[Component], np.ndarray]:
    """Return box and mask of each component under ``smallest`` voxels, smallest first, and one mask of them all."""
    boxes = label_boxes(labels)

    def small(value: int) -> list[tuple[int, int, tuple[slice, ...], np.ndarray]]:
        box = boxes[value]
        runs = runs_of(labels[box] == value, corners=True)
        found = []
        for voxels in runs.each(runs.sizes < smallest):
            place, mask = _mask_of(voxels, [part.stop - part.start for part in box])
            shifted = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(box, place, strict=True))
            found.append((len(voxels), value, shifted, mask))
        return found

    components = [component for found in at_once(small, boxes).values() for component in found]
    components.sort(key=lambda component: component[:2])
    together = np.zeros(labels.shape, dtype=bool)
    for _, _, place, mask in components:
        together[place] |= mask
    return [(place, mask) for _, _, place, mask in components], together


def fill_holes(labels: np.ndarray, largest: float) -> None:
    """Fill background holes of at most ``largest`` voxels that one label encloses, in place."""
    boxes = label_boxes(labels)

    def small_holes(value: int) -> np.ndarray:
        part = labels[boxes[value]]
        around = runs_of(part != value)
        # What reaches the border of the label's box is no hole.
        return around.voxels((around.sizes <= largest) & ~around.at_border(part.shape))

    for value, holes in at_once(small_holes, boxes).items():
        part = labels[boxes[value]]
        inside = np.unravel_index(holes, part.shape)
        part[inside] = np.where(part[inside] == 0, value, part[inside])


def _mask_of(voxels: np.ndarray, shape: Sequence[int]) -> Component:
    """Return the bounding box of voxels, given as flat indices of an array of a shape, and their mask within it."""
    places = np.unravel_index(voxels, tuple(shape))
    box = tuple(slice(int(place.min()), int(place.max()) + 1) for place in places)
    mask = np.zeros([part.stop - part.start for part in box], bool)
    mask[tuple(place - part.start for place, part in zip(places, box, strict=True))] = True
    return box, mask
