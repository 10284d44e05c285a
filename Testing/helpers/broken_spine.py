"""Real vertebrae that have lost height by a known part, in any pose, with noise, on any grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from segmamba.measurements.end_plates import end_plates
from segmamba.measurements.heights import PLACES, heights_of
from segmamba.measurements.vertebral_body import Body, Mask, find_body
from segmamba.utils.arrays import bounding_box

# Losses by what they do, as functions of the part of the depth from the front and of the width from the right: 1 where
# the whole loss is.
KINDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "anterior": lambda deep, wide: 1 - deep,
    # The ring of the rims stays.
    "middle": lambda deep, wide: np.clip(1 - (2 * deep - 1) ** 2 - (2 * wide - 1) ** 2, 0, 1) ** 2,
    "posterior": lambda deep, wide: deep,
    "left": lambda deep, wide: wide,
    "right": lambda deep, wide: 1 - wide,
    "anterior rim": lambda deep, wide: np.clip(1 - deep / 0.3, 0, 1),
    "crush": lambda deep, wide: np.ones_like(deep + wide),
}
# Width of the blur that turns voxels into a surface, mm; noise of the surface and its width, mm.
BLUR_MM, NOISE_MM, NOISE_WIDTH_MM = 0.8, 0.4, 2.0
# A loss fades out this far behind the body, in the pedicles.
FADE_MM = 6.0
FINE_MM = 0.7
MARGIN_MM = 4.0
# This far from a body, height, depth and width, mm, it takes its surroundings with it.
AROUND_MM = (10.0, FADE_MM, 6.0)


@dataclass(frozen=True, eq=False)
class Whole:
    """A whole vertebra as a smooth object.

    Attributes
    ----------
    soft : ndarray
        Shape (z, y, x): one half at its surface.
    to_lps : ndarray
        4 x 4 matrix from the index (x, y, z, 1) to LPS mm.
    body : Body
    heights : ndarray (5,)
        At each of the places, measured in voxels of 0.7 mm.
    torn : float
        See `segmamba.measurements.heights.Heights`.
    """

    soft: np.ndarray
    to_lps: np.ndarray
    body: Body
    heights: np.ndarray
    torn: float = 0.0


def whole(mask: Mask, up: np.ndarray) -> Whole | None:
    """Return a mask's vertebra as a smooth object with its true heights; None if it has no body."""
    spacing = np.linalg.norm(mask.to_lps[:3, :3], axis=0)[::-1]
    pad = np.ceil(MARGIN_MM / spacing).astype(int)
    box = bounding_box(mask.array)
    array = np.pad(mask.array[box].astype(np.float32), [(part, part) for part in pad])
    to_lps = mask.to_lps.copy()
    to_lps[:3, 3] += to_lps[:3, :3] @ ([part.start for part in box] - pad)[::-1]
    soft = ndimage.gaussian_filter(array, BLUR_MM / spacing)
    found = find_body(Mask(soft >= 0.5, to_lps), up)
    if found is None:
        return None
    unbroken = Whole(soft, to_lps, found, np.full(len(PLACES), np.nan))
    fine = sampled(unbroken, np.eye(3), (FINE_MM,) * 3)
    body = find_body(fine, up)
    plates = None if body is None else end_plates(body, fine)
    if body is None or plates is None:
        return None
    heights = heights_of(body, plates, fine)
    return Whole(soft, to_lps, body, heights.mm, heights.torn)


def true_heights(vertebra: Whole, kind: str, part: float) -> np.ndarray:
    """Return the heights of a vertebra after a loss."""
    deep, wide = np.array(list(PLACES.values())).T
    return vertebra.heights * (1 - part * KINDS[kind](deep, wide))


def sampled(
    vertebra: Whole,
    pose: np.ndarray,
    spacing: tuple[float, float, float],
    loss: tuple[str, float] | None = None,
    rng: np.random.Generator | None = None,
) -> Mask:
    """Return the mask of a vertebra on a grid along the patient's axes.

    Parameters
    ----------
    vertebra : Whole
    pose : ndarray (3, 3)
        Rotation about the origin of LPS.
    spacing : tuple of float
        x, y, z in mm.
    loss : tuple of str and float, optional
        One of `KINDS`, and the part of the height.
    rng : Generator, optional
        For where the grid begins, and for the noise of the surface; without it there is none.
    """
    ends = np.array(np.meshgrid(*[(0, size - 1) for size in vertebra.soft.shape[::-1]], indexing="ij")).reshape(3, -1)
    corners = (pose @ (vertebra.to_lps[:3, :3] @ ends + vertebra.to_lps[:3, 3:])).T
    first = corners.min(axis=0) - (rng.uniform(0, 1, 3) if rng else 0.5) * np.array(spacing)
    size = np.ceil((corners.max(axis=0) - first) / spacing).astype(int) + 1
    to_lps = np.diag([*spacing, 1.0])
    to_lps[:3, 3] = first
    to_index = np.linalg.inv(vertebra.to_lps)
    matrix = to_index[:3, :3] @ pose.T
    start = (matrix @ first + to_index[:3, 3])[::-1]
    soft = ndimage.affine_transform(
        vertebra.soft, (matrix * spacing)[::-1, ::-1], start, tuple(size[::-1]), np.float32, order=1
    )
    if loss is not None:
        k, j, i = np.indices(size[::-1], dtype=np.float32).reshape(3, -1)
        local = (((np.stack([i, j, k], axis=1) * spacing + first) @ pose) - vertebra.body.centre) @ vertebra.body.axes.T
        # Only the body has lost height, and what is right above it comes down.
        near = (np.abs(local) <= vertebra.body.size / 2 + AROUND_MM).all(axis=1)
        points = vertebra.body.centre + _before(vertebra.body, local[near], *loss) @ vertebra.body.axes
        index = (points @ to_index[:3, :3].T + to_index[:3, 3])[:, ::-1].T
        soft.reshape(-1)[near] = ndimage.map_coordinates(vertebra.soft, index, np.float32, order=1)
    if rng:
        noise = ndimage.gaussian_filter(rng.normal(size=soft.shape), NOISE_WIDTH_MM / np.array(spacing[::-1]))
        # The blurred edge rises by this much in a millimetre.
        soft = soft + noise / noise.std() * NOISE_MM / (BLUR_MM * np.sqrt(2 * np.pi))
    parts, _ = ndimage.label(soft >= 0.5)
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    return Mask(parts == largest, to_lps)


def _before(body: Body, points: np.ndarray, kind: str, part: float) -> np.ndarray:
    """Return where points (n, 3) of a body that has lost height were before.

    Both in mm along the body's axes.
    """
    up, back, left = points.T
    deep, wide = back / body.size[1] + 0.5, left / body.size[2] + 0.5
    loss = part * KINDS[kind](np.clip(deep, 0, 1), np.clip(wide, 0, 1))
    loss = loss * np.clip(1 - (back - body.size[1] / 2) / FADE_MM, 0, 1)
    upper, lower = (_plate_at(body, plate, back, left) for plate in (body.upper, body.lower))
    # A biconcave body has lost height at both plates, the others at the upper one.
    kept = lower + (0.5 if kind == "middle" else 0.0) * (upper - lower)
    above = up - kept
    reach = np.where(above > 0, upper - kept, kept - lower)
    within = np.abs(above) < (1 - loss) * reach
    source = np.where(within, np.abs(above) / (1 - loss), np.abs(above) + loss * reach)
    return np.stack([kept + np.sign(above) * source, back, left], axis=1)


def _plate_at(body: Body, plate: np.ndarray, back: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return the height of a plate at points, outside of it that of its nearest point; smoothed over 1 mm."""
    nearest = ndimage.distance_transform_edt(np.isnan(plate), return_distances=False, return_indices=True)
    smooth = ndimage.gaussian_filter(plate[tuple(nearest)], 1.0, mode="nearest")
    depth, width = body.plate_grid
    index = np.stack([back - depth[0], left - width[0]])
    return ndimage.map_coordinates(smooth, index, order=1, mode="nearest")
