"""Smoothing and linear resampling of volumes whose axes are those of the new grid, axis by axis.

Then both are one matrix an axis, and each product makes the volume smaller for the next. It gives what ITK's filters
give, which know nothing of that and smooth every voxel of the volume first, to rounding, in a fifth of their time; and
it runs on a GPU, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from segmamba.io.volume import Geometry
from segmamba.utils.parallel import at_once

if TYPE_CHECKING:
    import torch

# Voxels across the smoothing kernel at most, and the share of it that may be cut off.
MAXIMUM_KERNEL = 64
KERNEL_ERROR = 0.005
# Largest cosine between axes that count as at right angles: a thousandth of a voxel at the far end of a volume.
ALIGNED = 2e-6


def is_axis_aligned(source: Geometry, geometry: Geometry) -> bool:
    """Tell whether the axes of one grid are, in any order and direction, those of another."""
    cosines = np.abs(direction_cosines(source, geometry))
    return bool(np.all((cosines < ALIGNED) | (np.abs(cosines - 1) < ALIGNED)))


def smooth(image: sitk.Image, variances: np.ndarray) -> sitk.Image:
    """Smooth with a gaussian of these variances along x, y, z, in square millimetres."""
    return sitk.DiscreteGaussian(image, variances.tolist(), MAXIMUM_KERNEL, KERNEL_ERROR, True)


def separable_resample(
    values: torch.Tensor, source: Geometry, variances: np.ndarray, geometry: Geometry, fill: float
) -> torch.Tensor:
    """Smooth a volume, then interpolate it linearly on a grid that it is aligned with.

    Parameters
    ----------
    values : Tensor of float32
        Shape (z, y, x), on any device.
    source : Geometry
        Of the volume.
    variances : ndarray
        Of the gaussian along the volume's x, y, z, in square millimetres.
    geometry : Geometry
        The new grid; `is_axis_aligned` with the volume's.
    fill : float
        What voxels outside of the volume get.

    Returns
    -------
    Tensor of float32
        Shape (z, y, x) on ``geometry``, contiguous, on the same device.
    """
    import torch

    cosines = direction_cosines(source, geometry).round()
    start = np.reshape(source.direction, (3, 3)).T @ np.subtract(geometry.origin, source.origin)
    new = [int(np.abs(cosines[:, axis]).argmax()) for axis in range(3)]

    def matrix(axis: int) -> torch.Tensor:
        step = cosines[new[axis], axis] * geometry.spacing[new[axis]]
        voxels = (source.size[axis], source.spacing[axis])
        rows = _matrix(voxels, variances[axis], start[axis], step, geometry.size[new[axis]])
        return torch.from_numpy(rows).to(values.device)

    x, y, z = at_once(matrix, range(3)).values()
    order = [2 - new.index(2 - axis) for axis in range(3)]
    made = torch.matmul(y, torch.matmul(values, x.T))
    made = (z @ made.flatten(1)).view(len(z), *made.shape[1:])
    # The rows of voxels outside are zero, those of others sum to one.
    k, j, i = (rows.sum(dim=1) > 0.5 for rows in (z, y, x))
    inside = k[:, None, None] & j[:, None] & i
    made.masked_fill_(~inside, fill)
    return made.permute(order).contiguous()


def direction_cosines(source: Geometry, geometry: Geometry) -> np.ndarray:
    """Return the cosines between the axes of a grid (rows) and those of a source (columns)."""
    cosines: np.ndarray = np.reshape(geometry.direction, (3, 3)).T @ np.reshape(source.direction, (3, 3))
    return cosines


def _matrix(voxels: tuple[int, float], variance: float, start: float, step: float, count: int) -> np.ndarray:
    """Return the weights (count, voxels) that the voxels along an axis have in the new ones.

    They are what ITK makes of an image with a one on its diagonal. ``voxels`` are their number and their size in mm.
    The first new voxel lies ``start`` mm behind the first one, and the next ``step`` mm further on.
    """
    ones = sitk.GetImageFromArray(np.eye(voxels[0], dtype=np.float32))
    ones.SetSpacing((voxels[1], 1.0))
    if variance > 0:
        ones = smooth(ones, np.array([variance, 0.0]))
    direction = (float(np.sign(step)), 0.0, 0.0, 1.0)
    size, spacing = (count, ones.GetSize()[1]), (abs(step), 1.0)
    rows = sitk.Resample(
        ones, size, sitk.Transform(2, sitk.sitkIdentity), sitk.sitkLinear, (start, 0.0), spacing, direction, 0.0
    )
    return np.ascontiguousarray(sitk.GetArrayViewFromImage(rows).T)
