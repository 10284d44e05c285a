"""Find the vertebral body in the mask of a whole vertebra: position, axes and end plates. Our own method.

In the middle of a vertebra the spinal canal separates the body from the arch, so that in a sagittal section there the
body is a component of its own, the most anterior one. The tilt follows from its end plates, the posterior direction
from the arch; with these axes the section is resampled on a finer grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from segmamba.utils.morphology import filled

POSTERIOR, LEFT = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
COARSE_MM, FINE_MM = 2.0, 1.0
FINE_PASSES = 2
# Margin around the body in the fine passes.
MARGIN_MM = 8.0
# End plates are kept this far beyond the median of the walls.
BEYOND_WALL_MM = 6.0
# Lines to the walls begin at this part of the way there, and this far from the end plates: rims are rounded, mm.
WALL_FROM, RIM_MM = 0.55, 2.0
# A wall's points have noise, mm, that so many of them share; its slope is a normal value with this standard deviation.
WALL_NOISE_MM, WALL_ALIKE, WALL_SLOPE_SD = 0.5, 8, 0.15
FEWEST_WALL_LINES, WALL_PASSES = 5, 3
# Half the thickness of the sagittal section: the canal is wider at every level.
SECTION_MM = 4.0
# A component of the section below this part of the largest one cannot be the body.
SMALLEST_COMPONENT = 0.2
# End plates are fitted in this part of depth and width: the rims are rounded, or have osteophytes.
PLATE = 0.7
# The arch lies further than this outside a cylinder around the body; it gives the posterior direction if it has at
# least this part of the vertebra's voxels.
BEYOND_MM, ARCH_PART = 3.0, 0.1
# Limits of height, depth and width of a body, mm: from a crushed vertebra or a child's neck to the largest L5.
SMALLEST_MM, LARGEST_MM = (4.0, 7.0, 8.0), (50.0, 55.0, 80.0)


@dataclass(frozen=True, eq=False)
class Mask:
    """Voxels of one vertebra.

    Attributes
    ----------
    array : ndarray of bool
        Shape (z, y, x): at least their bounding box.
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
        Unit vectors (LPS) superior, posterior and left, one a row; superior is the mean of the end plates' normals.
    size : ndarray (3,)
        Height, depth and width in mm, the extents along these axes.
    upper, lower : ndarray (depth, width)
        Height of the end plates above ``centre`` at the points of ``plate_grid``, mm; NaN where there is no bone.
    walls : ndarray (2, 2)
        Front and back wall in the middle of the width: mm posterior of the centre, and how much more for each mm up.
    plate_grid : tuple of ndarray
        Coordinates of the rows and of the columns of the end plates: mm posterior of the centre, mm left of it. They
        reach a little beyond the walls, which lean.
    inside : ndarray of bool (height, depth, width)
        The body on a grid of 1 mm along its axes.
    low : ndarray (3,)
        First sample of that grid, mm from the centre along the axes.
    """

    centre: np.ndarray
    axes: np.ndarray
    size: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    walls: np.ndarray
    plate_grid: tuple[np.ndarray, np.ndarray]
    inside: np.ndarray
    low: np.ndarray

    def points(self, chosen: np.ndarray) -> np.ndarray:
        """Return LPS positions (n, 3) in mm of the samples of ``inside`` where a mask of its shape is true."""
        points: np.ndarray = self.centre + (self.low + FINE_MM * np.argwhere(chosen)) @ self.axes
        return points


@dataclass(frozen=True, eq=False)
class _Grid:
    """Samples of a mask, 0 to 1, along axes (superior, posterior, left), ``step`` mm apart, the first at ``low``."""

    soft: np.ndarray
    centre: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    step: float

    def coordinates(self, axis: int) -> np.ndarray:
        """Return the coordinates of the samples along an axis, mm from the centre."""
        return self.low[axis] + self.step * np.arange(self.soft.shape[axis])


def find_body(mask: Mask, up: np.ndarray) -> Body | None:
    """Find the body of a vertebra; the mask may be a body without arch.

    Parameters
    ----------
    mask : Mask
        Of one whole vertebra, C3 to L6.
    up : ndarray (3,)
        Approximate direction of the column, LPS.

    Returns
    -------
    Body or None
        None if the body is not separate from the arch, or too small or too large.
    """
    # A cavity is none of the body's form.
    mask = Mask(filled(mask.array), mask.to_lps)
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
        axes = axes_along(up, _posterior_direction(points - centre, up, half[1:].max() + BEYOND_MM))
        grid = _sample(mask, centre, axes, -half - MARGIN_MM, half + MARGIN_MM, FINE_MM)
        box = _box(grid)
        if box is None:
            return None
    return _body(grid, box)


def axes_along(up: np.ndarray, posterior: np.ndarray) -> np.ndarray:
    """Return orthogonal unit vectors (3, 3) along up, close to posterior, and to the left, one a row."""
    first = up / np.linalg.norm(up)
    second = posterior - (posterior @ first) * first
    if np.linalg.norm(second) < 1e-6:
        # A column along the posterior axis: the image's axes are wrong, or its masks are fragments.
        second = np.cross(first, LEFT)
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(second, first)])


def resampled(
    mask: Mask, centre: np.ndarray, axes: np.ndarray, low: np.ndarray, high: np.ndarray, step: float
) -> np.ndarray:
    """Return samples of a mask, 0 to 1, along axes (superior, posterior, left) from ``low`` to ``high``.

    Both corners and the step are mm from the centre along the axes.
    """
    to_index = np.linalg.inv(mask.to_lps)
    # Of background around the mask, on which it ends evenly. A sample's axes are x, y, z: left, posterior, superior.
    matrix = (to_index[:3, :3] @ axes.T)[:, ::-1] * step
    first = (to_index @ [*(centre + low @ axes), 1.0])[:3] + 1
    resample = sitk.ResampleImageFilter()
    resample.SetTransform(sitk.AffineTransform(matrix.ravel().tolist(), first.tolist()))
    resample.SetSize((np.ceil((high - low) / step).astype(int) + 1)[::-1].tolist())
    resample.SetInterpolator(sitk.sitkLinear)
    resample.SetOutputPixelType(sitk.sitkFloat32)
    # Other vertebrae are sampled in other threads.
    resample.SetNumberOfWorkUnits(1)
    soft: np.ndarray = sitk.GetArrayFromImage(
        resample.Execute(sitk.GetImageFromArray(np.pad(mask.array.view(np.uint8), 1)))
    )
    return soft


def _sample(mask: Mask, centre: np.ndarray, axes: np.ndarray, low: np.ndarray, high: np.ndarray, step: float) -> _Grid:
    return _Grid(resampled(mask, centre, axes, low, high, step), centre, axes, low, step)


def _box(grid: _Grid) -> np.ndarray | None:
    """Return the lowest and the highest corner of the body: mm from the centre, shape (2, 3)."""
    lateral = np.abs(grid.coordinates(2)) <= SECTION_MM
    components, count = ndimage.label(grid.soft[:, :, lateral].mean(axis=2) >= 0.5)
    if count == 0:
        return None
    sizes = np.bincount(components.ravel())[1:]
    large = np.flatnonzero(sizes >= SMALLEST_COMPONENT * sizes.max()) + 1
    most_anterior = min(large, key=lambda number: np.nonzero(components == number)[1].mean())
    section = components == most_anterior
    # In the middle half, walls and end plates are not rounded.
    front, back = _extent(section, 1, _middle(np.flatnonzero(section.any(axis=1))))
    bottom, top = _extent(section, 0, _middle(np.arange(int(front), int(back) + 1)))
    rows, columns = _middle(np.arange(int(bottom), int(top) + 1)), _middle(np.arange(int(front), int(back) + 1))
    # The line from the middle to the side first leaves the bone at the wall.
    across = grid.soft[np.ix_(rows, columns)].reshape(len(rows) * len(columns), -1) >= 0.5
    start = int(np.abs(grid.coordinates(2)).argmin())
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


def _extent(section: np.ndarray, axis: int, lines: np.ndarray) -> tuple[float, float]:
    """Return the medians of the first and the last index of a section along an axis, over some of its lines."""
    along = section[lines] if axis == 1 else section[:, lines].T
    along = along[along.any(axis=1)]
    first, last = along.argmax(axis=1), along.shape[1] - 1 - along[:, ::-1].argmax(axis=1)
    return float(np.median(first)), float(np.median(last))


def _run(lines: np.ndarray) -> np.ndarray:
    """Return the length of the first run of true samples, less one, in each line that begins with true."""
    lines = lines[lines[:, 0]]
    ends = np.where(lines.all(axis=1), lines.shape[1], (~lines).argmax(axis=1))
    return ends - 1 if len(ends) else np.zeros(1)


def _posterior_direction(points: np.ndarray, up: np.ndarray, radius: float) -> np.ndarray:
    """Return the LPS direction from the body to the arch; the patient's posterior axis if there is hardly any arch.

    ``points`` (n, 3) are those of the vertebra, mm from the centre. The arch is what lies outside a cylinder of a
    ``radius`` in mm around the body, which prefers no direction.
    """
    from_axis = np.einsum("ij,ij->i", points, points) - (points @ up) ** 2
    arch = points[from_axis > radius**2]
    direction: np.ndarray = arch.mean(axis=0) if len(arch) >= ARCH_PART * len(points) else POSTERIOR
    return direction


def _columns(grid: _Grid, box: np.ndarray, around: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the samples in the depth and width of a box, at all heights, and their coordinates in depth and width.

    The depth may reach so many mm ``around`` the box.
    """
    depth, width = grid.coordinates(1), grid.coordinates(2)
    rows = np.flatnonzero((depth >= box[0, 1] - around) & (depth <= box[1, 1] + around))
    columns = np.flatnonzero((width >= box[0, 2]) & (width <= box[1, 2]))
    return grid.soft[:, rows][:, :, columns], depth[rows], width[columns]


def _plates(soft: np.ndarray, grid: _Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the heights of the lower and of the upper end plate (depth, width) in samples from `_columns`, mm."""
    lower = grid.low[0] + grid.step * _first_crossing(soft)
    upper = grid.low[0] + grid.step * (len(soft) - 1 - _first_crossing(soft[::-1]))
    return lower, upper


def _first_crossing(soft: np.ndarray) -> np.ndarray:
    """Return the index where values along the first axis first rise through 0.5, interpolated; NaN where never."""
    inside = soft >= 0.5
    first = np.maximum(inside.argmax(axis=0), 1)
    after, before = (np.take_along_axis(soft, index[None], axis=0)[0] for index in (first, first - 1))
    rise = np.maximum(after - before, 1e-6)
    return np.where(inside.any(axis=0), first - np.clip((after - 0.5) / rise, 0, 1), np.nan)


def _aligned(grid: _Grid, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the body's centre and its superior axis, the mean of the normals of its end plates, in LPS."""
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
    around, around_depth, _ = _columns(grid, box, BEYOND_WALL_MM)
    lower, upper = _plates(around, grid)
    middle = box.mean(axis=0)
    return Body(
        centre=grid.centre + middle @ grid.axes,
        axes=grid.axes,
        size=box[1] - box[0],
        upper=upper - middle[0],
        lower=lower - middle[0],
        walls=_walls(grid, box),
        plate_grid=(around_depth - middle[1], width - middle[2]),
        inside=soft >= 0.5,
        low=np.array([grid.low[0], depth[0], width[0]]) - middle,
    )


def _walls(grid: _Grid, box: np.ndarray) -> np.ndarray:
    """Return the lines of the front and of the back wall, see `Body.walls`, in the middle third of the width.

    Each follows all of its wall: a body with a deep hollow is much lower in its middle than at its walls.
    """
    middle, half = box.mean(axis=0), (box[1] - box[0]) / 2
    up, depth, width = (grid.coordinates(axis) - middle[axis] for axis in range(3))
    solid = grid.soft[:, :, np.abs(width) <= half[2] / 3] >= 0.5
    waist = int(np.abs(up).argmin())
    found = []
    for sign in (-1, 1):
        start = int(np.abs(depth - sign * WALL_FROM * half[1]).argmin())
        above, below = (np.median(_run(solid[waist::step, start].T)) for step in (1, -1))
        rows = np.flatnonzero((up >= up[waist] - below + RIM_MM) & (up <= up[waist] + above - RIM_MM))
        lines = solid[rows, start:] if sign > 0 else solid[rows, start::-1]
        ahead = lines.transpose(0, 2, 1).reshape(-1, lines.shape[1])
        within = ahead[:, 0]
        # The wall is half a sample beyond the last one inside.
        at = depth[start] + sign * grid.step * (_run(ahead) + 0.5)
        # A line that ends at a vein's foramen, or goes on in the arch, is none of the wall.
        near = np.abs(at - np.median(at)) <= BEYOND_WALL_MM / 2 if within.any() else np.zeros(0, bool)
        if np.count_nonzero(near) < FEWEST_WALL_LINES:
            found.append([sign * half[1], 0.0])
        else:
            found.append(_wall_line(np.repeat(up[rows], lines.shape[2])[within][near], at[near]))
    return np.array(found)


def _wall_line(heights: np.ndarray, at: np.ndarray) -> list[float]:
    """Return offset and slope of the line through points of a wall; few rows say little of its slope."""
    design = np.stack([np.ones_like(heights), heights], axis=1)
    prior = np.diag([0.0, (WALL_NOISE_MM / WALL_SLOPE_SD) ** 2])
    share = np.full(len(at), min(1.0, 1 / WALL_ALIKE))
    line = np.zeros(2)
    for step in range(WALL_PASSES):
        # Points further than a millimetre off count less and less.
        shares = share / np.maximum(1, np.abs(at - design @ line)) if step else share
        line = np.linalg.solve(design.T * shares @ design + prior, design.T * shares @ at)
    return [float(value) for value in line]
