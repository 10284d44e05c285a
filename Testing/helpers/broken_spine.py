"""Real vertebrae that have lost height by a known part, in any pose, with noise, on any grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from segmamba.measurements.end_plates import Surface, end_plates
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
ANTERIOR, POSTERIOR = list(PLACES).index("anterior"), list(PLACES).index("posterior")
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
    points : ndarray (5, 2, 3)
        Their points on the upper and the lower end plate, mm along the body's axes.
    plates : tuple of Surface
        The upper and the lower end plate.
    torn : float
        See `segmamba.measurements.heights.Heights`.
    """

    soft: np.ndarray
    to_lps: np.ndarray
    body: Body
    heights: np.ndarray
    points: np.ndarray
    plates: tuple[Surface, Surface]
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
    fine = _resampled(soft, to_lps, np.eye(3), np.full(3, FINE_MM), np.full(3, 0.5))
    fine_mask = Mask(_largest(fine.array >= 0.5), fine.to_lps)
    body = find_body(fine_mask, up)
    plates = None if body is None else end_plates(body, fine_mask)
    if body is None or plates is None:
        return None
    heights = heights_of(body, plates, fine_mask)
    points = (heights.points - body.centre) @ body.axes.T
    return Whole(soft, to_lps, body, heights.mm, points, plates, heights.torn)


def true_heights(vertebra: Whole, kind: str, part: float) -> np.ndarray:
    """Return the heights of a vertebra after a loss."""
    points = true_points(vertebra, (kind, part))
    heights: np.ndarray = np.linalg.norm(points[:, 0] - points[:, 1], axis=1)
    return heights


def true_points(vertebra: Whole, loss: tuple[str, float] | None) -> np.ndarray:
    """Return `Whole.points` after a loss: each goes where its bone goes."""
    if loss is None:
        return vertebra.points
    return np.stack([_after(vertebra, vertebra.points[:, side], *loss) for side in range(2)], axis=1)


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
    fine = _resampled(
        vertebra.soft, vertebra.to_lps, pose, np.array(spacing), rng.uniform(0, 1, 3) if rng else np.full(3, 0.5)
    )
    soft, to_lps = fine.array, fine.to_lps
    if loss is not None:
        k, j, i = np.indices(soft.shape, dtype=np.float32).reshape(3, -1)
        lps = np.stack([i, j, k], axis=1) * spacing + to_lps[:3, 3]
        local = (lps @ pose - vertebra.body.centre) @ vertebra.body.axes.T
        # Only the body has lost height, and what is right above it comes down.
        near = (np.abs(local) <= vertebra.body.size / 2 + AROUND_MM).all(axis=1)
        points = vertebra.body.centre + _before(vertebra, local[near], *loss) @ vertebra.body.axes
        to_index = np.linalg.inv(vertebra.to_lps)
        index = (points @ to_index[:3, :3].T + to_index[:3, 3])[:, ::-1].T
        soft.reshape(-1)[near] = ndimage.map_coordinates(vertebra.soft, index, np.float32, order=1)
    if rng:
        noise = ndimage.gaussian_filter(rng.normal(size=soft.shape), NOISE_WIDTH_MM / np.array(spacing[::-1]))
        # The blurred edge rises by this much in a millimetre.
        soft = soft + noise / noise.std() * NOISE_MM / (BLUR_MM * np.sqrt(2 * np.pi))
    return Mask(_largest(soft >= 0.5), to_lps)


def _resampled(soft: np.ndarray, to_lps: np.ndarray, pose: np.ndarray, spacing: np.ndarray, offset: np.ndarray) -> Mask:
    """Return samples of a smooth object in a pose, on a grid along the patient's axes that begins at an offset."""
    ends = np.array(np.meshgrid(*[(0, size - 1) for size in soft.shape[::-1]], indexing="ij")).reshape(3, -1)
    corners = (pose @ (to_lps[:3, :3] @ ends + to_lps[:3, 3:])).T
    first = corners.min(axis=0) - offset * spacing
    size = np.ceil((corners.max(axis=0) - first) / spacing).astype(int) + 1
    grid = np.diag([*spacing, 1.0])
    grid[:3, 3] = first
    to_index = np.linalg.inv(to_lps)
    matrix = to_index[:3, :3] @ pose.T
    start = (matrix @ first + to_index[:3, 3])[::-1]
    samples = ndimage.affine_transform(
        soft, (matrix * spacing)[::-1, ::-1], start, tuple(size[::-1].tolist()), np.float32, order=1
    )
    return Mask(samples, grid)


def _largest(array: np.ndarray) -> np.ndarray:
    parts, _ = ndimage.label(array)
    largest: np.ndarray = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return largest


def _before(vertebra: Whole, points: np.ndarray, kind: str, part: float) -> np.ndarray:
    """Return where points (n, 3) of a body that has lost height were before.

    Both in mm along the body's axes.
    """
    kept, above, reach, loss = _course(vertebra, points, kind, part)
    within = np.abs(above) < (1 - loss) * reach
    source = np.where(within, np.abs(above) / (1 - loss), np.abs(above) + loss * reach)
    return np.stack([kept + np.sign(above) * source, *points.T[1:]], axis=1)


def _after(vertebra: Whole, points: np.ndarray, kind: str, part: float) -> np.ndarray:
    """Return where points (n, 3) of a body are after its loss of height: the inverse of `_before`."""
    kept, above, reach, loss = _course(vertebra, points, kind, part)
    moved = np.where(np.abs(above) < reach, (1 - loss) * np.abs(above), np.abs(above) - loss * reach)
    return np.stack([kept + np.sign(above) * moved, *points.T[1:]], axis=1)


def _course(vertebra: Whole, points: np.ndarray, kind: str, part: float) -> tuple[np.ndarray, ...]:
    """Return what stays in place at points (n, 3), how far they are above it, the bone's reach, and the loss there.

    All follow the plates and the corners that the heights are read at, so that what is lost there is known.
    """
    up, back, left = points.T
    # A biconcave body has lost height at both plates, the others at the upper one.
    both = kind == "middle"
    ends = vertebra.points[[ANTERIOR, POSTERIOR], :, 1]
    front, rear = ends.mean(axis=1) if both else ends[:, 0]
    width = vertebra.body.size[2]
    deep, wide = (back - front) / (rear - front), left / width + 0.5
    loss = part * KINDS[kind](np.clip(deep, 0, 1), np.clip(wide, 0, 1))
    loss = loss * np.clip(1 - (back - rear) / FADE_MM, 0, 1)
    at = np.clip(back, ends.min(), ends.max()), np.clip(left, -width / 2, width / 2)
    upper, lower = (plate.height(*at) for plate in vertebra.plates)
    kept = lower + (0.5 if both else 0.0) * (upper - lower)
    above = up - kept
    return kept, above, np.where(above > 0, upper - kept, kept - lower), loss
