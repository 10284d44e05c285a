"""Connected components of a mask from its runs: the lines of voxels along x that are in it.

A mask of millions of voxels has some ten thousand runs. What is asked of components that are not needed as an array,
such as their sizes, is a question about runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Steps (z, y) to the lines beside one, of which each pair is seen once: they share a face, or else an edge.
FACES, EDGES = ((0, 1), (1, 0)), ((1, 1), (1, -1))


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of a mask, in the order of the array, and the connected component of each.

    Attributes
    ----------
    starts, stops : ndarray of int (n,)
        The voxels from ``starts`` to before ``stops``, as indices of the flat array.
    component : ndarray of int (n,)
        From 0 in the order of the array.
    sizes : ndarray of int
        Voxels of each component.
    """

    starts: np.ndarray
    stops: np.ndarray
    component: np.ndarray
    sizes: np.ndarray

    def voxels(self, chosen: np.ndarray) -> np.ndarray:
        """Return the flat indices of all voxels of some components; ``chosen`` is bool, one for each component."""
        own = chosen[self.component]
        return _counted(self.starts[own], self.stops[own] - self.starts[own])

    def each(self, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """Give the flat indices of the voxels of each of some components, in their order."""
        own = np.flatnonzero(chosen[self.component])
        own = own[np.argsort(self.component[own], kind="stable")]
        ends = np.flatnonzero(np.diff(self.component[own])) + 1
        for runs in np.split(own, ends) if len(own) else []:
            yield _counted(self.starts[runs], self.stops[runs] - self.starts[runs])

    def at_border(self, shape: Sequence[int]) -> np.ndarray:
        """Return which components reach the border of the mask, whose shape (z, y, x) this is."""
        z, y, x = np.unravel_index(self.starts, tuple(shape))
        ends = x + self.stops - self.starts
        outer = (z == 0) | (z == shape[0] - 1) | (y == 0) | (y == shape[1] - 1) | (x == 0) | (ends == shape[2])
        found = np.zeros(len(self.sizes), bool)
        found[self.component[outer]] = True
        return found

    def numbers(self, voxels: np.ndarray) -> np.ndarray:
        """Return the component of each of some voxels of the mask, given as flat indices."""
        found: np.ndarray = self.component[np.searchsorted(self.starts, voxels, side="right") - 1]
        return found


def runs_of(mask: np.ndarray, corners: bool = False) -> Runs:
    """Return the runs of a mask with their connected components.

    Parameters
    ----------
    mask : ndarray of bool
        Shape (z, y, x).
    corners : bool
        Voxels that touch at edges and corners are connected, too, not only those that share a face.
    """
    _, rows, length = (size + 1 for size in mask.shape)
    # A voxel of background after each line and a line of it after each plane: nothing reaches over an end.
    padded = np.zeros((mask.shape[0], rows, length), bool)
    padded[:, :-1, :-1] = mask
    flat = padded.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat.size and flat[0]:
        edges = np.concatenate([[0], edges])
    starts, stops = edges[::2], edges[1::2]
    pairs = [np.empty((2, 0), int)]
    reach = int(corners)
    for z, y in FACES + EDGES * corners:
        # The runs of that line which begin before this one ends and end after it begins.
        beside = (z * rows + y) * length
        low = np.searchsorted(stops, starts + (beside - reach), side="right")
        high = np.searchsorted(starts, stops + (beside + reach), side="left")
        counts = np.maximum(high - low, 0)
        pairs.append(np.stack([np.repeat(np.arange(len(starts)), counts), _counted(low, counts)]))
    first, second = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(starts), len(starts)))
    count, numbers = connected_components(graph, directed=False)
    _, begin = np.unique(numbers, return_index=True)
    order = np.empty(count, int)
    order[np.argsort(begin)] = np.arange(count)
    component = order[numbers]
    lengths = stops - starts
    # In the array itself, without the background that was added.
    line = starts // length
    starts = starts - line - line // rows * (length - 1)
    return Runs(starts, starts + lengths, component, np.bincount(component, lengths, minlength=count).astype(int))


def _counted(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``counts`` numbers from each of ``starts`` on."""
    before = np.cumsum(counts) - counts
    numbers: np.ndarray = np.arange(counts.sum()) + np.repeat(starts - before, counts)
    return numbers
