"""The vertebral body in the mask of a whole vertebra: where it is, how it lies, its end plates. Our own method.

In the middle of a vertebra the spinal canal lies between the body and the arch, so that in a sagittal section there the
body is a piece by itself: the foremost one. Its end plates say how the body is tilted, and its arch which way is
backwards; with axes that are right the section is cut again, finer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

POSTERIOR, LEFT = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
COARSE_MM, FINE_MM = 2.0, 1.0
FINE_PASSES = 2
# Around the body, in the fine passes.
MARGIN_MM = 8.0
# Half the thickness of the sagittal section: the canal is wider at every level.
SECTION_MM = 4.0
# A piece of the section smaller than this part of the largest one is no body.
SMALLEST_PIECE = 0.2
# End plates are fitted in this part of depth and width: the rims are rounded, and lipped where they are worn.
PLATE = 0.7
# The arch is what lies further than this outside of a cylinder around the body; it says which way is backwards where it
# has at least this part of the vertebra.
BEYOND_MM, ARCH_PART = 3.0, 0.1
# Height, depth and width of a body, mm: from a crushed vertebra or a child's neck to the largest of L5.
SMALLEST_MM, LARGEST_MM = (4.0, 7.0, 8.0), (50.0, 55.0, 80.0)


@dataclass(frozen=True, eq=False)
class Mask:
    """Voxels of one vertebra.

    Attributes
    ----------
    array : ndarray of bool
        Shape (z, y, x): the box around them is enough.
    to_lps : ndarray
        4 x 4 matrix from the array's index (x, y, z, 1) to LPS millimetres.
    """

    array: np.ndarray
    to_lps: np.ndarray


@dataclass(frozen=True, eq=False)
class Body:
    """A vertebral body.

    Attributes
    ----------
    centre : ndarray (3,)
        LPS mm.
    axes : ndarray (3, 3)
        Unit vectors (LPS) up, backwards and to the left, one a row; up is halfway between the end plates' normals.
    size : ndarray (3,)
        Height, depth and width in mm: the extent along these axes.
    upper, lower : ndarray (depth, width)
        Height of the end plates above ``centre``, mm; NaN where there is no bone. Their points are those of ``places``.
    places : tuple of ndarray
        Where the rows and columns of the end plates are: mm backwards of the centre, mm to the left of it.
    inside : ndarray of bool (height, depth, width)
        The body on a grid of 1 mm along its axes, ``low`` (3,) mm from the centre.
    low : ndarray (3,)
    """

    centre: np.ndarray
    axes: np.ndarray
    size: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    places: tuple[np.ndarray, np.ndarray]
    inside: np.ndarray
    low: np.ndarray

    def points(self, chosen: np.ndarray) -> np.ndarray:
        """Return LPS positions (n, 3) of the samples of ``inside`` that are chosen by a mask of its shape."""
        places: np.ndarray = self.centre + (self.low + FINE_MM * np.argwhere(chosen)) @ self.axes
        return places


@dataclass(frozen=True, eq=False)
class _Grid:
    """Samples of a mask along axes (rows up, backwards, left): 0 to 1, ``step`` mm apart, the first at ``low``."""

    soft: np.ndarray
    centre: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    step: float

    def places(self, axis: int) -> np.ndarray:
        """Return where the samples along an axis are, mm from the centre."""
        return self.low[axis] + self.step * np.arange(self.soft.shape[axis])


def find_body(mask: Mask, up: np.ndarray) -> Body | None:
    """Find the body of a vertebra, or of a mask that is a body without arch.

    Parameters
    ----------
    mask : Mask
        Of one whole vertebra, C3 to L6.
    up : ndarray (3,)
        About the direction of the column, LPS.

    Returns
    -------
    Body or None
        None where the mask has no part that can be one: nothing separates it from the arch, or it is too small or too
        large.
    """
    points = np.argwhere(mask.array)[:, ::-1] @ mask.to_lps[:3, :3].T + mask.to_lps[:3, 3]
    if not len(points):
        return None
    centre, axes = points.mean(axis=0), axes_along(up, POSTERIOR)
    local = (points - centre) @ axes.T
    grid = _sample(mask, centre, axes, local.min(axis=0) - COARSE_MM, local.max(axis=0) + COARSE_MM, COARSE_MM)
    box = _box(grid)
    if box is None:
        return None
    for _ in range(FINE_PASSES):
        centre, up = _aligned(grid, box)
        half = (box[1] - box[0]) / 2
        axes = axes_along(up, _backwards(points - centre, up, half[1:].max() + BEYOND_MM))
        grid = _sample(mask, centre, axes, -half - MARGIN_MM, half + MARGIN_MM, FINE_MM)
        box = _box(grid)
        if box is None:
            return None
    return _body(grid, box)


def axes_along(up: np.ndarray, backwards: np.ndarray) -> np.ndarray:
    """Return unit vectors up, backwards and to the left, one a row; backwards gives way to up."""
    first = up / np.linalg.norm(up)
    second = backwards - (backwards @ first) * first
    if np.linalg.norm(second) < 1e-6:
        # A column that runs from front to back: the image's axes are wrong, or its masks are scraps.
        second = np.cross(first, LEFT)
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(second, first)])


def _sample(mask: Mask, centre: np.ndarray, axes: np.ndarray, low: np.ndarray, high: np.ndarray, step: float) -> _Grid:
    shape = tuple((np.ceil((high - low) / step).astype(int) + 1).tolist())
    to_index = np.linalg.inv(mask.to_lps)
    # Arrays have their axes the other way round: z, y, x.
    matrix = (to_index[:3, :3] @ axes.T)[::-1] * step
    first = (to_index @ [*(centre + low @ axes), 1.0])[2::-1]
    soft = ndimage.affine_transform(
        mask.array.view(np.uint8), matrix, first, shape, np.float32, order=1, mode="grid-constant"
    )
    return _Grid(soft, centre, axes, low, step)


def _box(grid: _Grid) -> np.ndarray | None:
    """Return the lowest and the highest corner of the body: mm from the centre, shape (2, 3)."""
    lateral = np.abs(grid.places(2)) <= SECTION_MM
    pieces, count = ndimage.label(grid.soft[:, :, lateral].mean(axis=2) >= 0.5)
    if count == 0:
        return None
    sizes = np.bincount(pieces.ravel())[1:]
    large = np.flatnonzero(sizes >= SMALLEST_PIECE * sizes.max()) + 1
    foremost = min(large, key=lambda piece: np.nonzero(pieces == piece)[1].mean())
    piece = pieces == foremost
    # In the middle half, walls and end plates are not rounded yet.
    front, back = _extent(piece, 1, _middle(np.flatnonzero(piece.any(axis=1))))
    bottom, top = _extent(piece, 0, _middle(np.arange(int(front), int(back) + 1)))
    rows, columns = _middle(np.arange(int(bottom), int(top) + 1)), _middle(np.arange(int(front), int(back) + 1))
    # A wall is where the line from the middle to the side leaves the bone for the first time.
    across = grid.soft[np.ix_(rows, columns)].reshape(len(rows) * len(columns), -1) >= 0.5
    start = int(np.abs(grid.places(2)).argmin())
    right = start - np.median(_run(across[:, start::-1]))
    left = start + np.median(_run(across[:, start:]))
    low = grid.low + grid.step * (np.array([bottom, front, right]) - 0.5)
    high = grid.low + grid.step * (np.array([top, back, left]) + 0.5)
    size = high - low
    return np.stack([low, high]) if (size >= SMALLEST_MM).all() and (size <= LARGEST_MM).all() else None


def _middle(indices: np.ndarray) -> np.ndarray:
    """Return the middle half of indices, at least one."""
    quarter = len(indices) // 4
    return indices[quarter : len(indices) - quarter]


def _extent(piece: np.ndarray, axis: int, lines: np.ndarray) -> tuple[float, float]:
    """Return the medians of the first and the last index of a piece along an axis, on some of the lines along it."""
    along = piece[lines] if axis == 1 else piece[:, lines].T
    along = along[along.any(axis=1)]
    first, last = along.argmax(axis=1), along.shape[1] - 1 - along[:, ::-1].argmax(axis=1)
    return float(np.median(first)), float(np.median(last))


def _run(lines: np.ndarray) -> np.ndarray:
    """Return how many samples after the first one are true before a false one, in each line that begins with true."""
    lines = lines[lines[:, 0]]
    ends = np.where(lines.all(axis=1), lines.shape[1], (~lines).argmax(axis=1))
    return ends - 1 if len(ends) else np.zeros(1)


def _backwards(points: np.ndarray, up: np.ndarray, radius: float) -> np.ndarray:
    """Return the LPS direction from the body to the arch; the patient's where there is hardly any arch.

    ``points`` (n, 3) are those of the vertebra, mm from the centre. Arch is what lies outside of a cylinder around
    the body, which looks the same from all sides: no direction is preferred.
    """
    arch = points[np.linalg.norm(points - np.outer(points @ up, up), axis=1) > radius]
    direction: np.ndarray = arch.mean(axis=0) if len(arch) >= ARCH_PART * len(points) else POSTERIOR
    return direction


def _columns(grid: _Grid, box: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the samples in the depth and width of a box, at all heights, and where their rows and columns are."""
    rows, columns = (
        np.flatnonzero((grid.places(axis) >= box[0, axis]) & (grid.places(axis) <= box[1, axis])) for axis in (1, 2)
    )
    return grid.soft[:, rows][:, :, columns], grid.places(1)[rows], grid.places(2)[columns]


def _plates(soft: np.ndarray, grid: _Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the heights of the lower and of the upper end plate (depth, width) in such samples."""
    lower = grid.low[0] + grid.step * _first_crossing(soft)
    upper = grid.low[0] + grid.step * (len(soft) - 1 - _first_crossing(soft[::-1]))
    return lower, upper


def _first_crossing(soft: np.ndarray) -> np.ndarray:
    """Return where values along the first axis rise through 0.5 for the first time, as an index; NaN where never."""
    inside = soft >= 0.5
    first = np.maximum(inside.argmax(axis=0), 1)
    after, before = (np.take_along_axis(soft, index[None], axis=0)[0] for index in (first, first - 1))
    rise = np.maximum(after - before, 1e-6)
    return np.where(inside.any(axis=0), first - np.clip((after - 0.5) / rise, 0, 1), np.nan)


def _aligned(grid: _Grid, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the body's centre and its direction up, halfway between the normals of its end plates, in LPS."""
    soft, depth, width = _columns(grid, box)
    middle, half = box.mean(axis=0), (box[1] - box[0]) / 2 * PLATE
    inner = (np.abs(depth - middle[1]) <= half[1])[:, None] & (np.abs(width - middle[2]) <= half[2])
    normals, heights = [], []
    for plate in _plates(soft, grid):
        use = inner & np.isfinite(plate)
        d, w = np.nonzero(use)
        design = np.stack([np.ones(len(d)), depth[d] - middle[1], width[w] - middle[2]], axis=1)
        height, by_depth, by_width = np.linalg.lstsq(design, plate[use], rcond=None)[0]
        normal = np.array([1.0, -by_depth, -by_width])
        normals.append(normal / np.linalg.norm(normal))
        heights.append(height)
    middle[0] = np.mean(heights)
    up = np.sum(normals, axis=0) @ grid.axes
    return grid.centre + middle @ grid.axes, up / np.linalg.norm(up)


def _body(grid: _Grid, box: np.ndarray) -> Body:
    soft, depth, width = _columns(grid, box)
    lower, upper = _plates(soft, grid)
    middle = box.mean(axis=0)
    return Body(
        centre=grid.centre + middle @ grid.axes,
        axes=grid.axes,
        size=box[1] - box[0],
        upper=upper - middle[0],
        lower=lower - middle[0],
        places=(depth - middle[1], width - middle[2]),
        inside=soft >= 0.5,
        low=np.array([grid.low[0], depth[0], width[0]]) - middle,
    )
