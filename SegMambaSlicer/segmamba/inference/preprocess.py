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
from segmamba.inference.separable_resample import direction_cosines, is_axis_aligned, separable_resample, smooth
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.models.manifest import IntensityNormalization, Model, Preprocessing
from segmamba.utils.arrays import in_main_memory

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
    """Return `network_input` as an array."""
    values, grid = network_input(volume, model, roi, context_mm)
    return values.numpy(), grid


def network_input(
    volume: Volume,
    model: Model,
    roi: Box | None = None,
    context_mm: float = ROI_CONTEXT_MM,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, ModelGrid]:
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
    device : device
        Where to compute, and where the input is. Cubic splines, and volumes oblique to the model's grid, are computed
        on the processor all the same, and everything where the device has not enough memory.

    Returns
    -------
    values : Tensor of float32
        Shape (channels, z, y, x).
    grid : ModelGrid
        Where its voxels lie; `resample_to_input` needs it.

    Raises
    ------
    InputError
        There is no body in the volume, the ROI lies outside it, or the model takes more volumes.
    """
    import torch

    from segmamba.inference.sliding_window import with_room

    grid = model_grid(volume, model.preprocessing, roi, context_mm)
    cropped = cropped_geometry(volume.geometry, grid.crop)
    parts = [(_tensor(array[grid.crop]), preprocessing) for array, preprocessing in _by_volume(volume, model)]

    def made(place: torch.device) -> torch.Tensor:
        return torch.stack(
            [
                channel
                for values, preprocessing in parts
                for channel in network_channels(values.to(place), cropped, preprocessing, grid.geometry)
            ]
        )

    return with_room(made, torch.device(device)), grid


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Return intensities as a tensor, of a type and with steps that every device knows; not a copy if they are."""
    import torch

    known = array.dtype.isnative and array.dtype.kind in "if" and min(array.strides) > 0
    return torch.from_numpy(array if known else array.astype(np.float32, order="C"))


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


def network_channels(
    values: torch.Tensor, source: Geometry, preprocessing: Preprocessing, geometry: Geometry
) -> list[torch.Tensor]:
    """Return the channels (z, y, x), float32, that a network gets of one volume, on its grid and the same device."""
    import torch

    low, high = intensity_range(preprocessing)
    if preprocessing.interpolation == "cubic":
        resolved = [resolve(channel, values.float()) for channel in preprocessing.normalization]
        fills = [_normalised(channel, preprocessing.fill_value) for channel in resolved]
        return [
            _by_itk(normalise(values, channel), source, geometry, (sitk.sitkBSpline3, fill))
            for channel, fill in zip(resolved, fills, strict=True)
        ]
    fill = min(max(preprocessing.fill_value, low), high)
    values = resample_without_aliasing(values.to(torch.float32, copy=True).clamp_(low, high), source, geometry, fill)
    return [normalise(values, resolve(channel, values)) for channel in preprocessing.normalization]


def intensity_range(preprocessing: Preprocessing) -> tuple[float, float]:
    """Return the intensities that matter to any channel.

    The volume is clamped to them first, so that neither metal nor a filler value of -2048 or -32768 outside the
    field of view leaks into its surroundings when the volume is smoothed or interpolated.
    """
    if any(channel.scheme != "clip" for channel in preprocessing.normalization):
        return -float(np.finfo(np.float32).max), float(np.finfo(np.float32).max)
    return min(c.low for c in preprocessing.normalization), max(c.high for c in preprocessing.normalization)


def resolve(channel: IntensityNormalization, values: torch.Tensor) -> IntensityNormalization:
    """Return a "clip" normalization with all parameters known: those of other schemes are measured on ``values``."""
    if channel.scheme == "clip":
        return channel
    if channel.scheme == "relative":
        assert channel.mean is not None and channel.std is not None
        unit = bright_mean(values if values.is_cuda else values.numpy())
        return IntensityNormalization(
            "clip", channel.low * unit, channel.high * unit, channel.mean * unit, channel.std * unit
        )
    array = in_main_memory(values)
    inside = array if channel.scheme == "zscore" else array[array != 0]
    low, high = np.percentile(inside, (channel.low, channel.high)) if inside.size else (0.0, 0.0)
    clipped = np.clip(array, low, high)
    # A flat volume becomes zeros.
    std = float(clipped.std(dtype=np.float64)) or 1.0
    return IntensityNormalization("clip", float(low), float(high), float(clipped.mean(dtype=np.float64)), std)


def bright_mean(array: np.ndarray | torch.Tensor) -> float:
    """Return the mean of the voxels brighter than the mean: a unit for MR, which has none. 1 for a constant array."""
    if isinstance(array, np.ndarray):
        bright = array[array > array.mean(dtype=np.float64)]
        return max(float(bright.mean(dtype=np.float64)), SMALLEST_UNIT) if bright.size else 1.0
    shining = array[array > array.double().mean()]
    return max(float(shining.double().mean()), SMALLEST_UNIT) if len(shining) else 1.0


def normalise(values: torch.Tensor, channel: IntensityNormalization) -> torch.Tensor:
    """Clip, subtract the mean and divide by the standard deviation of a resolved channel; gives float32."""
    assert channel.mean is not None and channel.std is not None
    return values.float().clamp(channel.low, channel.high).sub_(channel.mean).mul_(1 / channel.std)


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


def resample_without_aliasing(values: torch.Tensor, source: Geometry, geometry: Geometry, fill: float) -> torch.Tensor:
    """Interpolate linearly, after smoothing along the axes that are to be sampled more coarsely.

    A voxel of width s is taken for a gaussian whose full width at half maximum is s, and variances add up: what is
    missing from the input's width to the model's is sigma^2 = (model^2 - input^2) / FWHM^2. For an oblique volume,
    the model's width along an input axis is the root mean square of its spacings, weighted by their share in it. Voxels
    far finer than the model's are first averaged in blocks.

    Parameters
    ----------
    values : Tensor of float32
        Shape (z, y, x), on any device.
    source : Geometry
        Of the volume.
    geometry : Geometry
        The new grid.
    fill : float
        What voxels outside of the volume get.

    Returns
    -------
    Tensor of float32
        Shape (z, y, x), on the same device.
    """
    widths_squared = np.square(geometry.spacing) @ direction_cosines(source, geometry) ** 2
    variances = _missing_variances(widths_squared, source)
    blocks = np.ceil(np.sqrt(variances) / source.spacing / WIDEST).astype(int)
    blocks = np.clip(blocks, 1, source.size)
    if blocks.max() > 1:
        values, source = _averaged(values, source, blocks)
        variances = _missing_variances(widths_squared, source)
    if is_axis_aligned(source, geometry):
        return separable_resample(values, source, variances, geometry, fill)
    if values.is_cuda:
        return oblique_resample(values, source, variances, geometry, fill)
    return _by_itk(values, source, geometry, (sitk.sitkLinear, fill), variances)


def oblique_resample(
    values: torch.Tensor, source: Geometry, variances: np.ndarray, geometry: Geometry, fill: float
) -> torch.Tensor:
    """Do what `_by_itk` does linearly, where the values are; on a processor that takes longer.

    Parameters
    ----------
    values : Tensor of float32
        Shape (z, y, x), on any device.
    source, geometry : Geometry
        Of the volume, and the new grid.
    variances : ndarray
        Of the gaussian along the volume's x, y, z, in square millimetres.
    fill : float
        What voxels outside of the volume get.

    Returns
    -------
    Tensor of float32
        Shape (z, y, x) on ``geometry``, on the same device.
    """
    import torch

    if variances.any():
        values = separable_resample(values, source, variances, source, fill)
    to_source = np.linalg.inv(source.affine) @ geometry.affine
    matrix, offset = (torch.from_numpy(part).to(values.device) for part in (to_source[:3, :3], to_source[:3, 3]))
    z, y, x = (
        torch.arange(length, dtype=torch.float64, device=values.device)[:, None] for length in geometry.size[::-1]
    )
    places = (z * matrix[:, 2])[:, None, None] + (y * matrix[:, 1])[:, None] + (x * matrix[:, 0] + offset)
    size = torch.tensor(source.size, device=values.device)
    # As far as half a voxel beyond the outer ones.
    inside = ((places >= -0.5) & (places < size - 0.5)).all(dim=-1)
    places = (places * (2 / (size - 1).clamp(min=1)) - 1).float()
    made = torch.nn.functional.grid_sample(
        values[None, None], places[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0, 0]
    return made.masked_fill_(~inside, fill)


def _averaged(values: torch.Tensor, source: Geometry, blocks: np.ndarray) -> tuple[torch.Tensor, Geometry]:
    """Return the means of blocks of so many voxels along x, y, z, and their grid; what fills no block is left out."""
    from torch.nn import functional

    x, y, z = blocks.tolist()
    means = functional.avg_pool3d(values[None, None], (z, y, x))[0, 0]
    origin = (source.affine @ [*((blocks - 1) / 2), 1.0])[:3].tolist()
    spacing = (blocks * source.spacing).tolist()
    depth, height, width = means.shape
    size, place = (width, height, depth), (origin[0], origin[1], origin[2])
    return means, Geometry(size, (spacing[0], spacing[1], spacing[2]), place, source.direction)


def _missing_variances(widths_squared: np.ndarray, source: Geometry) -> np.ndarray:
    variances: np.ndarray = np.maximum(0.0, widths_squared - np.square(source.spacing)) / FWHM**2
    return variances


def _by_itk(
    values: torch.Tensor,
    source: Geometry,
    geometry: Geometry,
    how: tuple[int, float],
    variances: np.ndarray | None = None,
) -> torch.Tensor:
    """Resample with an interpolator of ITK's and a value for what is outside, after smoothing by these variances."""
    import torch

    image = to_image(values.cpu().numpy(), source)
    if variances is not None and variances.any():
        image = smooth(image, variances)
    made = sitk.Resample(
        image,
        geometry.size,
        sitk.Transform(),
        how[0],
        geometry.origin,
        geometry.spacing,
        geometry.direction,
        how[1],
        sitk.sitkFloat32,
    )
    return torch.from_numpy(sitk.GetArrayFromImage(made)).to(values.device)
