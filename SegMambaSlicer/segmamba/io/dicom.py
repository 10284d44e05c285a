"""Reading the files of one DICOM series as a volume; `segmamba.io.dicom_index` finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from segmamba.errors import InputError
from segmamba.io.dicom_headers import is_marked, modality_of, pydicom
from segmamba.io.padding import declared_padding, padding_to_air
from segmamba.io.read import quiet
from segmamba.io.stored_grid import LARGEST_SHEAR, RESAMPLED, TOO_SHEARED, StoredGrid, resampled
from segmamba.io.volume import SHEAR_TOLERANCE, Geometry, Volume, check_geometry, nearest_orthonormal
from segmamba.utils.paths import check_text
from segmamba.utils.words import counted

MODALITY, SOP_CLASS = "0008|0060", "0008|0016"
PADDING, BITS_ALLOCATED, BITS_STORED = "0028|0120", "0028|0100", "0028|0101"
SLOPE, INTERCEPT = "0028|1053", "0028|1052"
FRAME_OF_REFERENCE = "0020|0052"
POSITION, ORIENTATION, PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
# Slices may be this far, in slice spacings, from an even spacing: positions are often rounded in the files.
UNEVENNESS = 0.2
# A slice may be shifted sideways by this much against the first before the stack counts as sheared, and by this much
# against a sheared stack.
DRIFT_MM = 1.0
# A gap this many times as wide as both of its neighbours lacks slices, if so many of the gaps are alike.
MISSING_GAP, ALIKE = 1.5, 0.75
# What a multi-frame file says of its frames: of all together, or of each.
GROUPS = (
    *("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"),
    "PixelValueTransformationSequence",
)
UNPLACED = "{} does not say where its frames lie in the patient: export it as single slices."


@dataclass(frozen=True)
class Slice:
    """A slice of a series: a file, or a frame of one.

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
    frame : int or None
        Its number in a multi-frame file, from 1.
    """

    file: str
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, ...]
    pixel_type: int
    modality: str | None
    frame: int | None = None

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


def _padding(reader: sitk.ImageFileReader) -> tuple[float, ...]:
    """Return the values that the padding which a header declares may have been read as."""
    stored, allocated, used, slope, intercept = (
        _number(reader, key, otherwise)
        for key, otherwise in (
            *((PADDING, math.nan), (BITS_ALLOCATED, 16.0), (BITS_STORED, 16.0)),
            *((SLOPE, 1.0), (INTERCEPT, 0.0)),
        )
    )
    if not math.isfinite(stored):
        return ()
    return declared_padding(stored, (int(allocated), int(used)), (slope, intercept))


def _number(reader: sitk.ImageFileReader, key: str, otherwise: float) -> float:
    values = _numbers(reader, key, 1)
    return otherwise if values is None else float(values[0])


def _read_slice_header(file: str) -> Slice:
    reader = _header(file)
    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"{file} has colours in its voxels: give a series with one value per voxel.")
    position, orientation = _numbers(reader, POSITION, 3), _numbers(reader, ORIENTATION, 6)
    if position is None or orientation is None:
        raise InputError(
            f"{file} does not say where its slice lies in the patient: choose a series of CT or MR slices."
        )
    if _number(reader, SLOPE, 1.0) == 0:
        raise InputError(f"{file} has a rescale slope of 0, which makes all voxels the same: export the series again.")
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
    volume = _read_frames(name, files[0]) if len(files) == 1 else _read_slices(name, files)
    return replace(volume, frame=_tag(_header(files[0]), FRAME_OF_REFERENCE))


def _read_slices(name: str, files: Sequence[str]) -> Volume:
    slices = sorted_slices(name, files)
    first = slices[0]
    stack = _stack(name, np.array([one.position for one in slices]), first.orientation, first.spacing, first.shape)
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
    array, padding = padding_to_air(sitk.GetArrayFromImage(image), first.modality, _padding(_header(first.file)))
    return _placed(array, stack, first.modality, padding)


def sorted_slices(name: str, files: Sequence[str]) -> list[Slice]:
    """Return the slices of a series, or the frames of its one file, in the order in which `read_files` stacks them.

    Raises
    ------
    InputError
        Slices differ in size, pixel size or orientation, or one says nothing of its place.
    """
    if len(files) == 1:
        return _sorted_frames(_header(files[0]), _read_places(files[0]))
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
    places = _read_places(file)
    frames = _sorted_frames(reader, places)
    positions, first = np.array([frame.position for frame in frames]), frames[0]
    stack = _stack(name, positions, first.orientation, first.spacing, first.shape)
    order = [frame.frame - 1 for frame in frames if frame.frame is not None]
    array = _rescaled(sitk.GetArrayFromImage(image), places.rescales)[order]
    array, padding = padding_to_air(array, first.modality, _padding(reader))
    return _placed(array, stack, first.modality, padding)


@dataclass(frozen=True)
class _Places:
    """Where the frames of a multi-frame file lie, in its order: positions (n, 3), and the `Slice` values of all.

    ``rescales`` are slope and intercept of each frame, or none.
    """

    positions: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    rescales: list[tuple[float, float]]


def _sorted_frames(reader: sitk.ImageFileReader, places: _Places) -> list[Slice]:
    file, count = reader.GetFileName(), _frames(reader)
    if len(places.positions) != count:
        raise InputError(UNPLACED.format(file))
    shape, kind, modality = reader.GetSize()[:2], reader.GetPixelID(), _modality(reader)
    frames = [
        Slice(file, position, places.orientation, places.spacing, shape, kind, modality, number)
        for number, position in enumerate(places.positions, start=1)
    ]
    return sorted(frames, key=lambda one: float(one.position @ one.normal))


def _rescaled(array: np.ndarray, rescales: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return frames of which all were rescaled as the first one, each rescaled by its own slope and intercept."""
    if len(set(rescales)) < 2:
        return array
    slope, intercept = rescales[0]
    slopes, intercepts = np.array(rescales, np.float32).T[:, :, None, None]
    rescaled: np.ndarray = np.rint((array - intercept) / slope).astype(np.float32) * slopes + intercepts
    return rescaled


def _read_places(file: str) -> _Places:
    """Return where the frames of a multi-frame file lie, according to its functional groups."""
    header = pydicom().dcmread(file, stop_before_pixels=True)
    try:
        shared, frames = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence
        groups = {name: [(frame.get(name) or shared.get(name) or [None])[0] for frame in frames] for name in GROUPS}
        position, orientation, measures, rescaling = groups.values()
        positions = np.array([group.ImagePositionPatient for group in position], float)
        orientations = np.array([group.ImageOrientationPatient for group in orientation], float)
        spacings = np.array([group.PixelSpacing for group in measures], float)
        rescales = [
            (float(group.RescaleSlope), float(group.RescaleIntercept)) if group else (1.0, 0.0) for group in rescaling
        ]
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(UNPLACED.format(file)) from error
    if not np.allclose(orientations, orientations[0], atol=1e-3) or not np.allclose(spacings, spacings[0], rtol=1e-3):
        raise InputError(f"{file} has frames of different orientation or pixel size: export the scan alone.")
    if any(slope == 0 for slope, _ in rescales):
        raise InputError(f"{file} has a rescale slope of 0, which makes all voxels the same: export it again.")
    return _Places(positions, orientations[0].reshape(2, 3), spacings[0], rescales)


def _frames(reader: sitk.ImageFileReader) -> int:
    return math.prod(reader.GetSize()[2:])


@dataclass(frozen=True)
class _Stack:
    """How slices lie: on a rectangular grid, or in places of their own, of which a note says how."""

    geometry: Geometry
    stored: StoredGrid | None
    note: str


def _placed(array: np.ndarray, stack: _Stack, modality: str | None, padding: tuple[str, ...]) -> Volume:
    """Return the volume of a stack, resampled where it does not lie on a rectangular grid."""
    volume = Volume(array, stack.geometry, modality, notes=padding)
    return resampled(volume, stack.stored, stack.note) if stack.stored is not None else volume


def _stack(
    name: str, positions: np.ndarray, orientation: np.ndarray, spacing: np.ndarray, shape: Sequence[int]
) -> _Stack:
    """Return how slices with these positions (n, 3) lie, in order; see `Slice` for the others."""
    if not np.isfinite(positions).all():
        raise InputError(f"{name} has slices whose positions are not numbers: export the series again.")
    along_x, along_y = orientation / np.linalg.norm(orientation, axis=1, keepdims=True)
    normal = np.cross(along_x, along_y)
    normal /= np.linalg.norm(normal)
    heights = (positions - positions[0]) @ normal
    step, even = _slice_step(heights, name)
    columns, rows = shape
    direction = tuple(nearest_orthonormal(np.stack([along_x, along_y, normal], axis=1)).ravel().tolist())
    x, y, z = (float(value) for value in positions[0])
    size = (columns, rows, len(positions))
    geometry = Geometry(size, (float(spacing[1]), float(spacing[0]), step), (x, y, z), direction)
    check_geometry(geometry, name)
    tilt = _tilt(positions - positions[0] - np.outer(heights, normal), heights, name)
    skewed = abs(float(along_x @ along_y))
    if max(np.sin(np.arctan(tilt)), skewed) > LARGEST_SHEAR:
        raise InputError(TOO_SHEARED.format(name))
    tilted = tilt * (heights[-1] - heights[0]) > DRIFT_MM or skewed > SHEAR_TOLERANCE
    if even and not tilted:
        return _Stack(geometry, None, "")
    axes = np.stack([along_x * spacing[1], along_y * spacing[0]], axis=1)
    note = _unrectangular(np.diff(heights), even, tilted, tilt)
    return _Stack(geometry, StoredGrid(size, axes, positions), note)


def _unrectangular(gaps: np.ndarray, even: bool, tilted: bool, tilt: float) -> str:
    """Return what a user has to know of slices that make no rectangular grid."""
    what = [f"slices that are tilted by {np.degrees(np.arctan(tilt)):.1f} degrees (a tilted gantry?)"] if tilted else []
    what += [] if even else [f"slices at uneven distances ({gaps.min():.2f} to {gaps.max():.2f} mm)"]
    where = "its own voxels" if even else "that grid, and a DICOM SEG on its own slices"
    return f"The series has {' and '.join(what)}: {RESAMPLED}, and a label map of it lies on {where}."


def _tilt(drift: np.ndarray, heights: np.ndarray, name: str) -> float:
    """Return by how much slices are shifted sideways for each mm of height; ``drift`` (n, 3) is in mm.

    Raises
    ------
    InputError
        They are not shifted alike.
    """
    slope = heights @ drift / (heights @ heights)
    if np.linalg.norm(drift - np.outer(heights, slope), axis=1).max() > DRIFT_MM:
        raise InputError(
            f"{name} has slices that are shifted sideways (two scans in one series?): keep the slices of one scan, or "
            "resample it to a rectangular grid."
        )
    return float(np.linalg.norm(slope))


def _slice_step(heights: np.ndarray, name: str) -> tuple[float, bool]:
    """Return the distance of neighbouring slices in mm, and whether it is even; heights have shape (n,), in order.

    Raises
    ------
    InputError
        Slices are missing, or there are several at one place.
    """
    gaps = np.diff(heights)
    typical = float(np.median(gaps))
    repeated = int(np.count_nonzero(gaps < 0.01))
    if repeated:
        raise InputError(
            f"{name} has {counted(repeated, 'slice')} at the position of another one (several phases or echoes in one "
            "series): keep the slices of one of them."
        )
    step = float(heights[-1] - heights[0]) / len(gaps)
    if np.max(np.abs(heights - heights[0] - step * np.arange(len(heights)))) <= UNEVENNESS * step:
        return step, True
    beside = np.stack([np.r_[np.inf, gaps[:-1]], np.r_[gaps[1:], np.inf]])
    beside[~np.isfinite(beside)] = 0
    alone = gaps > MISSING_GAP * np.maximum(beside.max(axis=0), typical)
    alike = np.abs(gaps / typical - 1) <= UNEVENNESS
    if alone.any() and alike.mean() >= ALIKE:
        missing = counted(int(np.sum(np.round(gaps[alone] / typical) - 1)), "slice")
        raise InputError(f"{name} lacks {missing}: export the complete series, or resample it to even slices.")
    return step, False
