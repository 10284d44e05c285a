"""End plates of a vertebral body as smooth surfaces between voxels.

A label map says of each line of voxels only between which two of them a plate lies: in slices of 5 mm that is a step.
The surface is the most probable one under these intervals, by a Gaussian process whose likelihood is the probability of
the interval (censored regression), solved by Newton's method in a basis of a quadratic and of radial functions. Where
the plate crosses slices, the edges of the steps place it far more exactly than a slice is thick; where it lies along a
slice, the standard deviation says that nothing does. The construction is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.special import log_ndtr

from segmamba.measurements.vertebral_body import FINE_MM, Body, Mask

# Plates are looked for so far beyond the body's height, mm: what a line meets there is the vertebra's own.
BEYOND_MM = 8.0
# Lines of voxels closer than this to the outline of the body are left out, mm: the rim is rounded.
ROUNDED_MM = 0.7
# Beside this part of the width, plates end this part of the depth in front of the back wall.
PEDICLES, BEFORE = 0.4, 0.1
# Lines of voxels have at least this section, mm^2: closer ones say nothing new.
APART_MM2 = 0.5
# Standard deviation of a mask's surface, mm, and the area in which its errors are alike, mm^2.
NOISE_MM, ALIKE_MM2 = 0.4, 40.0
# A point further than so many standard deviations beyond its interval counts less and less (Huber): a spur, a gap.
HUBER = 2.0
# Prior standard deviations, mm, of a plate's height, slopes and curvatures, where depth and width reach from -1 to 1,
# and of what a quadratic does not explain, with its length.
POLYNOMIAL_SD = np.array([8.0, 6.0, 6.0, 2.0, 2.0, 2.0])
LOCAL_SDS, LOCAL_LENGTH = (0.3, 1.0, 3.0), 0.4
CENTRES = np.stack(np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5), indexing="ij"), axis=-1).reshape(-1, 2)
NEWTON_STEPS, CONVERGED = 15, 1e-2
# A surface is not fitted to fewer lines.
FEWEST_LINES = 12
# Voxels so far on the wrong side of the surface are ragged, mm.
RAGGED_MM = 1.5


@dataclass(frozen=True, eq=False)
class Surface:
    """A smooth end plate.

    Attributes
    ----------
    scale : ndarray (2,)
        Half the depth and half the width of the body, mm: its coordinates reach from -1 to 1.
    weights : ndarray (k,)
        Of the basis.
    covariance : ndarray (k, k)
        Theirs.
    ragged : float
        The part of lines of voxels that end far off the surface.
    """

    scale: np.ndarray
    weights: np.ndarray
    covariance: np.ndarray
    ragged: float

    def height(self, back: ArrayLike, left: ArrayLike) -> np.ndarray:
        """Return the height above the body's centre, mm, at points given in mm posterior and left of it."""
        values: np.ndarray = self._basis(back, left) @ self.weights
        return values

    def variance(self, back: ArrayLike, left: ArrayLike) -> np.ndarray:
        """Return the variance of `height`, mm^2."""
        basis = self._basis(back, left)
        values: np.ndarray = np.einsum("...i,ij,...j", basis, self.covariance, basis)
        return values

    def _basis(self, back: ArrayLike, left: ArrayLike) -> np.ndarray:
        return _basis(np.stack(np.broadcast_arrays(back, left), axis=-1) / self.scale)


@dataclass(frozen=True, eq=False)
class _Exits:
    """Where lines of voxels leave the bone through an end plate: ``inner`` is the last voxel, ``outer`` the next one.

    Both are (n, 3): mm up, posterior and left of the body's centre. ``above`` says where the outer one lies above or
    below the body, and not in front of it or beside it. ``area`` is that of a line's section, mm^2.
    """

    inner: np.ndarray
    outer: np.ndarray
    above: np.ndarray
    area: float


def end_plates(body: Body, mask: Mask) -> tuple[Surface, Surface] | None:
    """Return the upper and the lower end plate of a body; None where too little of one is there.

    Parameters
    ----------
    body : Body
    mask : Mask
        That the body was found in.
    """
    outline = _outline(body)
    found = []
    for sign in (1, -1):
        exits = _exits(body, mask, outline, sign)
        if np.count_nonzero(exits.above) < FEWEST_LINES:
            return None
        found.append(_fit(exits, body.size[1:] / 2, sign))
    return found[0], found[1]


def _outline(body: Body) -> np.ndarray:
    """Return how far each sample (depth, width) of ``body.inside`` lies within the waist of the body, mm."""
    count = len(body.inside)
    up = body.low[0] + FINE_MM * np.arange(count)
    waist = body.inside[np.abs(up) <= max(FINE_MM, body.size[0] / 6)].mean(axis=0) >= 0.5
    inside = ndimage.binary_fill_holes(waist)
    depth: np.ndarray = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] * FINE_MM - FINE_MM / 2
    return depth


def _within(body: Body, outline: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Say which points (n, 3) in body coordinates lie between the walls, at any height."""
    # The waist leans with the walls.
    waist = points[:, 1:] - points[:, :1] * np.array([body.walls[:, 1].mean(), 0.0])
    at = ((waist - body.low[1:]) / FINE_MM).T
    within: np.ndarray = ndimage.map_coordinates(outline, at, order=1, cval=-1.0) >= ROUNDED_MM
    # Behind the back wall the pedicles begin, and beside the canal a little before it.
    walls = body.walls @ np.stack([np.ones(len(points)), points[:, 0]])
    aside = np.abs(points[:, 2]) > PEDICLES * body.size[2] / 2
    within &= (points[:, 1] >= walls[0]) & (points[:, 1] <= walls[1] - np.where(aside, BEFORE * body.size[1], 0.0))
    return within


def _exits(body: Body, mask: Mask, outline: np.ndarray, sign: int) -> _Exits:
    """Return where the lines of voxels that run most along the body's axis leave its upper or its lower plate."""
    # Body coordinates (up, posterior, left) for each step of the index along x, y, z.
    steps = body.axes @ mask.to_lps[:3, :3]
    along = int(np.abs(steps[0] / np.linalg.norm(steps, axis=0)).argmax())
    outwards = sign * int(np.sign(steps[0, along]))
    array = np.moveaxis(mask.array, 2 - along, 0)[::outwards]
    padded = np.concatenate([array, np.zeros_like(array[:1])])
    k, *others = np.nonzero(padded[:-1] & ~padded[1:])
    index = np.empty((3, len(k)), int)
    index[along] = k if outwards > 0 else len(array) - 1 - k
    # The other two axes of the array run from the last of x, y and z to the first.
    for axis, part in zip([each for each in (2, 1, 0) if each != along], others, strict=True):
        index[axis] = part
    start = body.axes @ (mask.to_lps[:3, 3] - body.centre)
    inner = start + index.T @ steps.T
    outer = inner + outwards * steps[:, along]
    middle = (inner + outer) / 2
    within = _within(body, outline, inner)
    height = sign * middle[:, 0]
    within &= (height > -body.size[0] / 4) & (height < body.size[0] / 2 + BEYOND_MM)
    # The outermost one of each line.
    kept = np.flatnonzero(within)[::-1]
    _, last = np.unique(np.stack([part[kept] for part in others]), axis=1, return_index=True)
    first, second = (axis for axis in range(3) if axis != along)
    area = abs(float(np.linalg.det(steps[1:][:, [first, second]])))
    chosen = kept[last][:: max(1, round(APART_MM2 / area))]
    inner, outer = inner[chosen], outer[chosen]
    return _Exits(inner, outer, _within(body, outline, outer), area * max(1, round(APART_MM2 / area)))


def _basis(places: np.ndarray) -> np.ndarray:
    """Return the basis (..., k) at places (..., 2) of depth and width from -1 to 1."""
    deep, wide = places[..., 0], places[..., 1]
    quadratic = [np.ones_like(deep), deep, wide, deep**2, wide**2, deep * wide]
    apart = ((places[..., None, :] - CENTRES) ** 2).sum(axis=-1)
    local = np.exp(-apart / (2 * LOCAL_LENGTH**2)) @ WHITENED
    return np.concatenate([np.stack(quadratic, axis=-1) * POLYNOMIAL_SD, local], axis=-1)


def _whitened() -> np.ndarray:
    """Return what makes of the radial functions a basis of independent standard normal weights."""
    apart = ((CENTRES[:, None] - CENTRES) ** 2).sum(axis=-1)
    gram = np.exp(-apart / (2 * LOCAL_LENGTH**2)) + 1e-6 * np.eye(len(CENTRES))
    inverse: np.ndarray = np.linalg.inv(np.linalg.cholesky(gram)).T
    return inverse


WHITENED = _whitened()


def _fit(exits: _Exits, scale: np.ndarray, sign: int) -> Surface:
    """Return the most probable surface of a plate; how uneven it is, is what explains its voxels best."""
    sides = [_basis(ends[:, 1:] / scale) for ends in (exits.inner, exits.outer)]
    heights = [ends[:, 0] for ends in (exits.inner, exits.outer)]
    share = min(1.0, exits.area / ALIKE_MM2)
    shares = (np.full(len(heights[0]), share), share * exits.above)
    fits = []
    for local in LOCAL_SDS:
        factors = np.concatenate([POLYNOMIAL_SD, np.full(len(CENTRES), local)])
        scaled = (sides[0] * factors, sides[1] * factors)
        evidence, weights, covariance = _newton(scaled, (heights[0], heights[1]), sign, shares)
        fits.append((evidence, weights * factors, covariance * np.outer(factors, factors)))
    _, weights, covariance = max(fits, key=lambda fit: fit[0])
    off = np.maximum(
        sign * (heights[0] - sides[0] @ weights), np.where(exits.above, sign * (sides[1] @ weights - heights[1]), 0)
    )
    return Surface(scale, weights, covariance, float((off > RAGGED_MM).mean()))


def _newton(
    sides: tuple[np.ndarray, np.ndarray],
    heights: tuple[np.ndarray, np.ndarray],
    sign: int,
    shares: tuple[np.ndarray, np.ndarray],
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the logarithm of the evidence (Laplace), the most probable standard normal weights, their covariance."""
    basis, middle = (sides[0] + sides[1]) / 2, (heights[0] + heights[1]) / 2
    # That a plate lies in the middle of its voxels is worth one observation: else nothing holds one within a slice.
    width = heights[0] - heights[1]
    held = (shares[1] > 0) / (np.count_nonzero(shares[1]) * (width**2 / 12 + NOISE_MM**2))
    prior = np.eye(basis.shape[1])
    start = basis.T * shares[1]
    weights = np.linalg.solve(start @ basis + prior, start @ middle)
    hessian, value = prior, 0.0
    for _ in range(NEWTON_STEPS):
        off = middle - basis @ weights
        gradient = basis.T @ (held * off) - weights
        hessian = basis.T @ (basis * held[:, None]) + prior
        value = -float((held * off**2).sum() + weights @ weights) / 2
        # The inner voxel lies below an upper plate and the outer one above it.
        for side, height, towards, share in zip(sides, heights, (sign, -sign), shares, strict=True):
            slope, curvature, logarithm = _likelihood(towards * (side @ weights - height))
            gradient = gradient + towards * (side.T @ (share * slope))
            hessian = hessian + side.T @ (side * (share * curvature)[:, None])
            value += float(share @ logarithm)
        change = np.linalg.solve(hessian, gradient)
        weights = weights + change
        # The next step would be smaller than its square.
        if np.abs(change).max() < CONVERGED:
            break
    return value - float(np.linalg.slogdet(hessian)[1]) / 2, weights, np.linalg.inv(hessian)


def _likelihood(beyond: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return slope, negative curvature and value of the logarithm of the probability that a voxel is on its side.

    ``beyond`` is how far a surface lies beyond the voxel, mm. Below `HUBER` the value falls in proportion.
    """
    held = np.maximum(beyond / NOISE_MM, -HUBER)
    value = log_ndtr(held)
    slope = np.exp(-(held**2) / 2 - value) / np.sqrt(2 * np.pi)
    below = held - beyond / NOISE_MM
    # Where the slope stays, the curvature is that of a parabola through the same point.
    curvature = np.where(below > 0, slope / (HUBER + below), slope * (slope + held))
    return slope / NOISE_MM, curvature / NOISE_MM**2, value - slope * below
