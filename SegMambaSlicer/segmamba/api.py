"""The public call: from an image of any kind, and the name of a task or a model, to labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from segmamba.inference.channels import in_order, joined
from segmamba.io.convert import as_volume
from segmamba.io.modality import check_modality
from segmamba.io.volume import Volume
from segmamba.models.library import load_models
from segmamba.models.manifest import Model
from segmamba.request import Options

if TYPE_CHECKING:
    from segmamba.inference.pipeline import Result


def segment(
    image: str | os.PathLike[str] | Volume | np.ndarray | Any,
    task: str | None = None,
    *,
    model: str | Model | None = None,
    affine: np.ndarray | None = None,
    channels: Mapping[str, Any] | None = None,
    options: Options | None = None,
    progress: Callable[[str, float], None] | None = None,
    **changes: Any,
) -> Result:
    """Segment an image.

    Parameters
    ----------
    image : path, Volume, SimpleITK.Image, nibabel image or ndarray
        A path is that of a NIfTI, NRRD or MetaImage file, or of a DICOM series (its folder or one of its files). An
        array has the shape (x, y, z). CT is in Hounsfield units.
    task : str, optional
        "vertebrae", "colorectal" or "brain-tumour": use the default model of this task.
    model : str or Model, optional
        A model's id, or an entry of a manifest, instead of the task's default.
    affine : array_like, shape (4, 4), optional
        For an array only: the matrix from index (x, y, z, 1) to RAS millimetres, as in nibabel.
    channels : mapping of str to image, optional
        For a model that takes several co-registered volumes: those besides ``image``, by the names of its channels,
        each one of the above but an array.
    options : Options, optional
        How the model runs.
    progress : callable, optional
        Called with a stage ("load", "preprocess", "predict", "postprocess") and the fraction of it that is done.
    **changes
        Fields of `Options`, for example ``device="cpu"``; they take precedence over ``options``.

    Returns
    -------
    Result
        ``labels``, a uint8 array of shape (z, y, x) on the image's own grid, whose values are those of
        ``model.labels``; ``report``, a dict; ``save(path)`` writes the labels.

    Raises
    ------
    SegMambaError
        `InputError`, `ModelError` or `DeviceError`, with a message that says what to do.

    Examples
    --------
    >>> from segmamba import segment
    >>> segment("no-such-file.nii.gz", "vertebrae")
    Traceback (most recent call last):
    ...
    segmamba.errors.InputError: no-such-file.nii.gz does not exist: check the path.

    With a file, ``segment("CT.nii.gz", "vertebrae", device="cpu").save("spine.seg.nrrd")`` does it all.
    """
    chosen = model if isinstance(model, Model) else load_models().choose(task, model)
    options = replace(options or Options(), **changes)
    given = in_order(chosen, image, channels or {})
    if chosen.input_channels:
        own = next(number for number, item in enumerate(given) if item is image)
        volumes = [as_volume(item, affine if number == own else None) for number, item in enumerate(given)]
        volume = joined(volumes, own, chosen, options.modality)
    else:
        volume = as_volume(image, affine)
        check_modality(volume, chosen, options.modality)

    from segmamba.inference import pipeline  # imports torch, which what is refused above need not wait for

    return pipeline.segment(volume, chosen, options, progress)
