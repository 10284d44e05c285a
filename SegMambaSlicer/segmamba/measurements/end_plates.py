"""End plates of a vertebral body as smooth surfaces between voxels.

A label map says of each line of voxels only between which two of them a plate lies: in slices of 5 mm that is a step.
The surface is the most probable one under these intervals, by a Gaussian process whose likelihood is the probability of
the interval (censored regression), solved by Newton's method in a basis of a quadratic and of radial functions. Where
the plate crosses slices, the edges of the steps place it far more exactly than a slice is thick; where it lies along a
slice, the standard deviation says that nothing does. A fracture bends a plate more sharply than a sound one is bent, at
its front or in a hollow: surfaces with and without such a bend are averaged, each by how well it explains the voxels.
The construction is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
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
# and the length of what a quadratic does not explain.
POLYNOMIAL_SD = np.array([64.0, 36.0, 36.0, 4.0, 4.0, 4.0])
LOCAL_LENGTH = 0.4
# A plate that is broken at its front is bent there, in this part of half the depth.
BENT = 0.5
# The surfaces that are averaged, by prior standard deviations, mm: of what a quadratic does not explain, of a bend at
# the front, and of a hollow. `NO` stands for 0, which has no inverse.
NO = 1e-3
Priors = Sequence[Sequence[float]]
PRIORS: Priors = ((0.3, NO, NO), (1.0, NO, NO), (3.0, NO, NO), (0.3, 5.0, NO), (0.3, NO, 4.0))
# The centres of the radial functions, along depth and width alike, and all of them.
ALONG = np.linspace(-1, 1, 5)
CENTRES = np.stack(np.meshgrid(ALONG, ALONG, indexing="ij"), axis=-1).reshape(-1, 2)
# The upper and the lower plate of a body.
SIGNS = (1, -1)
NEWTON_STEPS, CONVERGED = 15, 1e-2
# A surface is not fitted to fewer lines.
FEWEST_LINES = 12
# Voxels so far on the wrong side of the surface are ragged, mm.
RAGGED_MM = 1.0
# A plate's lines of voxels begin and end at these percentiles of their depth: single ones lie on a wall.
SPAN = (2, 98)


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
    sign : int
        1 for the upper plate of a body, -1 for the lower one.
    span : ndarray (2,)
        Where its lines of voxels begin and end in the middle third of the width, mm posterior of the body's centre.
    """

    scale: np.ndarray
    weights: np.ndarray
    covariance: np.ndarray
    ragged: float
    sign: int
    span: np.ndarray

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


def end_plates(body: Body, mask: Mask, priors: Priors = PRIORS) -> tuple[Surface, Surface] | None:
    """Return the upper and the lower end plate of a body; None where too little of one is there.

    Parameters
    ----------
    body : Body
    mask : Mask
        That the body was found in.
    priors : sequence of sequence of float
        As `PRIORS`.
    """
    outline = _outline(body)
    exits = [_exits(body, mask, outline, sign) for sign in SIGNS]
    if min(np.count_nonzero(each.above) for each in exits) < FEWEST_LINES:
        return None
    upper, lower = _fits(exits, body.size[1:] / 2, priors)
    return upper, lower


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
    # A normal law of two coordinates is the product of those of each.
    laws = np.exp(-((places[..., None] - ALONG) ** 2) / (2 * LOCAL_LENGTH**2))
    local = (laws[..., 0, :, None] * laws[..., 1, None, :]).reshape(*deep.shape, len(CENTRES)) @ WHITENED
    front = np.maximum((BENT - 1 - deep) / BENT, 0)
    hollow = ((1 - np.clip(deep, -1, 1) ** 2) * (1 - np.clip(wide, -1, 1) ** 2)) ** 2
    return np.concatenate([np.stack([*quadratic, front, hollow], axis=-1), local], axis=-1)


def _whitened() -> np.ndarray:
    """Return what makes of the radial functions a basis of independent standard normal weights."""
    apart = ((CENTRES[:, None] - CENTRES) ** 2).sum(axis=-1)
    gram = np.exp(-apart / (2 * LOCAL_LENGTH**2)) + 1e-6 * np.eye(len(CENTRES))
    inverse: np.ndarray = np.linalg.inv(np.linalg.cholesky(gram)).T
    return inverse


WHITENED = _whitened()


def _fits(exits: Sequence[_Exits], scale: np.ndarray, priors: Priors) -> list[Surface]:
    """Return the surface of each plate: the mean of the most probable ones under each prior, by their evidence."""
    lines = _Lines.of(exits, scale)
    factors = np.stack([np.r_[POLYNOMIAL_SD, bends, np.full(len(CENTRES), local)] for local, *bends in priors])
    evidence, weights, covariances = _newton(lines, factors)
    probable = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    probable /= probable.sum(axis=1, keepdims=True)
    surfaces = []
    for plate, share in enumerate(probable):
        mean = share @ weights[plate]
        apart = weights[plate] - mean
        covariance = np.einsum("s,sij->ij", share, covariances[plate]) + _squares(apart, share)
        count = len(exits[plate].inner)
        inside, outside = (
            lines.towards[plate, side] * (lines.basis[plate, side] @ mean - lines.heights[plate, side])
            for side in range(2)
        )
        off = np.maximum(-inside[:count], np.where(exits[plate].above, -outside[:count], 0))
        ragged = float((off > RAGGED_MM).mean())
        depth, aside = exits[plate].inner[:, 1:].T
        middle = depth[np.abs(aside) <= scale[1] / 3]
        span = np.percentile(middle if len(middle) else depth, SPAN)
        surfaces.append(Surface(scale, mean, covariance, ragged, SIGNS[plate], span))
    return surfaces


@dataclass(frozen=True, eq=False)
class _Lines:
    """The ends of the lines of voxels of some plates, filled up to one number with lines that count for nothing.

    Attributes
    ----------
    basis : ndarray (plates, 2, n, k)
        At the inner and at the outer ends.
    heights, towards, shares : ndarray (plates, 2, n)
        Heights of the ends in mm; 1 where the surface lies above the end, -1 where it lies below; how much each counts.
    """

    basis: np.ndarray
    heights: np.ndarray
    towards: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, exits: Sequence[_Exits], scale: np.ndarray) -> _Lines:
        most = max(len(each.inner) for each in exits)
        basis = np.zeros((len(exits), 2, most, len(POLYNOMIAL_SD) + len(PRIORS[0]) - 1 + len(CENTRES)))
        heights, shares = np.zeros((2, len(exits), 2, most))
        # The inner voxel lies below an upper plate and the outer one above it.
        towards = np.broadcast_to(np.multiply.outer(SIGNS, (1, -1))[:, :, None], heights.shape)
        for plate, each in enumerate(exits):
            count = len(each.inner)
            share = min(1.0, each.area / ALIKE_MM2)
            for side, ends in enumerate((each.inner, each.outer)):
                basis[plate, side, :count] = _basis(ends[:, 1:] / scale)
                heights[plate, side, :count] = ends[:, 0]
            shares[plate, :, :count] = share * np.stack([np.ones(count), each.above])
        return cls(basis, heights, towards, shares)


def _newton(lines: _Lines, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the logarithm of the evidence (Laplace), the most probable weights and their covariance.

    Of each plate and each row of ``factors``, the prior standard deviations (s, k) of the weights: shapes (plates, s),
    (plates, s, k) and (plates, s, k, k).
    """
    middles, targets = lines.basis.mean(axis=1), lines.heights.mean(axis=1)
    # That a plate lies in the middle of its voxels is worth one observation: else nothing holds one within a slice.
    outer = lines.shares[:, 1]
    width = lines.heights[:, 0] - lines.heights[:, 1]
    held = (outer > 0) / (np.count_nonzero(outer, axis=1)[:, None] * (width**2 / 12 + NOISE_MM**2))
    # The parts of the normal equations that are the same in each step.
    fixed, pull = _normal(middles, held, targets)
    hessians = np.zeros((len(middles), len(factors), *fixed.shape[1:]))
    hessians[:] = fixed[:, None] + [np.diag(factor**-2.0) for factor in factors]
    first, start = _normal(middles, outer, targets)
    weights = np.linalg.solve(
        hessians + (first - fixed)[:, None], np.broadcast_to(start[:, None], hessians.shape[:3])[..., None]
    )[..., 0]
    ends = lines.basis.reshape(len(middles), -1, len(fixed[0]))
    heights, towards, shares = (part.reshape(len(middles), -1) for part in (lines.heights, lines.towards, lines.shares))
    values, curved = np.zeros(weights.shape[:2]), hessians.copy()
    plates, priors = np.nonzero(np.ones(values.shape))
    for _ in range(NEWTON_STEPS):
        own = weights[plates, priors]
        beyond = np.stack([ends[plate] @ each for plate, each in zip(plates, own, strict=True)]) - heights[plates]
        slope, curvature, logarithm = _likelihood(towards[plates] * beyond)
        slope, curvature = towards[plates] * shares[plates] * slope, shares[plates] * curvature
        base = hessians[plates, priors]
        pulled = np.einsum("nij,nj->ni", base, own)
        gradient = pull[plates] - pulled
        for number, plate in enumerate(plates):
            gradient[number] += slope[number] @ ends[plate]
            curved[plate, priors[number]] = base[number] + _squares(ends[plate], curvature[number])
        left = np.einsum("ni,ni->n", held[plates], targets[plates] ** 2)
        left += np.einsum("ni,ni->n", own, pulled - 2 * pull[plates])
        values[plates, priors] = np.einsum("ni,ni->n", shares[plates], logarithm) - left / 2
        change = np.linalg.solve(curved[plates, priors], gradient[..., None])[..., 0]
        weights[plates, priors] += change
        # The next step would be smaller than its square.
        going = np.abs(change / factors[priors]).max(axis=1) >= CONVERGED
        plates, priors = plates[going], priors[going]
        if not len(plates):
            break
    evidence = values - np.linalg.slogdet(curved)[1] / 2 - np.log(factors).sum(axis=1)
    return evidence, weights, np.linalg.inv(curved)


def _normal(basis: np.ndarray, shares: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return matrix (plates, k, k) and right side (plates, k) of weighted least squares."""
    matrices = np.stack([_squares(own, share) for own, share in zip(basis, shares, strict=True)])
    return matrices, np.einsum("pnk,pn->pk", basis, shares * targets)


def _squares(rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the sum (k, k) of the outer products of rows (n, k), each as often as it counts."""
    scaled = rows * np.sqrt(shares)[:, None]
    product: np.ndarray = scaled.T @ scaled  # BLAS computes one half of it
    return product


def _likelihood(beyond: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return slope, negative curvature and value of the logarithm of the probability that a voxel is on its side.

    ``beyond`` is how far a surface lies beyond the voxel, mm. Below `HUBER` the value falls in proportion.
    """
    held = np.maximum(beyond / NOISE_MM, -HUBER)
    value = log_ndtr(held)
    slope = np.exp(-(held**2) / 2 - value) / np.sqrt(2 * np.pi)
    below = held - beyond / NOISE_MM
    # Where the slope stays, the curvature is that of a parabola through the same point.
    curvature = np.where(below > 0, slope / (HUBER + below), slope * np.maximum(slope + held, 0))
    return slope / NOISE_MM, curvature / NOISE_MM**2, value - slope * below
