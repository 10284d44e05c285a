"""The images of a case: a file for each channel or, as in Decathlon, one file of four dimensions."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from segmamba.errors import InputError
from segmamba.io.convert import volume_from_array
from segmamba.io.read import read_volume
from segmamba.io.volume import Volume
from segmamba.training.dataset.layout import Case


def read_images(case: Case, channels: int) -> list[Volume]:
    """Read the images of a case, one for each of the data set's channels.

    Raises
    ------
    InputError, DeviceError
        As `segmamba.io.read.read_volume`, or a file of four dimensions holds another number of volumes.
    """
    if len(case.images) == channels:
        return [read_volume(path) for path in case.images]
    (path,) = case.images
    return _split(path, channels)


def _split(path: Path, channels: int) -> list[Volume]:
    """Read the volumes in a NIfTI file of four dimensions."""
    import nibabel

    try:
        stored: Any = nibabel.load(path)
        if len(stored.shape) != 4 or stored.shape[3] != channels:
            size = " x ".join(map(str, stored.shape))
            raise InputError(
                f"{path} has {size} voxels and not the {channels} channels of dataset.json: give four dimensions, the "
                "last of them the channels, or a file for each (_0000, _0001, ...)."
            )
        array = np.asanyarray(stored.dataobj)
    except (EOFError, OSError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path} cannot be read as NIfTI of four dimensions: copy or download it again.") from error
    if array.dtype == np.float64 and stored.get_data_dtype() != np.float64:
        array = array.astype(np.float32)
    volumes = []
    for channel in range(channels):
        try:
            volumes.append(volume_from_array(array[..., channel], stored.affine))
        except InputError as error:
            raise InputError(f"{path} cannot be trained on, for its channel {channel}: {error}") from error
    return volumes
