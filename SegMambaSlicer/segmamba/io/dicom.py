"""Reading the files of one DICOM series as a volume; `segmamba.io.dicom_index` finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from segmamba.errors import InputError
from segmamba.io.dicom_headers import is_marked, modality_of, pydicom
from segmamba.io.read import quiet
from segmamba.io.volume import Geometry, Volume, check_geometry, nearest_orthonormal
from segmamba.utils.paths import check_text

MODALITY, SOP_CLASS = "0008|0060", "0008|0016"
POSITION, ORIENTATION, PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
# Slices may be this far, in slice spacings, from an even spacing: positions are often rounded in the files.
UNEVENNESS = 0.2
# A slice may be shifted sideways by this much against the first before the stack counts as sheared.
DRIFT_MM = 1.0
# What a multi-frame file says of its frames: of all together, or of each.
GROUPS = (
    *("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"),
    "PixelValueTransformationSequence",
)
UNPLACED = "{} does not say where its frames lie in the patient: export it as single slices."


@dataclass(frozen=True)
class Slice:
    """A file with one slice.

    Attributes
    ----------
    file : str
    position : ndarray (3,)
        LPS mm.
    orientation : ndarray (2, 3)
        LPS directions along its rows and columns.
    spacing : ndarray (2,)
        Distance of its rows and of its columns, mm.
    shape : tuple of int
        Columns and rows.
    pixel_type : int
        SimpleITK's, of the rescaled values.
    modality : str or None
    """

    file: str
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, ...]
    pixel_type: int
    modality: str | None

    @property
    def normal(self) -> np.ndarray:
        """The LPS direction at right angles to the slice."""
        return np.cross(*self.orientation)


def _header(file: str) -> sitk.ImageFileReader:
    check_text(file)
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        with quiet():
            reader.ReadImageInformation()
    except RuntimeError as error:
        if not is_marked(Path(file)):
            raise InputError(
                f"{file} is DICOM without its preamble, in a form that is not read: export it again, or convert it "
                "with 'dcmconv' of DCMTK."
            ) from error
        raise InputError(
            f"{file} is damaged, or has no image that can be read: copy or export it again, or remove it if it is not "
            "a slice of the scan."
        ) from error
    return reader


def _tag(reader: sitk.ImageFileReader, key: str) -> str | None:
    if not reader.HasMetaDataKey(key):
        return None
    # An odd length is padded with a space or a zero byte; text in an odd encoding may hold surrogates.
    text = reader.GetMetaData(key).strip(" \0")
    return text.encode("utf-8", "replace").decode("utf-8") or None


def _modality(reader: sitk.ImageFileReader) -> str | None:
    return modality_of(_tag(reader, MODALITY), _tag(reader, SOP_CLASS)) or None


def _numbers(reader: sitk.ImageFileReader, key: str, count: int) -> np.ndarray | None:
    try:
        values = np.array([float(part) for part in (_tag(reader, key) or "").split("\\")])
    except ValueError:
        return None
    return values if values.size == count and np.all(np.isfinite(values)) else None


def _read_slice_header(file: str) -> Slice:
    reader = _header(file)
    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"{file} has colours in its voxels: give a series with one value per voxel.")
    position, orientation = _numbers(reader, POSITION, 3), _numbers(reader, ORIENTATION, 6)
    if position is None or orientation is None:
        raise InputError(
            f"{file} does not say where its slice lies in the patient: choose a series of CT or MR slices."
        )
    spacing = _numbers(reader, PIXEL_SPACING, 2)
    if spacing is None:
        raise InputError(f"{file} does not say how large its pixels are: export the series again.")
    shape, kind = reader.GetSize()[:2], reader.GetPixelID()
    return Slice(file, position, orientation.reshape(2, 3), spacing, shape, kind, _modality(reader))


def read_files(name: str, files: Sequence[str]) -> Volume:
    """Read the files of one series: slices in any order, or one multi-frame file.

    Parameters
    ----------
    name : str
        What errors call the series.
    files : sequence of str

    Raises
    ------
    InputError
        The slices do not make an evenly spaced 3-D grid, or one cannot be read.
    """
    if len(files) == 1:
        return _read_frames(name, files[0])
    slices = sorted_slices(name, files)
    first = slices[0]
    geometry = _stack(name, np.array([one.position for one in slices]), first.orientation, first.spacing, first.shape)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([one.file for one in slices])
    if any(one.pixel_type != first.pixel_type for one in slices):
        # ITK would force all slices into the first one's type, which may have no sign or no fractions.
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        with quiet():
            image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{name} has a slice that cannot be read: copy or export the series again.") from error
    return Volume(sitk.GetArrayFromImage(image), geometry, first.modality)


def sorted_slices(name: str, files: Sequence[str]) -> list[Slice]:
    """Return the slices of a series in the order in which `read_files` stacks them.

    Raises
    ------
    InputError
        Slices differ in size, pixel size or orientation, or one says nothing of its place.
    """
    slices = [_read_slice_header(file) for file in files]
    first = slices[0]
    if not all(
        one.shape == first.shape
        and np.allclose(one.orientation, first.orientation, atol=1e-3)
        and np.allclose(one.spacing, first.spacing, rtol=1e-3)
        for one in slices
    ):
        raise InputError(
            f"{name} has slices of different size or orientation in one series (a scout view?): "
            "move the slices of the scan to a folder of their own."
        )
    return sorted(slices, key=lambda one: float(one.position @ first.normal))


def _read_frames(name: str, file: str) -> Volume:
    reader = _header(file)
    if _frames(reader) == 1:
        raise InputError(f"{name} has a single slice of this series: give a series with many slices.")
    try:
        with quiet():
            image = sitk.ReadImage(file)
    except RuntimeError as error:
        raise InputError(f"{file} cannot be read to its end: copy or export it again.") from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"{file} has colours in its voxels: give a volume with one value per voxel.")
    # ITK takes frames to be in order and evenly apart, and rescales all of them as the first one.
    positions, orientation, spacing = _frame_places(file)
    if len(positions) != image.GetSize()[2]:
        raise InputError(UNPLACED.format(file))
    order = np.argsort(positions @ np.cross(*orientation), kind="stable")
    geometry = _stack(name, positions[order], orientation, spacing, image.GetSize()[:2])
    return Volume(sitk.GetArrayFromImage(image)[order], geometry, _modality(reader))


def _frame_places(file: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where the frames of a multi-frame file lie: positions (n, 3), and the `Slice` directions and spacing."""
    header = pydicom().dcmread(file, stop_before_pixels=True)
    try:
        shared, frames = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence
        groups = {name: [(frame.get(name) or shared.get(name) or [None])[0] for frame in frames] for name in GROUPS}
        position, orientation, measures, rescaling = groups.values()
        positions = np.array([group.ImagePositionPatient for group in position], float)
        orientations = np.array([group.ImageOrientationPatient for group in orientation], float)
        spacings = np.array([group.PixelSpacing for group in measures], float)
        rescales = [(float(group.RescaleSlope), float(group.RescaleIntercept)) for group in rescaling if group]
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(UNPLACED.format(file)) from error
    if not np.allclose(orientations, orientations[0], atol=1e-3) or not np.allclose(spacings, spacings[0], rtol=1e-3):
        raise InputError(f"{file} has frames of different orientation or pixel size: export the scan alone.")
    if len(set(rescales)) > 1:
        raise InputError(
            f"{file} rescales its frames differently, which cannot be read yet: export it as single slices."
        )
    return positions, orientations[0].reshape(2, 3), spacings[0]


def _frames(reader: sitk.ImageFileReader) -> int:
    return math.prod(reader.GetSize()[2:])


def _stack(
    name: str, positions: np.ndarray, orientation: np.ndarray, spacing: np.ndarray, shape: Sequence[int]
) -> Geometry:
    """Return the grid of slices with these positions (n, 3), in order; see `Slice` for the others."""
    normal = np.cross(*orientation)
    step = _slice_step(positions, normal, name)
    direction = tuple(nearest_orthonormal(np.stack([*orientation, normal], axis=1)).ravel().tolist())
    along_y, along_x = (float(value) for value in spacing)
    x, y, z = (float(value) for value in positions[0])
    columns, rows = shape
    geometry = Geometry((columns, rows, len(positions)), (along_x, along_y, step), (x, y, z), direction)
    check_geometry(geometry, name)
    return geometry


def _slice_step(positions: np.ndarray, normal: np.ndarray, name: str) -> float:
    """Return the distance of neighbouring slices in millimetres; positions have shape (n, 3), in order."""
    heights = positions @ normal
    gaps = np.diff(heights)
    typical = float(np.median(gaps))
    repeated = int(np.count_nonzero(gaps < 0.01))
    if repeated:
        raise InputError(
            f"{name} has {repeated} slices at the position of another one (several phases or echoes in one series): "
            "keep the slices of one of them."
        )
    step = float(heights[-1] - heights[0]) / len(gaps)
    if np.max(np.abs(heights - heights[0] - step * np.arange(len(heights)))) > UNEVENNESS * step:
        missing = int(np.sum(np.round(gaps / typical) - 1))
        what = f"lacks {missing} slices" if missing > 0 else "has slices at uneven distances"
        raise InputError(f"{name} {what}: export the complete series, or resample it to even slices.")
    drift = positions - positions[0] - np.outer(heights - heights[0], normal)
    if np.linalg.norm(drift, axis=1).max() > DRIFT_MM:
        raise InputError(
            f"{name} has slices that are shifted sideways (a tilted gantry?): resample it to a rectangular grid first."
        )
    return step
