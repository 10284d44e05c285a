"""From the volume's grid to the model's and back.

`to_model_grid` makes a network's input, and `labels_on_input_grid` brings the network's answer back to the voxels
of the volume, whatever their orientation, obliqueness or anisotropy. They are one pair and tested as one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from segmamba.inference.model_grid import ROI_CONTEXT_MM, Box, ModelGrid, corners, cropped_geometry, model_grid
from segmamba.inference.separable_resample import is_aligned, smooth, smooth_and_resample
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.models.manifest import Channel, Model, Preprocessing

if TYPE_CHECKING:
    import torch

# Full width at half maximum of a gaussian, in standard deviations.
FWHM = math.sqrt(8 * math.log(2))
# Standard deviation of the kernel in voxels at most: beyond, it is cut off, and far beyond ITK's overflows to NaN.
WIDEST = 10.0
# Intensities divided by less than this would only be noise.
SMALLEST_UNIT = 1e-6
# Lead of each class over the next one where they are as probable: more than the rounding of the interpolation.
TIE_BREAKER = 1e-4
# The way back is done in blocks of this many voxels along each axis: it bounds the memory, few classes are found in
# any one block, and blocks with none but the background are passed over.
BLOCK = 64


def to_model_grid(
    volume: Volume, model: Model, roi: Box | None = None, context_mm: float = ROI_CONTEXT_MM
) -> tuple[np.ndarray, ModelGrid]:
    """Crop, resample and normalise a volume to a network's input.

    "linear" models: intensities are smoothed against aliasing, resampled linearly, then normalised channel by
    channel. "cubic" models: each channel is normalised, then resampled with cubic splines, without smoothing and
    without clipping the splines' overshoot (the order of the released SegMamba-V2 code).

    Parameters
    ----------
    volume : Volume
    model : Model
    roi : Box, optional
        Only this part of the patient is to be labelled.
    context_mm : float
        What the network sees around it.

    Returns
    -------
    image : ndarray of float32
        Shape (channels, z, y, x).
    grid : ModelGrid
        Where its voxels lie; `labels_on_input_grid` needs it.

    Raises
    ------
    InputError
        There is no body in the volume, or the ROI lies outside it.
    """
    preprocessing = model.preprocessing
    grid = model_grid(volume, preprocessing, roi, context_mm)
    image = to_image(volume.array[grid.crop], cropped_geometry(volume.geometry, grid.crop))
    if preprocessing.interpolation == "cubic":
        resolved = [resolve(channel, image) for channel in preprocessing.channels]
        images = [
            _resample(
                normalise(image, channel), grid.geometry, sitk.sitkBSpline3, _normalised(channel, preprocessing.fill)
            )
            for channel in resolved
        ]
    else:
        low, high = intensity_range(preprocessing)
        fill = min(max(preprocessing.fill, low), high)
        image = _resample_without_aliasing(sitk.Clamp(image, sitk.sitkFloat32, low, high), grid.geometry, fill)
        images = [normalise(image, resolve(channel, image)) for channel in preprocessing.channels]
    return np.stack([sitk.GetArrayViewFromImage(image) for image in images]), grid


def intensity_range(preprocessing: Preprocessing) -> tuple[float, float]:
    """Return the intensities that matter to any channel.

    The volume is clamped to them first, so that neither metal nor a filler value of -2048 or -32768 outside the
    field of view leaks into its surroundings when the volume is smoothed or interpolated.
    """
    if any(channel.kind != "clip" for channel in preprocessing.channels):
        return -float(np.finfo(np.float32).max), float(np.finfo(np.float32).max)
    return min(c.low for c in preprocessing.channels), max(c.high for c in preprocessing.channels)


def resolve(channel: Channel, image: sitk.Image) -> Channel:
    """Return a "clip" channel with all figures known: those of other kinds are measured on ``image``."""
    if channel.kind == "clip":
        return channel
    array = sitk.GetArrayViewFromImage(image)
    if channel.kind == "relative":
        assert channel.mean is not None and channel.std is not None
        unit = bright_mean(array)
        return Channel("clip", channel.low * unit, channel.high * unit, channel.mean * unit, channel.std * unit)
    inside = array[array != 0]
    low, high = np.percentile(inside, (channel.low, channel.high)) if inside.size else (0.0, 0.0)
    clipped = np.clip(array, low, high)
    # A flat volume becomes zeros.
    std = float(clipped.std(dtype=np.float64)) or 1.0
    return Channel("clip", float(low), float(high), float(clipped.mean(dtype=np.float64)), std)


def bright_mean(array: np.ndarray) -> float:
    """Return the mean of the voxels brighter than the mean: a unit for MR, which has none. 1 for a constant array."""
    bright = array[array > array.mean(dtype=np.float64)]
    return max(float(bright.mean(dtype=np.float64)), SMALLEST_UNIT) if bright.size else 1.0


def normalise(image: sitk.Image, channel: Channel) -> sitk.Image:
    """Clip, subtract the mean and divide by the standard deviation of a resolved channel; gives float32."""
    assert channel.mean is not None and channel.std is not None
    clipped = sitk.Clamp(image, sitk.sitkFloat32, channel.low, channel.high)
    return sitk.ShiftScale(clipped, -channel.mean, 1 / channel.std)


def _normalised(channel: Channel, value: float) -> float:
    assert channel.mean is not None and channel.std is not None
    return (min(max(value, channel.low), channel.high) - channel.mean) / channel.std


def outside_values(preprocessing: Preprocessing, image: torch.Tensor) -> list[float]:
    """Return what each channel (first axis) of a network's input holds outside the volume."""
    if preprocessing.padding is not None:
        return [preprocessing.padding] * len(image)
    return [
        _normalised(channel, preprocessing.fill) if channel.kind == "clip" else float(values.min())
        for channel, values in zip(preprocessing.channels, image, strict=True)
    ]


def _resample_without_aliasing(image: sitk.Image, geometry: Geometry, fill: float) -> sitk.Image:
    """Interpolate linearly, after smoothing along the axes that are to be sampled more coarsely.

    A voxel of width s is taken for a gaussian whose full width at half maximum is s, and variances add up: what is
    missing from the input's width to the model's is sigma^2 = (model^2 - input^2) / FWHM^2. For an oblique volume,
    the model's width along an input axis is the root mean square of its spacings, weighted by their share in it. Voxels
    far finer than the model's are first averaged in blocks.
    """
    shares = np.reshape(geometry.direction, (3, 3)).T @ np.reshape(image.GetDirection(), (3, 3))
    widths_squared = np.square(geometry.spacing) @ shares**2
    variances = _missing_variances(widths_squared, image)
    blocks = np.ceil(np.sqrt(variances) / image.GetSpacing() / WIDEST).astype(int)
    blocks = np.clip(blocks, 1, image.GetSize())
    if blocks.max() > 1:
        image = sitk.BinShrink(image, blocks.tolist())
        variances = _missing_variances(widths_squared, image)
    if is_aligned(image, geometry):
        return smooth_and_resample(image, variances, geometry, fill)
    return _resample(smooth(image, variances) if variances.any() else image, geometry, sitk.sitkLinear, fill)


def _missing_variances(widths_squared: np.ndarray, image: sitk.Image) -> np.ndarray:
    return np.maximum(0.0, widths_squared - np.square(image.GetSpacing())) / FWHM**2


def _resample(image: sitk.Image, geometry: Geometry, interpolator: int, fill: float) -> sitk.Image:
    return sitk.Resample(
        image,
        geometry.size,
        sitk.Transform(),
        interpolator,
        geometry.origin,
        geometry.spacing,
        geometry.direction,
        fill,
        sitk.sitkFloat32,
    )


def labels_on_input_grid(
    probabilities: torch.Tensor,
    grid: ModelGrid,
    channel_values: Sequence[int],
    device: torch.device | str | None = None,
    logits: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Bring class probabilities on a model's grid back to the volume's own voxels.

    At the centre of each voxel of the volume the probabilities are interpolated trilinearly, and the most probable
    class gives the label; the background wins ties, and then the lower class. Or logits are interpolated, and become
    probabilities there: then a sure voxel reaches further than an unsure one beside it.

    Parameters
    ----------
    probabilities : torch.Tensor
        Shape (classes, z, y, x) on ``grid.geometry``, on any device, in half or single precision; class 0 is the
        background, and the classes sum to one.
    grid : ModelGrid
        From `to_model_grid`.
    channel_values : sequence of int
        Label value of each class.
    device : device, optional
        Where to interpolate, block by block; by default where the probabilities are.
    logits : bool
        ``probabilities`` are logits.

    Returns
    -------
    labels : ndarray of uint8
        Shape (z, y, x) on ``grid.input``; 0 outside the ROI.
    confidence : ndarray of uint8
        The probability of the label at each labelled voxel, times 255; 0 in the background.
    """
    import torch

    labels = np.zeros(grid.input.size[::-1], dtype=np.uint8)
    confidence = np.zeros_like(labels)
    to_model = np.linalg.inv(grid.geometry.index_to_lps()) @ grid.input.index_to_lps()
    region = _labelled_region(probabilities, grid, to_model)
    if region is None:
        return labels, confidence
    values = torch.tensor(channel_values, dtype=torch.uint8)
    for block in _blocks(region):
        classes, certainty = _classes_in_block(probabilities, block, to_model, device, logits)
        if grid.roi is not None:
            classes *= _inside(grid.roi, block, grid.input)
        labels[block] = values[classes].numpy()
        confidence[block] = (certainty * (classes > 0) * 255).round().to(torch.uint8).numpy()
    return labels, confidence


def _foreground_box(probabilities: torch.Tensor) -> np.ndarray | None:
    """Return the first and last index, shape (2, 3) in x, y, z order, of voxels where the background does not win."""
    if len(probabilities) == 1:  # nothing but background was found
        return None
    foreground = probabilities[1:].amax(dim=0) > probabilities[0]
    if not foreground.any():
        return None
    ends = []
    for axis in (2, 1, 0):
        others = tuple(other for other in range(3) if other != axis)
        inside = foreground.any(dim=others[1]).any(dim=others[0]).nonzero()
        ends.append((int(inside[0]), int(inside[-1])))
    return np.array(ends, dtype=float).T


def _labelled_region(
    probabilities: torch.Tensor, grid: ModelGrid, to_model: np.ndarray
) -> tuple[slice, slice, slice] | None:
    """Return the part of the volume (slices along z, y, x) that can get labels.

    Where the background wins at all eight surrounding voxels of the model's grid, it wins between them too.
    """
    box = _foreground_box(probabilities)
    if box is None:
        return None
    indices = corners(box[0] - 1, box[1] + 1) @ np.linalg.inv(to_model).T
    low, high = np.ceil(indices[:, :3].min(axis=0)), np.floor(indices[:, :3].max(axis=0))
    region = []
    for part, first, last in zip(grid.crop, reversed(low), reversed(high), strict=True):
        region.append(slice(max(part.start, int(first)), min(part.stop, int(last) + 1)))
        if region[-1].start >= region[-1].stop:
            return None
    return region[0], region[1], region[2]


def _blocks(region: tuple[slice, slice, slice]) -> Iterator[tuple[slice, slice, slice]]:
    starts = [range(part.start, part.stop, BLOCK) for part in region]
    for z, y, x in itertools.product(*starts):
        ends = [min(start + BLOCK, part.stop) for start, part in zip((z, y, x), region, strict=True)]
        yield slice(z, ends[0]), slice(y, ends[1]), slice(x, ends[2])


def _classes_in_block(
    probabilities: torch.Tensor,
    block: tuple[slice, ...],
    to_model: np.ndarray,
    device: torch.device | str | None,
    logits: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the winning class and its probability at the voxels of a block, on the CPU; both of shape (z, y, x)."""
    import torch

    first = [part.start for part in reversed(block)]
    last = [part.stop - 1 for part in reversed(block)]
    indices = (corners(np.array(first), np.array(last)) @ to_model.T)[:, :3]
    size = np.array(probabilities.shape[:0:-1])
    low = np.clip(np.floor(indices.min(axis=0)), 0, size - 1).astype(int)
    high = np.clip(np.ceil(indices.max(axis=0)), low, size - 1).astype(int)
    x, y, z = (slice(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    part = probabilities[:, z, y, x].to(device)
    if part.device.type not in ("cpu", "cuda"):
        # Other devices (MPS) do not all interpolate in 3-D.
        part = part.cpu()
    # A class that wins has at least an equal share; most classes never get near it in one block. The background stays.
    possible = (part.flatten(1).amax(dim=1) > 0.9 / len(part)) | logits
    possible[0] = True
    active = possible.nonzero()[:, 0]
    shape = tuple(step.stop - step.start for step in block)
    if len(active) == 1:
        return torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    coordinates = _positions(block, to_model, low, high).to(part.device)
    # As a batch of slices: PyTorch spreads a batch over the processors, and not a volume.
    volumes = part[active].float().expand(len(coordinates), -1, -1, -1, -1)
    values = torch.nn.functional.grid_sample(
        volumes, coordinates[:, None], mode="bilinear", padding_mode="border", align_corners=True
    )
    values = values[:, :, 0].transpose(0, 1)
    if logits:
        values = values.softmax(dim=0)
    # Between two voxels of a sure network ties are common, and rounding must not decide them.
    values -= TIE_BREAKER * torch.arange(len(active), device=values.device)[:, None, None, None]
    certainty, winner = values[1:].max(dim=0)
    classes = torch.where(certainty > values[0], active[1:][winner], 0)
    return classes.cpu(), certainty.cpu()


def _positions(block: tuple[slice, ...], to_model: np.ndarray, low: np.ndarray, high: np.ndarray) -> torch.Tensor:
    """Return where a block's voxels lie in model voxels ``low`` to ``high``, scaled to -1 to 1: shape (z, y, x, 3)."""
    import torch

    scale = 2.0 / np.maximum(high - low, 1)
    matrix = torch.from_numpy(to_model[:3] * scale[:, None]).float()
    offset = torch.from_numpy((to_model[:3, 3] - low) * scale - 1.0).float()
    k, j, i = (torch.arange(part.start, part.stop, dtype=torch.float32) for part in block)
    return (
        k[:, None, None, None] * matrix[:, 2]
        + j[None, :, None, None] * matrix[:, 1]
        + (i[None, None, :, None] * matrix[:, 0] + offset)
    )


def _inside(roi: Box, block: tuple[slice, ...], geometry: Geometry) -> torch.Tensor:
    """Tell which voxels of a block have their centre in a box: a tensor of bool, shape (z, y, x)."""
    import torch

    matrix = geometry.index_to_lps()
    k, j, i = (torch.arange(part.start, part.stop, dtype=torch.float64) for part in block)
    inside = torch.ones(len(k), len(j), len(i), dtype=torch.bool)
    for axis, (low, high) in enumerate(zip(roi.lps_min, roi.lps_max, strict=True)):
        along_x, along_y, along_z, start = matrix[axis].tolist()
        position = k[:, None, None] * along_z + j[None, :, None] * along_y + (i * along_x + start)
        inside &= (position >= low) & (position <= high)
    return inside
