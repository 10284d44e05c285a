"""Volumes from images that a program already holds: SimpleITK's, nibabel's, and arrays with an affine matrix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from segmamba.errors import InputError
from segmamba.io.read import check_values, frame_of, modality_of, read_volume
from segmamba.io.stored_grid import straightened
from segmamba.io.volume import RAS_TO_LPS, Geometry, Volume, check_geometry, check_scalar_3d, image_geometry

AXES = 3
KNOWN = "a path, a Volume, a SimpleITK image, a nibabel image, or an array with its affine"


def as_volume(image: Any, affine: np.ndarray | None = None) -> Volume:
    """Return an image of any kind as a volume, checked as `segmamba.io.read.read_volume` checks a file.

    Parameters
    ----------
    image : path, Volume, SimpleITK.Image, nibabel image or ndarray
        A path as for `segmamba.io.read.read_volume`; an array as for `volume_from_array`.
    affine : array_like, shape (4, 4), optional
        Of an array, and of nothing else.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        The image is of another kind, is not a 3-D scalar one, or has an unsound geometry or values.
    DeviceError
        A file does not fit into memory.
    """
    if isinstance(image, np.ndarray):
        if affine is None:
            raise InputError("The array has no affine: give the matrix from its indices to RAS millimetres.")
        return volume_from_array(image, affine)
    if affine is not None:
        raise InputError("An affine was given for an image that has its own geometry: leave it out.")
    if isinstance(image, (str, os.PathLike)):
        return read_volume(Path(image))
    if isinstance(image, Volume):
        return _checked(image)
    if isinstance(image, sitk.Image):
        return volume_from_sitk(image)
    # nibabel's images, found without importing it.
    if hasattr(image, "dataobj") and hasattr(image, "affine"):
        return volume_from_nibabel(image)
    raise InputError(f"The image is a {type(image).__name__}: give {KNOWN}.")


def volume_from_array(array: np.ndarray, affine: np.ndarray) -> Volume:
    """Return a volume of an array in nibabel's convention.

    Parameters
    ----------
    array : ndarray
        Shape (x, y, z); further axes of length one are left out. CT in Hounsfield units.
    affine : array_like, shape (4, 4)
        From the index (x, y, z, 1) of a voxel's centre to RAS millimetres.

    Returns
    -------
    Volume
        Its array has the shape (z, y, x).

    Raises
    ------
    InputError
        The array is not 3-D, has other values than numbers, or has an unsound affine or values.

    Examples
    --------
    >>> import numpy as np
    >>> array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    >>> volume = volume_from_array(array, np.diag([1.0, 1.0, 2.5, 1.0]))
    >>> volume.array.shape, volume.geometry.spacing
    ((4, 3, 2), (1.0, 1.0, 2.5))
    >>> volume.geometry.direction[0]  # x grows to the right, and LPS counts to the left
    -1.0
    """
    name = "The array"
    if array.dtype.kind not in "iuf":
        raise InputError(f"{name} has values of the type {array.dtype}: give whole or floating-point numbers.")
    check_scalar_3d(array.shape, 1, name)
    array = array.reshape(array.shape[:AXES])
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
    geometry = Geometry.from_affine(array.shape, RAS_TO_LPS @ _matrix(affine, name), name)
    return _checked(Volume(np.ascontiguousarray(array.T), geometry), name)


def volume_from_nibabel(image: Any) -> Volume:
    """Return a volume of a nibabel image, with the values that nibabel gives: rescaled ones as float32 or float64.

    Raises
    ------
    InputError
        As for `volume_from_array`.
    """
    array = np.asanyarray(image.dataobj)
    if array.dtype.names:
        check_scalar_3d(array.shape, len(array.dtype.names), "The image")
    if array.dtype == np.float64 and image.get_data_dtype() != np.float64:
        # What the file's integers are rescaled to: the type in which a file is read.
        array = array.astype(np.float32)
    return volume_from_array(array, image.affine)


def volume_from_sitk(image: sitk.Image) -> Volume:
    """Return a volume of a SimpleITK image; the voxels are copied.

    The modality is that of its DICOM tag (0008|0060), if it has that.

    Raises
    ------
    InputError
        It is not a 3-D scalar image, or its geometry or values are unsound.
    """
    name = "The image"
    check_scalar_3d(image.GetSize(), image.GetNumberOfComponentsPerPixel(), name, image.GetPixelIDTypeAsString())
    image = frame_of(image)
    return _checked(Volume(sitk.GetArrayFromImage(image), image_geometry(image), modality_of(image)), name)


def _checked(volume: Volume, name: str = "The volume") -> Volume:
    check_geometry(volume.geometry, name, sheared=True)
    if volume.array.shape != volume.geometry.size[::-1]:
        raise InputError(
            f"{name} has an array of shape {volume.array.shape} and a grid of size {volume.geometry.size}: the shape "
            "has to be the size in reverse."
        )
    check_values(volume.array, name)
    return straightened(volume, name)


def _matrix(affine: Any, name: str) -> np.ndarray:
    """Return an affine as a matrix of floats, or raise InputError."""
    try:
        matrix = np.asarray(affine, dtype=float)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (4, 4) or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise InputError(f"{name} has an affine that is not a 4 x 4 matrix ending in 0 0 0 1: correct it.")
    return matrix
