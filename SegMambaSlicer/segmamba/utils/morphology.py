"""Small connected components and holes of label maps."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from segmamba.utils.arrays import grown_box, label_boxes

HOLE_MM3 = 500.0
TOUCHING = np.ones((3, 3, 3), dtype=bool)


def merge_islands(labels: np.ndarray, smallest: float) -> None:
    """Give pieces of fewer than ``smallest`` voxels to the label that they touch most, in place.

    Pieces join what is no island, or no longer one. Those that touch no such thing go to the background.
    """
    islands, undecided = _islands(labels, smallest)
    while islands:
        left = []
        for place, island in islands:
            grown = grown_box(place, labels.shape)
            own = np.zeros([part.stop - part.start for part in grown], dtype=bool)
            own[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(place, grown, strict=True))] = island
            around, open_ = labels[grown], undecided[grown]
            counts = np.bincount(around[ndimage.binary_dilation(own, structure=TOUCHING) & ~open_], minlength=1)
            counts[0] = 0
            if counts.any():
                around[own], open_[own] = counts.argmax(), False
            else:
                left.append((place, island))
        if len(left) == len(islands):
            labels[undecided] = 0
            return
        islands = left


def _islands(labels: np.ndarray, smallest: float) -> tuple[list[tuple[tuple[slice, ...], np.ndarray]], np.ndarray]:
    """Return box and mask of each piece under ``smallest`` voxels, small ones first, and one mask of them all."""
    islands = []
    together = np.zeros(labels.shape, dtype=bool)
    for value, box in label_boxes(labels).items():
        pieces, _ = ndimage.label(labels[box] == value, structure=TOUCHING)
        sizes = np.bincount(pieces.ravel())
        for number, inner in enumerate(ndimage.find_objects(pieces), start=1):
            if sizes[number] < smallest:
                place = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(box, inner, strict=True))
                mask = pieces[inner] == number
                together[place] |= mask
                islands.append((int(sizes[number]), value, place, mask))
    islands.sort(key=lambda island: island[:2])
    return [(place, mask) for _, _, place, mask in islands], together


def fill_holes(labels: np.ndarray, largest: float) -> None:
    """Fill background holes of at most ``largest`` voxels that one label encloses, in place."""
    for value, box in label_boxes(labels).items():
        part = labels[box]
        mask = part == value
        holes, count = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
        if count:
            small = np.bincount(holes.ravel()) <= largest
            small[0] = False
            part[small[holes] & (part == 0)] = value
