"""Reading one DICOM series as a volume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from segmamba.errors import InputError
from segmamba.volume import Geometry, Volume, check_geometry, image_geometry, quiet

MODALITY, SERIES_UID, DESCRIPTION = "0008|0060", "0020|000e", "0008|103e"
POSITION, ORIENTATION = "0020|0032", "0020|0037"
# Slices may be this far, in slice spacings, from an even spacing: positions are often rounded in the files.
UNEVENNESS = 0.2
# The last slice may be shifted sideways by this much against the first before the stack counts as sheared.
DRIFT_MM = 1.0


@dataclass(frozen=True)
class _Slice:
    file: str
    position: np.ndarray
    orientation: np.ndarray
    shape: tuple[int, ...]
    modality: str | None


def is_dicom(path: Path) -> bool:
    """Tell whether a file is a DICOM file (by the mark after its preamble)."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_file(path: Path) -> Volume:
    """Read a multi-frame DICOM file, or the series in its folder that a single-slice file belongs to.

    Raises
    ------
    InputError
        The file or its series is no 3-D volume.
    """
    reader = _header(str(path))
    if math.prod(reader.GetSize()[2:]) > 1:
        with quiet():
            image = sitk.ReadImage(str(path))
        if image.GetNumberOfComponentsPerPixel() > 1:
            raise InputError(f"{path} has colours in its voxels: give a volume with one value a voxel.")
        geometry = image_geometry(image)
        check_geometry(geometry, str(path))
        return Volume(sitk.GetArrayFromImage(image), geometry, _tag(reader, MODALITY))
    uid = _tag(reader, SERIES_UID)
    if uid is None:
        raise InputError(f"{path} does not say which DICOM series it belongs to: export the series again.")
    return _read_files(path.parent, _series_files(path.parent, uid))


def read_series(folder: Path) -> Volume:
    """Read the one DICOM series in a folder.

    Slices are put in the order of their position along the slice normal, whatever their names or numbers.
    Intensities are rescaled as the files say (Hounsfield units for CT).

    Raises
    ------
    InputError
        There is no series or more than one, or the slices do not make an evenly spaced 3-D grid.
    """
    with quiet():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise InputError(f"{folder} holds no DICOM series: choose the folder that the slices are in.")
    files = {uid: _series_files(folder, uid) for uid in series}
    if len(series) > 1:
        found = "; ".join(f"{_describe(names)}, for example {Path(names[0]).name}" for names in files.values())
        raise InputError(f"{folder} holds {len(series)} DICOM series: give one file of the one you want ({found}).")
    return _read_files(folder, files[series[0]])


def _series_files(folder: Path, uid: str) -> tuple[str, ...]:
    with quiet():
        return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)


def _header(file: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        with quiet():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{file} is a DICOM file without a readable image: remove it or export it again.") from error
    return reader


def _tag(reader: sitk.ImageFileReader, key: str) -> str | None:
    if not reader.HasMetaDataKey(key):
        return None
    # An odd length is padded with a space or a zero byte; text in an odd encoding may hold surrogates.
    text = reader.GetMetaData(key).strip(" \0")
    return text.encode("utf-8", "replace").decode("utf-8") or None


def _numbers(reader: sitk.ImageFileReader, key: str, count: int) -> np.ndarray | None:
    try:
        values = np.array([float(part) for part in (_tag(reader, key) or "").split("\\")])
    except ValueError:
        return None
    return values if values.size == count and np.all(np.isfinite(values)) else None


def _describe(files: tuple[str, ...]) -> str:
    reader = _header(files[0])
    name = _tag(reader, DESCRIPTION) or "without a description"
    return f"{_tag(reader, MODALITY) or '?'} '{name}', {len(files)} files"


def _read_slice_header(file: str) -> _Slice:
    reader = _header(file)
    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"{file} has colours in its voxels: give a series with one value a voxel.")
    position, orientation = _numbers(reader, POSITION, 3), _numbers(reader, ORIENTATION, 6)
    if position is None or orientation is None:
        raise InputError(
            f"{file} does not say where its slice lies in the patient: choose a series of CT or MR slices."
        )
    return _Slice(file, position, orientation.reshape(2, 3), reader.GetSize()[:2], _tag(reader, MODALITY))


def _read_files(folder: Path, files: tuple[str, ...]) -> Volume:
    if len(files) == 1:
        if math.prod(_header(files[0]).GetSize()[2:]) > 1:
            return read_file(Path(files[0]))
        raise InputError(f"{folder} has a single slice of this series: give a series with many slices.")
    slices = [_read_slice_header(file) for file in files]
    first = slices[0]
    if any(
        one.shape != first.shape or not np.allclose(one.orientation, first.orientation, atol=1e-3) for one in slices
    ):
        raise InputError(
            f"{folder} has slices of different size or orientation in one series (a scout view?): "
            "move the slices of the scan to a folder of their own."
        )
    normal = np.cross(*first.orientation)
    slices.sort(key=lambda one: float(one.position @ normal))
    step = _slice_step(np.array([one.position for one in slices]), normal, folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([one.file for one in slices])
    try:
        with quiet():
            image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{folder} has a slice that cannot be read: copy or export the series again.") from error
    along_x, along_y = image.GetSpacing()[:2]
    x, y, z = (float(value) for value in slices[0].position)
    # Cosines are often rounded in the files: take the nearest orthonormal matrix.
    left, _, right = np.linalg.svd(np.stack([*first.orientation, normal], axis=1))
    direction = tuple(float(value) for value in (left @ right).ravel())
    geometry = Geometry(image.GetSize(), (along_x, along_y, step), (x, y, z), direction)
    check_geometry(geometry, str(folder))
    return Volume(sitk.GetArrayFromImage(image), geometry, first.modality)


def _slice_step(positions: np.ndarray, normal: np.ndarray, folder: Path) -> float:
    """Return the distance of neighbouring slices in millimetres; positions have shape (n, 3), in order."""
    heights = positions @ normal
    gaps = np.diff(heights)
    typical = float(np.median(gaps))
    repeated = int(np.count_nonzero(gaps < 0.01))
    if repeated:
        raise InputError(
            f"{folder} has {repeated} slices at the place of another one (several phases or echoes in one series): "
            "keep the slices of one of them."
        )
    step = float(heights[-1] - heights[0]) / len(gaps)
    if np.max(np.abs(heights - heights[0] - step * np.arange(len(heights)))) > UNEVENNESS * step:
        missing = int(np.sum(np.round(gaps / typical) - 1))
        what = f"lacks {missing} slices" if missing > 0 else "has slices at uneven distances"
        raise InputError(f"{folder} {what}: export the complete series, or resample it to even slices.")
    drift = positions[-1] - positions[0] - (heights[-1] - heights[0]) * normal
    if np.linalg.norm(drift) > DRIFT_MM:
        raise InputError(f"{folder} was scanned with a tilted gantry: resample it to a rectangular grid first.")
    return step
