"""Volumes from files, checked."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from segmamba.errors import DeviceError, InputError
from segmamba.io import nifti
from segmamba.io.dicom_headers import is_dicom
from segmamba.io.headers import missing_data, place_notes
from segmamba.io.padding import padding_to_air
from segmamba.io.stored_grid import straightened
from segmamba.io.volume import IMPOSSIBLE, NO_MEMORY, UNKNOWN, Volume, check_geometry, check_scalar_3d, image_geometry
from segmamba.utils.parallel import at_once
from segmamba.utils.paths import check_input, file_state, misnamed
from segmamba.utils.words import counted

# Planes that are checked at a time, in a thread.
SLAB = 8
# What ITK says where memory is short.
NO_MEMORY_SIGN = "Failed to allocate memory"
# The DICOM tag of the modality, also as a field of NRRD and MetaImage headers.
MODALITY_KEY = "0008|0060"


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a 3-D volume and check that it can be segmented.

    Parameters
    ----------
    path : path
        A file (NIfTI, NRRD, MetaImage), a folder with one DICOM series, or any file of a DICOM series: then that
        series is read from the file's folder.

    Returns
    -------
    Volume
        With the file's own data type and grid; resampled to a rectangular one if its axes are at other than right
        angles. Its ``notes`` say what was assumed.

    Raises
    ------
    InputError
        It is not there, cannot be read whole, or is no 3-D scalar volume with a sound geometry and finite values.
    DeviceError
        It does not fit into memory.

    Examples
    --------
    >>> read_volume("no-such-file.nii.gz")
    Traceback (most recent call last):
    ...
    segmamba.errors.InputError: no-such-file.nii.gz does not exist: check the path.
    """
    from segmamba.io import dicom_choice

    path = Path(path)
    check_input(path)
    name = str(path)
    if path.is_dir() or is_dicom(path):
        volume = dicom_choice.read(path)
        check_values(volume.array, name)
        return volume
    volume = read_stored(path)
    check_values(volume.array, name)
    array, notes = padding_to_air(volume.array, volume.modality)
    return straightened(replace(volume, array=array, notes=(*volume.notes, *notes)), name)


def check_values(array: np.ndarray, name: str) -> None:
    """Raise InputError unless all values are finite and not all the same."""

    def seen(first: int) -> tuple[int, float, float]:
        slab = array[first : first + SLAB]
        return _count_bad(slab) if array.dtype.kind == "f" else 0, slab.min(), slab.max()

    bad, low, high = zip(*at_once(seen, range(0, len(array), SLAB)).values(), strict=True)
    _refuse_bad_values(sum(bad), array.size, name)
    lowest = min(low)
    if lowest == max(high):
        raise InputError(f"{name} has the value {lowest:g} everywhere: choose another volume.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the C++ readers print away from the terminal: a bad file ends in one sentence, not in two.

    Threads may read at the same time: the last one to end gives the streams back.
    """
    _QUIET.enter()
    try:
        yield
    finally:
        _QUIET.leave()


class _Quiet:
    """Standard streams that lead nowhere while somebody reads: they are the process's own, not a thread's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._shown = True
        self._saved: list[tuple[int, int]] = []

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            self._shown = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    stream.flush()
            with open(os.devnull, "wb") as nowhere:
                for descriptor in (1, 2):
                    # A windowed application may have no standard streams.
                    with contextlib.suppress(OSError):
                        self._saved.append((os.dup(descriptor), descriptor))
                        os.dup2(nowhere.fileno(), descriptor)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside:
                return
            while self._saved:
                copy, descriptor = self._saved.pop()
                os.dup2(copy, descriptor)
                os.close(copy)
            sitk.ProcessObject.SetGlobalWarningDisplay(self._shown)


_QUIET = _Quiet()


def _count_bad(array: np.ndarray) -> int:
    return array.size - int(np.count_nonzero(np.isfinite(array)))


def _refuse_bad_values(bad: int, total: int, name: str) -> None:
    if bad == total:
        raise InputError(f"{name} has no valid value (every voxel is NaN or infinite): export it again.")
    if bad:
        raise InputError(
            f"{name} has NaN or infinity in {counted(bad, 'voxel')}: repair the volume first, "
            "for example by setting them to the value of air."
        )


def read_image(path: Path) -> Volume:
    """Return a NIfTI, NRRD or MetaImage file on a rectangular grid, whatever its values, for example a label map.

    Raises
    ------
    InputError
        The file is no 3-D scalar image, is not whole, or has axes that are not at right angles.
    """
    volume = read_stored(path)
    check_geometry(volume.geometry, str(path))
    return volume


def read_stored(path: Path) -> Volume:
    """Return what `read_image` does, with the file's own voxels and axes, which may be at other than right angles."""
    state = file_state(path)
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): copy or export it again.")
    wrong_name = misnamed(path)
    if wrong_name:
        raise InputError(wrong_name)
    try:
        volume = nifti.read(path) if nifti.is_nifti(path) else _read_with_itk(path)
    except InputError:
        _check_unchanged(path, state)
        raise
    _check_unchanged(path, state)
    return volume


def frame_of(image: sitk.Image) -> sitk.Image:
    """Return the only 3-D frame of an image with further axes of length one."""
    more = image.GetDimension() - 3
    if more <= 0:
        return image
    submatrix = sitk.ExtractImageFilter.DIRECTIONCOLLAPSETOSUBMATRIX
    frame: sitk.Image = sitk.Extract(image, [*image.GetSize()[:3], *[0] * more], [0] * image.GetDimension(), submatrix)
    return frame


def modality_of(source: Any) -> str | None:
    """Return the DICOM modality that a SimpleITK image, or a reader that has read its header, states; or None."""
    return (source.GetMetaData(MODALITY_KEY).strip() or None) if source.HasMetaDataKey(MODALITY_KEY) else None


def _check_unchanged(path: Path, state: tuple[int, int] | None) -> None:
    if file_state(path) != state:
        raise InputError(f"{path} changed while it was read: wait until it is complete, then try again.")


def _read_with_itk(path: Path) -> Volume:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(missing_data(path) or _reason(path, str(error), UNKNOWN.format(path))) from error
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    check_scalar_3d(reader.GetSize(), reader.GetNumberOfComponents(), str(path), kind)
    notes = place_notes(path, reader.GetImageIOFromFileName(str(path)))
    try:
        with quiet():
            image = frame_of(reader.Execute())
    except RuntimeError as error:
        if NO_MEMORY_SIGN in str(error):
            raise DeviceError(NO_MEMORY.format(path, math.prod(reader.GetSize()))) from error
        damaged = f"{path} cannot be read to its end: it is incomplete or damaged, copy it again."
        raise InputError(missing_data(path) or _reason(path, str(error), damaged)) from error
    geometry = image_geometry(image)
    check_geometry(geometry, str(path), sheared=True)
    return Volume(sitk.GetArrayFromImage(image), geometry, modality_of(reader), notes=notes)


def _reason(path: Path, error: str, otherwise: str) -> str:
    """Return what ITK's error means for the user, where it can be told."""
    if "pacing" in error or "eterminant" in error:
        return IMPOSSIBLE.format(path)
    return otherwise
