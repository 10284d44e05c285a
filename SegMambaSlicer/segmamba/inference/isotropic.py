"""Masks on a fine isotropic grid besides the volume's own: smooth surfaces from thick slices.

The classes' probabilities lie on the model's grid, which is finer than thick slices are. They are interpolated once
more, at the voxels of a grid that has the volume's axes; nothing is interpolated from the labels in thick slices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
import torch

from segmamba.inference.model_grid import cropped_geometry, isotropic_geometry
from segmamba.inference.prediction import Prediction
from segmamba.inference.resample_back import labelled_region, resample_to_input
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.models.manifest import Model

# Background around what is labelled, in voxels: surfaces close there, and programs that smooth them have room.
MARGIN = 4


@dataclass(frozen=True, eq=False)
class IsotropicLabels:
    """Labels on an isotropic grid.

    Attributes
    ----------
    labels : ndarray of uint8
        Shape (z, y, x): the box around all labels.
    geometry : Geometry
        Its axes are those of the volume.
    """

    labels: np.ndarray
    geometry: Geometry


def isotropic_labels(
    prediction: Prediction, model: Model, spacing: str | float, device: torch.device | str | None = None
) -> IsotropicLabels:
    """Return what a model predicts, on an isotropic grid around all that it labels.

    Where nothing is labelled, the labels are empty, on the volume's own grid.

    Parameters
    ----------
    prediction : Prediction
    model : Model
    spacing : str or float
        See `segmamba.inference.model_grid.isotropic_spacing`.
    device : device, optional
        As for `resample_to_input`.
    """
    whole = isotropic_geometry(prediction.grid.input, spacing)
    grid = replace(prediction.grid, input=whole, crop=_all_of(whole))
    region = labelled_region(prediction.probabilities, grid)
    if region is None:
        own = prediction.grid.input
        return IsotropicLabels(np.zeros(own.size[::-1], np.uint8), own)
    z, y, x = (
        slice(max(0, part.start - MARGIN), min(size, part.stop + MARGIN))
        for part, size in zip(region, reversed(whole.size), strict=True)
    )
    box = cropped_geometry(whole, (z, y, x))
    labels, _ = resample_to_input(
        prediction.probabilities,
        replace(grid, input=box, crop=_all_of(box)),
        prediction.label_values,
        device,
        model.resamples_logits,
        model.has_regions,
    )
    return IsotropicLabels(labels, box)


def on_grid(volume: Volume, geometry: Geometry) -> Volume:
    """Return a volume's intensities on another grid: what the rules of postprocessing look at there."""
    image = to_image(volume.array, volume.geometry)
    low = float(volume.array.min())
    where = (geometry.origin, geometry.spacing, geometry.direction)
    copy = sitk.Resample(image, geometry.size, sitk.Transform(), sitk.sitkLinear, *where, low)
    return Volume(sitk.GetArrayFromImage(copy), geometry, volume.modality)


def _all_of(geometry: Geometry) -> tuple[slice, slice, slice]:
    """Return the slices (z, y, x) of a whole grid."""
    x, y, z = geometry.size
    return slice(0, z), slice(0, y), slice(0, x)
