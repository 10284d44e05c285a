"""Adding up overlapping windows without a map of the whole volume: only the rows that windows still reach are held."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from segmamba.inference.windows import window_starts

# Width of the gaussian as a part of the window: at the border of a window the weight is exp(-8).
SIGMA = 1 / 8

# Gets rows that are done: where along the axis of the march they begin, and logits (classes, z, y, x), which are
# overwritten afterwards.
Sink = Callable[[int, torch.Tensor], None]


def blend_weights(length: int, window: int, starts: Sequence[int]) -> torch.Tensor:
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
        The longest axis, along which the windows march.
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
        """Yield the numbers (z, y, x) of the windows that begin at the same row of the march, row after row."""
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
    """The weighted sum of windows, in a ring of as many rows as a window has along the march.

    Parameters
    ----------
    grid : WindowGrid
    device : device
        Where the sum is kept.
    sink : callable
        See `Sink`.
    """

    def __init__(self, grid: WindowGrid, device: torch.device, sink: Sink) -> None:
        self.grid = grid
        self.sink = sink
        self.rows = grid.window[grid.axis]
        self.total: torch.Tensor | None = None
        self.weights = [
            blend_weights(*axis).to(device) for axis in zip(grid.lengths, grid.window, grid.starts, strict=True)
        ]
        self.device = device

    def add(self, place: Sequence[int], logits: torch.Tensor) -> None:
        """Add a window's logits (classes, z, y, x); they are changed."""
        axis = self.grid.axis
        if self.total is None:
            shape = list(self.grid.lengths)
            shape[axis] = self.rows
            self.total = torch.zeros((len(logits), *shape), dtype=torch.float32, device=self.device)
        z, y, x = (weights[number] for weights, number in zip(self.weights, place, strict=True))
        logits = logits.to(self.device, torch.float32).mul_(z[:, None, None] * y[:, None] * x)
        box = list(self.grid.box(place))
        for rows, part in self._pieces(box[axis].start, self.rows):
            box[axis] = rows
            self.total[(slice(None), *box)] += logits.narrow(axis + 1, part, rows.stop - rows.start)

    def finish(self, first: int, last: int) -> None:
        """Give the rows from ``first`` to ``last`` to the sink, and make room for those a window further on."""
        assert self.total is not None
        for rows, part in self._pieces(first, last - first):
            done = self.total.narrow(self.grid.axis + 1, rows.start, rows.stop - rows.start)
            self.sink(first + part, done)
            done.zero_()

    def _pieces(self, first: int, count: int) -> Iterator[tuple[slice, int]]:
        """Yield where rows lie in the ring, and how many of them came before: one piece, or two around its end."""
        start = first % self.rows
        fit = min(count, self.rows - start)
        yield slice(start, start + fit), 0
        if fit < count:
            yield slice(0, count - fit), fit
