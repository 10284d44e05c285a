"""What a scanner does to an image, on any device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def blur(image: Tensor, sigma: float) -> Tensor:
    """Return a (z, y, x) image after a separable gaussian of ``sigma`` voxels."""
    radius = max(1, int(np.ceil(2.5 * sigma)))
    x = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    out = image[None, None]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = len(kernel)
        padding = [0, 0, 0, 0, 0, 0]
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
        out = functional.conv3d(functional.pad(out, padding, mode="replicate"), kernel.view(shape))
    return out[0, 0]


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


def surface(codes: Tensor) -> Tensor:
    """Return the voxels (z, y, x) that have another code among their 26 neighbours."""
    values = codes.to(torch.float32)[None, None]
    highest = functional.max_pool3d(values, 3, 1, 1)[0, 0]
    lowest = -functional.max_pool3d(-values, 3, 1, 1)[0, 0]
    return highest != lowest
