"""Adding up overlapping windows without a map of the whole volume: only the slabs that windows still reach are held.

The windows sweep along the volume's longest axis. A slab is some layers of voxels across it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from segmamba.inference.windows import window_starts

# Width of the gaussian as a part of the window: at the border of a window the weight is exp(-8).
SIGMA = 1 / 8

# Called with a slab that is done: where along the sweep axis it begins, and its logits (classes, z, y, x), which are
# overwritten afterwards.
OnSlabDone = Callable[[int, torch.Tensor], None]


def importance_weights(length: int, window: int, starts: Sequence[int]) -> torch.Tensor:
    """Return the weight of each window's voxels along one axis, shape (windows, window).

    At each voxel of the axis the weights of the windows that cover it sum to one. Windows lie on a grid, so the
    weight in 3-D is the product of the three axes' weights, and no map of weights is needed.
    """
    position = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    gaussian = torch.exp(-0.5 * (position / (window * SIGMA)) ** 2)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + window] += gaussian
    return torch.stack([gaussian / total[start : start + window] for start in starts]).float()


@dataclass(frozen=True, eq=False)
class WindowGrid:
    """Windows over a volume.

    Attributes
    ----------
    lengths, window : tuple of int
        Voxels of the volume and of a window along z, y, x.
    starts : list of list of int
        Where the windows begin along each axis.
    axis : int
        The sweep axis: the longest one.
    """

    lengths: tuple[int, ...]
    window: tuple[int, ...]
    starts: list[list[int]]
    axis: int

    @classmethod
    def over(cls, lengths: Sequence[int], window: Sequence[int], overlap: float) -> WindowGrid:
        """Lay windows over a volume that is at least as large as one."""
        starts = [window_starts(*axis, overlap) for axis in zip(lengths, window, strict=True)]
        longest = max(range(3), key=lambda axis: lengths[axis])
        return cls(tuple(lengths), tuple(window), starts, longest)

    def groups(self) -> Iterator[list[tuple[int, int, int]]]:
        """Yield the numbers (z, y, x) of the windows that begin at the same place of the sweep, place after place."""
        for number in range(len(self.starts[self.axis])):
            ranges = [range(len(starts)) for starts in self.starts]
            ranges[self.axis] = range(number, number + 1)
            yield list(itertools.product(ranges[0], ranges[1], ranges[2]))

    def box(self, place: Sequence[int]) -> tuple[slice, slice, slice]:
        """Return the voxels of a window."""
        corner = [starts[number] for starts, number in zip(self.starts, place, strict=True)]
        z, y, x = (slice(first, first + width) for first, width in zip(corner, self.window, strict=True))
        return z, y, x


class Blender:
    """The weighted sum of windows, in a ring of as many layers as a window has along the sweep axis.

    Parameters
    ----------
    grid : WindowGrid
    device : device
        Where the sum is kept.
    on_slab_done : callable, optional
        See `OnSlabDone`. Without it all layers are kept: ``total`` is the sum of all windows at the end.
    """

    def __init__(self, grid: WindowGrid, device: torch.device, on_slab_done: OnSlabDone | None = None) -> None:
        self.grid = grid
        self.on_slab_done = on_slab_done
        self.layers = (grid.window if on_slab_done is not None else grid.lengths)[grid.axis]
        self.total: torch.Tensor | None = None
        self.weights = [
            importance_weights(*axis).to(device) for axis in zip(grid.lengths, grid.window, grid.starts, strict=True)
        ]
        self.device = device

    def add(self, place: Sequence[int], logits: torch.Tensor) -> None:
        """Add a window's logits (classes, z, y, x), float32; they are changed, or kept."""
        axis = self.grid.axis
        if self.on_slab_done is None and self.grid.window == self.grid.lengths:
            self.total = logits.to(self.device, torch.float32)
            return
        if self.total is None:
            shape = list(self.grid.lengths)
            shape[axis] = self.layers
            self.total = torch.zeros((len(logits), *shape), dtype=torch.float32, device=self.device)
        z, y, x = (weights[number] for weights, number in zip(self.weights, place, strict=True))
        logits = logits.to(self.device, torch.float32).mul_(z[:, None, None] * y[:, None] * x)
        box = list(self.grid.box(place))
        for layers, part in self._in_ring(box[axis].start, self.grid.window[axis]):
            box[axis] = layers
            self.total[(slice(None), *box)] += logits.narrow(axis + 1, part, layers.stop - layers.start)

    def finish(self, first: int, last: int) -> None:
        """Hand over the slab from ``first`` to ``last``, and make room for the one a window further on."""
        if self.on_slab_done is None:
            return
        assert self.total is not None
        for layers, part in self._in_ring(first, last - first):
            done = self.total.narrow(self.grid.axis + 1, layers.start, layers.stop - layers.start)
            self.on_slab_done(first + part, done)
            done.zero_()

    def _in_ring(self, first: int, count: int) -> Iterator[tuple[slice, int]]:
        """Yield where layers lie in the ring, and how many of them came before: in one part, or two around its end."""
        start = first % self.layers
        fit = min(count, self.layers - start)
        yield slice(start, start + fit), 0
        if fit < count:
            yield slice(0, count - fit), fit
