"""Smoothing and linear resampling of volumes whose axes are those of the new grid, axis by axis.

Then both are one matrix an axis, and each product makes the volume smaller for the next. It gives what ITK's filters
give, which know nothing of that and smooth every voxel of the volume first, to rounding, in a fifth of their time.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from segmamba.io.volume import Geometry

# Voxels across the smoothing kernel at most, and the share of it that may be cut off.
MAXIMUM_KERNEL = 64
KERNEL_ERROR = 0.005
# Largest cosine between axes that count as at right angles: a thousandth of a voxel at the far end of a volume.
ALIGNED = 2e-6


def is_axis_aligned(image: sitk.Image, geometry: Geometry) -> bool:
    """Tell whether an image's axes are, in any order and direction, those of a grid."""
    cosines = np.abs(direction_cosines(image, geometry))
    return bool(np.all((cosines < ALIGNED) | (np.abs(cosines - 1) < ALIGNED)))


def smooth(image: sitk.Image, variances: np.ndarray) -> sitk.Image:
    """Smooth with a gaussian of these variances along x, y, z, in square millimetres."""
    return sitk.DiscreteGaussian(image, variances.tolist(), MAXIMUM_KERNEL, KERNEL_ERROR, True)


def separable_resample(image: sitk.Image, variances: np.ndarray, geometry: Geometry, fill: float) -> sitk.Image:
    """Smooth a volume, then interpolate it linearly on a grid that it is aligned with.

    Parameters
    ----------
    image : Image
        float32.
    variances : ndarray
        Of the gaussian along the image's x, y, z, in square millimetres.
    geometry : Geometry
        The new grid; `is_axis_aligned` with the image.
    fill : float
        What voxels outside of the image get.

    Returns
    -------
    Image
        float32, on ``geometry``.
    """
    cosines = direction_cosines(image, geometry).round()
    start = np.reshape(image.GetDirection(), (3, 3)).T @ np.subtract(geometry.origin, image.GetOrigin())
    matrices, order = [], [0, 0, 0]
    for axis in range(3):
        new = int(np.abs(cosines[:, axis]).argmax())
        step = cosines[new, axis] * geometry.spacing[new]
        matrices.append(_matrix(image, axis, variances[axis], start[axis], step, geometry.size[new]))
        order[2 - new] = 2 - axis
    x, y, z = matrices
    array = np.matmul(y, np.matmul(sitk.GetArrayViewFromImage(image), x.T))
    array = (z @ array.reshape(len(array), -1)).reshape(len(z), *array.shape[1:])
    # The rows of voxels outside are zero, those of others sum to one.
    within = [matrix.sum(axis=1) > 0.5 for matrix in (z, y, x)]
    for axis, inside in enumerate(within):
        np.moveaxis(array, axis, 0)[~inside] = fill
    made = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(order)))
    made.SetOrigin(geometry.origin)
    made.SetSpacing(geometry.spacing)
    made.SetDirection(geometry.direction)
    return made


def direction_cosines(image: sitk.Image, geometry: Geometry) -> np.ndarray:
    """Return the cosines between the axes of a grid (rows) and those of an image (columns)."""
    cosines: np.ndarray = np.reshape(geometry.direction, (3, 3)).T @ np.reshape(image.GetDirection(), (3, 3))
    return cosines


def _matrix(image: sitk.Image, axis: int, variance: float, start: float, step: float, count: int) -> np.ndarray:
    """Return the weights (count, voxels of the image along an axis) of the image's voxels in the new ones.

    They are what ITK makes of an image with a one on its diagonal. The first new voxel lies ``start`` mm behind the
    image's first one, and the next ``step`` mm further on.
    """
    ones = sitk.GetImageFromArray(np.eye(image.GetSize()[axis], dtype=np.float32))
    ones.SetSpacing((image.GetSpacing()[axis], 1.0))
    if variance > 0:
        ones = smooth(ones, np.array([variance, 0.0]))
    direction = (float(np.sign(step)), 0.0, 0.0, 1.0)
    size, spacing = (count, ones.GetSize()[1]), (abs(step), 1.0)
    rows = sitk.Resample(
        ones, size, sitk.Transform(2, sitk.sitkIdentity), sitk.sitkLinear, (start, 0.0), spacing, direction, 0.0
    )
    return np.ascontiguousarray(sitk.GetArrayViewFromImage(rows).T)
