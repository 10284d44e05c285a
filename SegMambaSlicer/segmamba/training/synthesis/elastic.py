"""Where a sample lies in an anatomy, and how the anatomy is bent: codes, and the way to each vertebra's centre."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segmamba.training.synthesis.context import Canvas
from segmamba.training.synthesis.tissue_labels import AIR, OUTSIDE, VERTEBRAE
from segmamba.training.vertebrae.tissue_maps import Anatomy

# Size and amplitude in mm of the bumps of the three scales of elastic deformation.
ELASTIC = ((107.0, 7.0), (46.0, 3.0), (20.0, 0.9))
# Standard deviation (z, y, x) of a crop's centre around the chosen vertebra, as a part of the patch.
JITTER = (0.14, 0.115, 0.13)
# Steps of the fixed-point iteration that finds where a bent map puts a centre.
INVERSION_STEPS = 3


def choose(anatomies: Sequence[Anatomy], canvas: Canvas) -> tuple[Anatomy, np.ndarray]:
    """Return an anatomy and a crop centre (z, y, x in its voxels).

    All levels are equally likely, then all subjects that have it, then all maps of the subject.
    """
    rng = canvas.rng
    level = int(rng.choice(sorted({label for anatomy in anatomies for label in anatomy.centres})))
    subjects = sorted({a.subject for a in anatomies if level in a.centres})
    subject = rng.choice(subjects)
    candidates = [a for a in anatomies if a.subject == subject and level in a.centres]
    anatomy = candidates[rng.integers(len(candidates))]
    if rng.random() < 0.08:
        return anatomy, rng.uniform(0, 1, 3) * anatomy.codes.shape
    jitter = rng.normal(0, np.array(JITTER) * canvas.patch) * canvas.spacing / anatomy.spacing
    return anatomy, np.array(anatomy.centres[level]) + jitter


def deformed(anatomy: Anatomy, centre: np.ndarray, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """Look the codes of a patch up through a random smooth map (nearest neighbour).

    Parameters
    ----------
    anatomy : Anatomy
    centre : ndarray (3,)
        Of the patch, z, y, x in the anatomy's voxels.
    canvas : Canvas

    Returns
    -------
    codes : Tensor (z, y, x), uint8
    centres : Tensor (27, 3)
        Where the map puts each vertebra's centre, in voxels of the patch (perhaps beyond it); only for those in the
        anatomy.
    """
    rng, scale = canvas.rng, canvas.spacing / anatomy.spacing
    turned = rotation(rng.normal(0, np.deg2rad((12, 8, 8))))
    matrix = turned * rng.uniform(0.82, 1.22) @ np.diag(rng.uniform(0.93, 1.07, 3))
    if rng.random() < 0.5:
        matrix = matrix @ np.diag((1, 1, -1))
    matrix = matrix * scale
    places = np.zeros((VERTEBRAE + 1, 3))
    for label, place in anatomy.centres.items():
        places[label] = place
    inverse = np.linalg.inv(matrix)
    upload = canvas.upload(np.vstack([matrix, centre, inverse, places - centre]))
    affine, offset, inverse_affine, relative = upload[:3], upload[3], upload[4:7], upload[7:]
    bend = _elastic(anatomy.spacing, canvas)
    z, y, x = (torch.arange(n, device=canvas.device, dtype=torch.float32) - (n - 1) / 2 for n in canvas.patch)
    columns = affine.T[:, :, None, None, None]
    where = columns[0] * z[:, None, None] + columns[1] * y[:, None] + columns[2] * x + offset[:, None, None, None]
    k, j, i = (where + bend).round().long()
    depth, height, width = anatomy.codes.shape
    # Above and below the map nothing is known; to the sides there is air.
    known = (k >= 0) & (k < depth)
    inside = (j >= 0) & (j < height) & (i >= 0) & (i < width)
    flat = ((k * height + j) * width + i).clamp(0, anatomy.codes.numel() - 1)
    codes = anatomy.codes.flatten()[flat].masked_fill(~inside, AIR).masked_fill(~known, OUTSIDE)
    return codes, _inverted(relative, inverse_affine, bend, canvas)


def _elastic(spacing: float, canvas: Canvas) -> Tensor:
    """Return a displacement (3, z, y, x) in voxels of ``spacing``."""
    bend = torch.zeros((3, *canvas.patch), device=canvas.device)
    for size_mm, amplitude_mm in ELASTIC:
        bend += amplitude_mm / spacing * canvas.rng.uniform(0, 1.2) * canvas.smooth_noise(3, size_mm)
    return bend


def _inverted(relative: Tensor, inverse: Tensor, bend: Tensor, canvas: Canvas) -> Tensor:
    """Return the voxels (n, 3) that a map takes to points (n, 3), given relative to the crop's centre."""
    largest = canvas.upload(np.array(canvas.patch) - 1.0)
    middle = largest / 2
    found = relative @ inverse.T + middle
    for _ in range(INVERSION_STEPS):
        k, j, i = torch.minimum(found.clamp(min=0), largest).round().long().T
        found = (relative - bend[:, k, j, i].T) @ inverse.T + middle
    return found


def cut_field_of_view(codes: Tensor, canvas: Canvas, narrowed: float = 0.28) -> Tensor:
    """Cut the field of view as scanners and readers do: at a slice, to a cylinder, or to a tight box.

    ``narrowed`` is the part of the samples that are cut within the slice: scans of the spine often are, of the abdomen
    seldom.
    """
    rng, (depth, height, width) = canvas.rng, canvas.patch
    codes = codes.clone()
    for _ in range(2):
        if rng.random() < 0.18:
            cut = int(rng.uniform(0.05, 0.45) * depth)
            codes[slice(depth - cut, depth) if rng.random() < 0.5 else slice(0, cut)] = OUTSIDE
    chance = rng.random()
    if chance < 0.64 * narrowed:
        y = torch.arange(height, device=canvas.device)[:, None] - (height / 2 + rng.normal(0, height / 12))
        x = torch.arange(width, device=canvas.device) - (width / 2 + rng.normal(0, width / 12))
        radius = rng.uniform(65, 170) / canvas.spacing
        codes.masked_fill_(y**2 + x**2 > radius**2, OUTSIDE)
    elif chance < narrowed:
        for axis, size in ((1, height), (2, width)):
            low = int(rng.uniform(0, 0.3) * size)
            high = int(rng.uniform(0.7, 1.0) * size)
            codes.narrow(axis, 0, low).fill_(OUTSIDE)
            codes.narrow(axis, high, size - high).fill_(OUTSIDE)
    return codes


def rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation by angles (radians) about z, y and x, for coordinates in (z, y, x) order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        one, two = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[one, one] = turn[two, two] = np.cos(angle)
        turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix
