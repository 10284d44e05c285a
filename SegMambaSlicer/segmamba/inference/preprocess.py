"""From the volume's grid to the model's and back.

`resample_to_model` makes a network's input, and `resample_to_input` brings the network's answer back to the voxels
of the volume, whatever their orientation, obliqueness or anisotropy. They are one pair and tested as one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from segmamba.errors import InputError
from segmamba.inference.model_grid import ROI_CONTEXT_MM, Box, ModelGrid, cropped_geometry, model_grid
from segmamba.inference.separable_resample import is_axis_aligned, separable_resample, smooth
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.models.manifest import IntensityNormalization, Model, Preprocessing

if TYPE_CHECKING:
    import torch

# Full width at half maximum of a gaussian, in standard deviations.
FWHM = math.sqrt(8 * math.log(2))
# Standard deviation of the kernel in voxels at most: beyond, it is cut off, and far beyond ITK's overflows to NaN.
WIDEST = 10.0
# Intensities divided by less than this would only be noise.
SMALLEST_UNIT = 1e-6


def resample_to_model(
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
        Where its voxels lie; `resample_to_input` needs it.

    Raises
    ------
    InputError
        There is no body in the volume, the ROI lies outside it, or the model takes more volumes.
    """
    grid = model_grid(volume, model.preprocessing, roi, context_mm)
    cropped = cropped_geometry(volume.geometry, grid.crop)
    images = [
        image
        for array, preprocessing in _by_volume(volume, model)
        for image in _network_channels(to_image(array[grid.crop], cropped), preprocessing, grid.geometry)
    ]
    return np.stack([sitk.GetArrayViewFromImage(image) for image in images]), grid


def _by_volume(volume: Volume, model: Model) -> list[tuple[np.ndarray, Preprocessing]]:
    """Return each of the volumes that a model takes with its own preprocessing; of most models it is one volume."""
    if not model.input_channels:
        return [(volume.array, model.preprocessing)]
    if len(volume.channels) != len(model.input_channels):
        raise InputError(
            f"The model '{model.id}' takes {len(model.input_channels)} volumes and got {len(volume.channels) or 1}: "
            "give the others as its channels."
        )
    return list(zip(volume.channels, map(partial(preprocessing_of, model), range(len(volume.channels))), strict=True))


def preprocessing_of(model: Model, number: int) -> Preprocessing:
    """Return the preprocessing of one of the volumes of a model that takes several."""
    fill_value = model.input_channels[number].fill_value
    return replace(
        model.preprocessing,
        normalization=(model.preprocessing.normalization[number],),
        fill_value=model.preprocessing.fill_value if fill_value is None else fill_value,
    )


def _network_channels(image: sitk.Image, preprocessing: Preprocessing, geometry: Geometry) -> list[sitk.Image]:
    """Return the channels that a network gets of one volume, on its grid."""
    if preprocessing.interpolation == "cubic":
        resolved = [resolve(channel, image) for channel in preprocessing.normalization]
        fills = [_normalised(channel, preprocessing.fill_value) for channel in resolved]
        return [
            _resample(normalise(image, channel), geometry, sitk.sitkBSpline3, fill)
            for channel, fill in zip(resolved, fills, strict=True)
        ]
    low, high = intensity_range(preprocessing)
    fill = min(max(preprocessing.fill_value, low), high)
    image = resample_without_aliasing(sitk.Clamp(image, sitk.sitkFloat32, low, high), geometry, fill)
    return [normalise(image, resolve(channel, image)) for channel in preprocessing.normalization]


def intensity_range(preprocessing: Preprocessing) -> tuple[float, float]:
    """Return the intensities that matter to any channel.

    The volume is clamped to them first, so that neither metal nor a filler value of -2048 or -32768 outside the
    field of view leaks into its surroundings when the volume is smoothed or interpolated.
    """
    if any(channel.scheme != "clip" for channel in preprocessing.normalization):
        return -float(np.finfo(np.float32).max), float(np.finfo(np.float32).max)
    return min(c.low for c in preprocessing.normalization), max(c.high for c in preprocessing.normalization)


def resolve(channel: IntensityNormalization, image: sitk.Image) -> IntensityNormalization:
    """Return a "clip" normalization with all parameters known: those of other schemes are measured on ``image``."""
    if channel.scheme == "clip":
        return channel
    array = sitk.GetArrayViewFromImage(image)
    if channel.scheme == "relative":
        assert channel.mean is not None and channel.std is not None
        unit = bright_mean(array)
        return IntensityNormalization(
            "clip", channel.low * unit, channel.high * unit, channel.mean * unit, channel.std * unit
        )
    inside = array if channel.scheme == "zscore" else array[array != 0]
    low, high = np.percentile(inside, (channel.low, channel.high)) if inside.size else (0.0, 0.0)
    clipped = np.clip(array, low, high)
    # A flat volume becomes zeros.
    std = float(clipped.std(dtype=np.float64)) or 1.0
    return IntensityNormalization("clip", float(low), float(high), float(clipped.mean(dtype=np.float64)), std)


def bright_mean(array: np.ndarray) -> float:
    """Return the mean of the voxels brighter than the mean: a unit for MR, which has none. 1 for a constant array."""
    bright = array[array > array.mean(dtype=np.float64)]
    return max(float(bright.mean(dtype=np.float64)), SMALLEST_UNIT) if bright.size else 1.0


def normalise(image: sitk.Image, channel: IntensityNormalization) -> sitk.Image:
    """Clip, subtract the mean and divide by the standard deviation of a resolved channel; gives float32."""
    assert channel.mean is not None and channel.std is not None
    clipped = sitk.Clamp(image, sitk.sitkFloat32, channel.low, channel.high)
    normalised: sitk.Image = sitk.ShiftScale(clipped, -channel.mean, 1 / channel.std)
    return normalised


def _normalised(channel: IntensityNormalization, value: float) -> float:
    assert channel.mean is not None and channel.std is not None
    return (min(max(value, channel.low), channel.high) - channel.mean) / channel.std


def padding_values(model: Model, image: torch.Tensor) -> tuple[float, ...]:
    """Return what each channel (first axis) of a network's input holds outside the volume."""
    preprocessing = model.preprocessing
    if preprocessing.pad_value is not None:
        return (preprocessing.pad_value,) * len(image)
    fills = [
        preprocessing_of(model, number).fill_value if model.input_channels else preprocessing.fill_value
        for number in range(len(image))
    ]
    return tuple(
        _normalised(channel, fill) if channel.scheme == "clip" else float(values.min())
        for channel, fill, values in zip(preprocessing.normalization, fills, image, strict=True)
    )


def resample_without_aliasing(image: sitk.Image, geometry: Geometry, fill: float) -> sitk.Image:
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
    if is_axis_aligned(image, geometry):
        return separable_resample(image, variances, geometry, fill)
    return _resample(smooth(image, variances) if variances.any() else image, geometry, sitk.sitkLinear, fill)


def _missing_variances(widths_squared: np.ndarray, image: sitk.Image) -> np.ndarray:
    variances: np.ndarray = np.maximum(0.0, widths_squared - np.square(image.GetSpacing())) / FWHM**2
    return variances


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
