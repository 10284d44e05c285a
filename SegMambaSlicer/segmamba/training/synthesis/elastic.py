"""Choose a crop of an anatomy and deform it: tissue labels, and the centre of each vertebra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.tissue_labels import AIR, OUTSIDE, VERTEBRAE
from segmamba.training.vertebrae.tissue_maps import Anatomy

# Size and amplitude in mm of the bumps of the three scales of elastic deformation.
ELASTIC = ((107.0, 7.0), (46.0, 3.0), (20.0, 0.9))
# Standard deviation (z, y, x) of a crop's centre around the chosen vertebra, as a part of the patch.
JITTER = (0.14, 0.115, 0.13)
# Steps of the fixed-point iteration that inverts the deformation at a centre.
INVERSION_STEPS = 3


def choose_crop(anatomies: Sequence[Anatomy], context: SamplingContext) -> tuple[Anatomy, np.ndarray]:
    """Return an anatomy and a crop centre (z, y, x in its voxels).

    All levels are equally likely, then all subjects with it, then all maps of the subject.
    """
    rng = context.rng
    level = int(rng.choice(sorted({label for anatomy in anatomies for label in anatomy.centres})))
    subjects = sorted({a.subject for a in anatomies if level in a.centres})
    subject = rng.choice(subjects)
    candidates = [a for a in anatomies if a.subject == subject and level in a.centres]
    anatomy = candidates[rng.integers(len(candidates))]
    if rng.random() < 0.08:
        return anatomy, rng.uniform(0, 1, 3) * anatomy.tissues.shape
    return anatomy, jittered(anatomy.centres[level], anatomy.spacing, context)


def jittered(place: Sequence[float], spacing: float, context: SamplingContext) -> np.ndarray:
    """Return a crop centre (3,) near a place (z, y, x), both in voxels of ``spacing`` mm."""
    return np.array(place) + context.rng.normal(0, np.array(JITTER) * context.patch) * context.spacing / spacing


def random_deformation(anatomy: Anatomy, centre: np.ndarray, context: SamplingContext) -> tuple[Tensor, Tensor]:
    """Resample the tissue labels of a patch through a random smooth deformation (nearest neighbour).

    Parameters
    ----------
    anatomy : Anatomy
    centre : ndarray (3,)
        Centre of the patch: z, y, x in the anatomy's voxels.
    context : SamplingContext

    Returns
    -------
    tissues : Tensor (z, y, x), uint8
    centres : Tensor (27, 3)
        Deformed centre of each vertebra, in voxels of the patch (perhaps beyond it); only for those in the anatomy.
    """
    centres = np.zeros((VERTEBRAE + 1, 3))
    for label, point in anatomy.centres.items():
        centres[label] = point
    where, moved = deformed_grid(centres - centre, centre, anatomy.spacing, context)
    k, j, i = where.round().long()
    depth, height, width = anatomy.tissues.shape
    # Above and below the map is outside the field of view; to the sides is air.
    known = (k >= 0) & (k < depth)
    inside = (j >= 0) & (j < height) & (i >= 0) & (i < width)
    flat = ((k * height + j) * width + i).clamp(0, anatomy.tissues.numel() - 1)
    tissues = anatomy.tissues.flatten()[flat].masked_fill(~inside, AIR).masked_fill(~known, OUTSIDE)
    return tissues, moved


def deformed_grid(
    points: np.ndarray, centre: np.ndarray, spacing: float, context: SamplingContext
) -> tuple[Tensor, Tensor]:
    """Draw a smooth deformation: pose, scale, mirroring and bending.

    Parameters
    ----------
    points : ndarray (n, 3)
        Places (z, y, x) relative to the centre, in the source's voxels.
    centre : ndarray (3,)
        Centre of the patch: z, y, x in the source's voxels.
    spacing : float
        Of the source's voxels in mm.
    context : SamplingContext

    Returns
    -------
    where : Tensor (3, z, y, x)
        For each voxel of the patch its place in the source, in voxels.
    moved : Tensor (n, 3)
        Where the points lie in the patch, in its voxels, perhaps beyond it.
    """
    rng, scale = context.rng, context.spacing / spacing
    rotated = rotation(rng.normal(0, np.deg2rad((12, 8, 8))))
    matrix = rotated * rng.uniform(0.82, 1.22) @ np.diag(rng.uniform(0.93, 1.07, 3))
    if rng.random() < 0.5:
        matrix = matrix @ np.diag((1, 1, -1))
    matrix = matrix * scale
    inverse = np.linalg.inv(matrix)
    upload = context.upload(np.vstack([matrix, centre, inverse, points]))
    affine, offset, inverse_affine, relative = upload[:3], upload[3], upload[4:7], upload[7:]
    bend = _elastic(spacing, context)
    z, y, x = (torch.arange(n, device=context.device, dtype=torch.float32) - (n - 1) / 2 for n in context.patch)
    columns = affine.T[:, :, None, None, None]
    where = columns[0] * z[:, None, None] + columns[1] * y[:, None] + columns[2] * x + offset[:, None, None, None]
    return where + bend, _inverted(relative, inverse_affine, bend, context)


def _elastic(spacing: float, context: SamplingContext) -> Tensor:
    """Return a displacement (3, z, y, x) in voxels of ``spacing``."""
    bend = torch.zeros((3, *context.patch), device=context.device)
    for size_mm, amplitude_mm in ELASTIC:
        bend += amplitude_mm / spacing * context.rng.uniform(0, 1.2) * context.smooth_noise(3, size_mm)
    return bend


def _inverted(relative: Tensor, inverse: Tensor, bend: Tensor, context: SamplingContext) -> Tensor:
    """Return the voxels (n, 3) that a deformation maps to points (n, 3), given relative to the crop's centre."""
    largest = context.upload(np.array(context.patch) - 1.0)
    middle = largest / 2
    found = relative @ inverse.T + middle
    for _ in range(INVERSION_STEPS):
        k, j, i = torch.minimum(found.clamp(min=0), largest).round().long().T
        found = (relative - bend[:, k, j, i].T) @ inverse.T + middle
    return found


def cut_field_of_view(tissues: Tensor, context: SamplingContext, narrowed: float = 0.28) -> Tensor:
    """Reduce the field of view as scanners and readers do: at a slice, to a cylinder, or to a tight box.

    ``narrowed`` is the part of the samples that are reduced within the slice: common for the spine, rare for the
    abdomen.
    """
    rng, (depth, height, width) = context.rng, context.patch
    tissues = tissues.clone()
    for _ in range(2):
        if rng.random() < 0.18:
            cut = int(rng.uniform(0.05, 0.45) * depth)
            tissues[slice(depth - cut, depth) if rng.random() < 0.5 else slice(0, cut)] = OUTSIDE
    chance = rng.random()
    if chance < 0.64 * narrowed:
        y = torch.arange(height, device=context.device)[:, None] - (height / 2 + rng.normal(0, height / 12))
        x = torch.arange(width, device=context.device) - (width / 2 + rng.normal(0, width / 12))
        radius = rng.uniform(65, 170) / context.spacing
        tissues.masked_fill_(y**2 + x**2 > radius**2, OUTSIDE)
    elif chance < narrowed:
        for axis, size in ((1, height), (2, width)):
            low = int(rng.uniform(0, 0.3) * size)
            high = int(rng.uniform(0.7, 1.0) * size)
            tissues.narrow(axis, 0, low).fill_(OUTSIDE)
            tissues.narrow(axis, high, size - high).fill_(OUTSIDE)
    return tissues


def limit_field_of_view(tissues: Tensor, low: Sequence[int] | np.ndarray, high: Sequence[int] | np.ndarray) -> Tensor:
    """Return tissues (z, y, x) with nothing outside rows and columns from ``low`` to before ``high``, each (y, x).

    What lies beyond the tissues is left out.
    """
    field = torch.full_like(tissues, OUTSIDE)
    rows, columns = (
        slice(max(0, first), max(0, min(size, last)))
        for first, last, size in zip(low, high, tissues.shape[1:], strict=True)
    )
    field[:, rows, columns] = tissues[:, rows, columns]
    return field


def rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation matrix (3, 3) of angles in radians about z, y and x, for coordinates in (z, y, x) order."""
    about_z, about_y, about_x = angles
    # Each of the three has -sin above its diagonal; scipy's second one has +sin.
    matrix: np.ndarray = Rotation.from_euler("XYZ", (about_z, -about_y, about_x)).as_matrix()
    return matrix
