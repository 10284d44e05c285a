"""Effects of a scanner on an image, on any device."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

# Full width at half maximum of a gaussian in standard deviations.
FWHM = 2.3548


def upload(values: np.ndarray, device: torch.device) -> Tensor:
    """Return float32 values on a device, without waiting for it."""
    tensor = torch.from_numpy(values).float()
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # from other memory the copy would wait until the GPU is done
    return tensor.to(device, non_blocking=True)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Return a (z, y, x) image after a gaussian of ``sigma`` voxels; its border is repeated.

    A product with a matrix along each axis: libraries serve convolutions of one channel badly.
    """
    radius = max(1, int(np.ceil(2.5 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    along = {
        n: upload(ndimage.correlate1d(np.eye(n), kernel, axis=0, mode="nearest"), image.device)
        for n in set(image.shape)
    }
    depth, height, width = image.shape
    image = along[height] @ image @ along[width].T
    return (along[depth] @ image.reshape(depth, -1)).view(depth, height, width)


def thick_slices(image: Tensor, axis: int, factor: int) -> Tensor:
    """Return a (z, y, x) image averaged over ``factor`` slices and interpolated back, every voxel at its place."""
    kernel = [1, 1, 1]
    kernel[axis] = factor
    thick = functional.avg_pool3d(image[None, None], kernel, ceil_mode=True)
    # The last slice may reach beyond the image: interpolated to whole slices and cut off, not squeezed in.
    whole = list(image.shape)
    whole[axis] = factor * thick.shape[2 + axis]
    back = functional.interpolate(thick, size=whole, mode="trilinear", align_corners=False)[0, 0]
    return back.narrow(axis, 0, image.shape[axis])


def gaussian_profile(length: int, step: float, thickness: float, centres: np.ndarray) -> np.ndarray:
    """Return how much each of ``length`` fine slices of ``step`` mm counts for each thick one: (thick, fine).

    The profile is a gaussian whose full width at half maximum is the thickness; what a thick slice is missing of the
    fine ones' own width is added. Rows add up to 1. ``centres`` are those of the thick slices, in mm from the outer
    face of the first fine one.
    """
    fine = (np.arange(length) + 0.5) * step
    sigma = np.sqrt(max(thickness**2 - step**2, (0.1 * step) ** 2)) / FWHM
    profile = np.exp(-0.5 * ((fine - centres[:, None]) / sigma) ** 2)
    weights: np.ndarray = profile / np.maximum(profile.sum(axis=1, keepdims=True), 1e-12)
    return weights


def slice_matrix(length: int, step: float, thickness: float, start: float = 0.0) -> np.ndarray:
    """Return what thick slices make of ``length`` fine ones, interpolated back to these: a matrix (length, length).

    Each thick slice is the mean under a gaussian whose full width at half maximum is its thickness; between their
    middles the image is interpolated linearly, beyond the first and the last one it stays as there.

    Parameters
    ----------
    length : int
    step, thickness : float
        In mm.
    start : float
        Where the first thick slice begins, in mm from the outer face of the first fine one; 0 or less.
    """
    fine = (np.arange(length) + 0.5) * step
    centres = np.arange(start + thickness / 2, max(length * step, start + thickness), thickness)
    back = np.stack([np.interp(fine, centres, row) for row in np.eye(len(centres))], axis=1)
    matrix: np.ndarray = back @ gaussian_profile(length, step, thickness, centres)
    return matrix


def profiled_slices(image: Tensor, axis: int, matrix: np.ndarray) -> Tensor:
    """Return a (z, y, x) image after a `slice_matrix` along an axis."""
    moved = image.movedim(axis, 0)
    result = upload(matrix, image.device) @ moved.reshape(len(moved), -1)
    return result.view(moved.shape).movedim(0, axis)


def surface(tissues: Tensor) -> Tensor:
    """Return the voxels (z, y, x) that have another label among their 26 neighbours."""
    values = tissues.to(torch.float32)[None, None]
    highest = functional.max_pool3d(values, 3, 1, 1)[0, 0]
    lowest = -functional.max_pool3d(-values, 3, 1, 1)[0, 0]
    return highest != lowest
