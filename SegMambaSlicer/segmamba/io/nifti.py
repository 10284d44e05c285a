"""Reading NIfTI (1 and 2): nibabel reads the header, and what it passes over is refused here.

That is a voxel size that is not positive or contradicts the sform, and voxels that begin within the header. The voxels
are read here, too: once, straight into their array, and to the end of the file, where a gzip file has its checksum. The
grid and the type of rescaled voxels are those of ITK, which shows the volume in Slicer; but for a file without an
orientation, which ITK would turn by 180 degrees.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segmamba.errors import DeviceError, InputError
from segmamba.io import packed
from segmamba.io.volume import (
    IMPOSSIBLE,
    NO_MEMORY,
    RAS_TO_LPS,
    UNKNOWN,
    Geometry,
    Volume,
    are_orthonormal,
    check_geometry,
    check_scalar_3d,
    corners,
    nearest_orthonormal,
)
from segmamba.utils.parallel import at_once
from segmamba.utils.paths import is_gzip

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

# End of the name of a file with voxels alone: that of its header.
PAIRS = {".img": ".hdr", ".img.gz": ".hdr.gz"}
ENDS = (".nii", ".nii.gz", *PAIRS, *PAIRS.values())
CHUNK = 1 << 22
# Planes that are rescaled at a time, in a thread.
PLANES = 8
# Between a header and the voxels are at least the four bytes that say whether extensions follow.
EXTENSION_FLAG = 4
SINGLE_FILE = b"n+"
SCANNER = 1
# The lowest bits of the units are those of length: metres, micrometres, else millimetres.
UNIT_BITS, UNITS = 7, {1: 1000.0, 3: 0.001}
# Headers round the voxel size; more than this much, as a part of it, makes a volume of another size.
SPACING_TOLERANCE = 0.01
DAMAGED = "{} is truncated or damaged: copy or download it again."
# Header of an Analyze 7.5 file begins with the same size; what says NIfTI is missing.
ANALYZE = (
    "{} is an Analyze file, which does not say left from right: convert it to NIfTI with the program that wrote it."
)
NO_ORIENTATION = (
    "The file does not say how the patient lies (qform and sform have the code 0): x was taken to grow to the right, y "
    "to the front and z to the head. If that is not so, all results are wrong: give the file its orientation."
)
# By how much sform and qform may place a voxel differently, in voxels.
FORM_TOLERANCE = 0.5
FORM_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)
TWO_PLACES = (
    "The file has two places in its header, sform and qform, which are up to {:.0f} mm apart. The {} was used, as in "
    "Slicer; {} A label map in NIfTI keeps both."
)


def is_nifti(path: Path) -> bool:
    """Tell whether a file has a name of NIfTI."""
    return path.name.lower().endswith(ENDS)


def read(path: Path) -> Volume:
    """Read a NIfTI file, or a pair of header (.hdr) and voxels (.img) by the name of one of them.

    Returns
    -------
    Volume
        In the data type of the file; rescaled values as int16 where that holds them, else as float32, or float64 where
        the file has that. They may be NaN.
        Its axes may be at other than right angles.

    Raises
    ------
    InputError
        It is not a 3-D scalar image with a sound geometry, or not whole.
    DeviceError
        It does not fit into memory.
    """
    described, stored = _files(path)
    for half in (described, stored):
        if not half.is_file():
            raise InputError(f"{path} belongs to {half.name}, which is missing: copy both into one folder.")
    try:
        header = _header(described)
        if header is None:
            raise InputError((ANALYZE if described != stored else UNKNOWN).format(path))
        dtype = _voxel_type(header, path)
        with np.errstate(all="ignore"):  # numbers that cannot be are refused
            geometry, notes = _geometry(header, path)
        check_geometry(geometry, str(path), sheared=True)
        raw = _voxels(stored, path, int(header["vox_offset"]), dtype, geometry.size)
    except packed.DAMAGED as error:
        raise InputError(DAMAGED.format(path)) from error
    return Volume(_rescaled(raw, header), geometry, notes=notes)


def _files(path: Path) -> tuple[Path, Path]:
    """Return the files with the header and with the voxels: one and the same, or a pair."""
    name = str(path)
    for voxels, header in PAIRS.items():
        for end in (voxels, header):
            if name.lower().endswith(end):
                return Path(name[: -len(end)] + header), Path(name[: -len(end)] + voxels)
    return path, path


def _opened(path: Path) -> BufferedIOBase:
    return packed.opened(path) if is_packed(path) else path.open("rb")


def _header(path: Path) -> Nifti1Header | None:
    """Return a file's header as nibabel reads it, unchecked; None where it does not begin with one."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    if is_packed(path) and not is_gzip(path):
        return None
    with _opened(path) as stream:
        content = stream.read(Nifti2Header.sizeof_hdr)
    kinds: tuple[Any, ...] = (Nifti1Header, Nifti2Header)
    for kind in kinds:
        for order in ("little", "big"):
            size = kind.sizeof_hdr
            if len(content) >= size and int.from_bytes(content[:4], order) == size:
                header: Nifti1Header = kind(content[:size], "<" if order == "little" else ">", check=False)
                return header if header["magic"].item() in (kind.single_magic, kind.pair_magic) else None
    return None


def _voxel_type(header: Nifti1Header, path: Path) -> np.dtype:
    """Return the type of the voxels; InputError unless the header announces one 3-D volume of numbers in its file."""
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype: np.dtype = header.get_data_dtype()
        shape = header.get_data_shape()
    except (HeaderDataError, KeyError) as error:
        raise InputError(UNKNOWN.format(path)) from error
    if not 1 <= header["dim"][0] <= 7 or min(shape) < 0:
        raise InputError(UNKNOWN.format(path))
    check_scalar_3d(shape, len(dtype.names or [""]), str(path), dtype.name)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(UNKNOWN.format(path))
    first = header.sizeof_hdr + EXTENSION_FLAG if header["magic"].item().startswith(SINGLE_FILE) else 0
    if not first <= float(header["vox_offset"]) < math.inf:
        raise InputError(f"{path} has a damaged header (its voxels begin within it): export it again.")
    return dtype


def _geometry(header: Nifti1Header, path: Path) -> tuple[Geometry, tuple[str, ...]]:
    """Return the grid, and what a user has to know of it.

    It has the voxel size of ``pixdim``, and directions and origin of the sform or the qform.
    """
    spacing = header["pixdim"][1:4].astype(float)
    sform = header.get_sform().astype(float)
    has_sform, has_qform = header["sform_code"] != 0, header["qform_code"] != 0
    if not (np.isfinite(spacing).all() and np.all(spacing > 0)):
        raise InputError(IMPOSSIBLE.format(path))
    if has_sform:
        lengths = np.linalg.norm(sform[:3, :3], axis=0)
        if not (np.isfinite(sform).all() and np.isfinite(lengths).all() and lengths.all()):
            raise InputError(IMPOSSIBLE.format(path))
        # Of a sheared grid, some programs write the distances of the planes.
        planes = 1 / np.linalg.norm(np.linalg.pinv(sform[:3, :3]), axis=1)
        agrees = np.isclose(lengths, spacing, rtol=SPACING_TOLERANCE) | np.isclose(
            planes, spacing, rtol=SPACING_TOLERANCE
        )
        if not agrees.all():
            first, second = (" x ".join(f"{part:g}" for part in both) for both in (spacing, lengths))
            raise InputError(f"{path} gives two voxel sizes ({first} and {second}) in its header: correct the header.")
    # As ITK chooses, so that a result lies on its volume in Slicer: the sform of the scanner, else the qform.
    notes: tuple[str, ...] = ()
    by_sform = has_sform and (header["sform_code"] == SCANNER or not has_qform)
    if by_sform:
        to_ras = sform
        if not are_orthonormal(sform[:3, :3] / lengths):
            spacing = lengths
    elif has_qform:
        to_ras = _qform(header, path)
    else:
        to_ras = np.eye(4)  # the standard's own axes
        notes = (NO_ORIENTATION,)
    if has_sform and has_qform:
        notes = _two_places(header, sform, _qform(header, path), by_sform)
    to_lps = RAS_TO_LPS @ to_ras
    direction = to_lps[:3, :3] / np.linalg.norm(to_lps[:3, :3], axis=0)
    if are_orthonormal(direction):
        direction = nearest_orthonormal(direction)
    unit = UNITS.get(int(header["xyzt_units"]) & UNIT_BITS, 1.0)
    columns, rows, slices = header.get_data_shape()[:3]
    along_x, along_y, along_z = (unit * spacing).tolist()
    x, y, z = (unit * to_lps[:3, 3]).tolist()
    geometry = Geometry(
        (columns, rows, slices), (along_x, along_y, along_z), (x, y, z), tuple(direction.ravel().tolist()), header
    )
    return geometry, notes


def _two_places(header: Nifti1Header, sform: np.ndarray, qform: np.ndarray, by_sform: bool) -> tuple[str, ...]:
    """Return a sentence where sform and qform place voxels differently; ``qform`` is for voxels of 1 mm."""
    spacing = header["pixdim"][1:4].astype(float)
    qform = qform @ np.diag([*spacing, 1.0])
    last = np.array(header.get_data_shape()[:3]) - 1
    apart = float(np.linalg.norm(((sform - qform) @ corners((0, 0, 0), last).T)[:3], axis=0).max())
    if not apart > FORM_TOLERANCE * spacing.max():
        return ()
    unit = UNITS.get(int(header["xyzt_units"]) & UNIT_BITS, 1.0)
    others = "some other programs use the qform." if by_sform else "nibabel, FSL and nnU-Net use the sform."
    return (TWO_PLACES.format(unit * apart, "sform" if by_sform else "qform", others),)


def _qform(header: Nifti1Header, path: Path) -> np.ndarray:
    """Return the qform, shape (4, 4), for voxels of 1 mm."""
    from nibabel.spatialimages import HeaderDataError

    # The voxel size, which may be too small for its product with a direction, is left out. A zero for the side, which
    # nibabel refuses, means that nothing is mirrored.
    header = header.copy()
    header["pixdim"][:4] = (-1 if header["pixdim"][0] < 0 else 1, 1, 1, 1)
    try:
        matrix: np.ndarray = header.get_qform()
    except (HeaderDataError, ValueError) as error:
        raise InputError(IMPOSSIBLE.format(path)) from error
    if not np.isfinite(matrix).all():
        raise InputError(IMPOSSIBLE.format(path))
    return matrix


def _voxels(stored: Path, path: Path, offset: int, dtype: np.dtype, size: tuple[int, int, int]) -> np.ndarray:
    """Return the voxels of a file, shape (z, y, x), as they are stored.

    A gzip file is read to its end: only there does it say whether what was unpacked is right.
    """
    count = math.prod(size)
    length = sys.maxsize if is_packed(stored) else stored.stat().st_size
    if length < offset + count * dtype.itemsize:
        raise InputError(f"{path} is truncated: copy or download it again.")
    try:
        raw = np.empty(count, dtype)
    except (MemoryError, ValueError) as error:
        raise DeviceError(NO_MEMORY.format(path, count)) from error
    with _opened(stored) as stream:
        stream.seek(offset)
        rest = raw.view(np.uint8).data
        while rest:
            filled = stream.readinto(rest[:CHUNK])
            if not filled:
                raise InputError(f"{path} is truncated: copy or download it again.")
            rest = rest[filled:]
        while is_packed(stored) and stream.read(CHUNK):
            pass
    return raw.reshape(size[::-1]).astype(dtype.newbyteorder("="), copy=False)


def _rescaled(raw: np.ndarray, header: Nifti1Header) -> np.ndarray:
    """Return voxels with the header's slope and intercept applied.

    Whole numbers that stay such, as Hounsfield units mostly are, are int16 where they fit into it, which is half of the
    memory. Others have the type that ITK gives them.
    """
    slope, intercept = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    slope = slope if math.isfinite(slope) and slope else 1.0
    intercept = intercept if math.isfinite(intercept) else 0.0
    if (slope, intercept) == (1.0, 0.0):
        return raw
    kind = _rescaled_type(raw, slope, intercept)
    # In their own place where they fit into it: each plane is read before it is written.
    result = raw if kind == raw.dtype else np.empty(raw.shape, kind)
    # Whole numbers whose results are known to fit need no floating point.
    shifted = kind == np.int16 and slope == 1.0 and raw.dtype.itemsize <= 2

    def rescale(first: int) -> None:
        with np.errstate(all="ignore"):  # what becomes infinite is refused with the values
            for plane, into in zip(raw[first : first + PLANES], result[first : first + PLANES], strict=True):
                if shifted:
                    np.add(plane, int(intercept), out=into, dtype=np.int32, casting="unsafe")
                else:
                    into[...] = plane.astype(np.float64) * slope + intercept

    at_once(rescale, range(0, len(raw), PLANES))
    return result


def _rescaled_type(raw: np.ndarray, slope: float, intercept: float) -> np.dtype[Any]:
    if raw.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        ends = [float(end) * slope + intercept for end in (raw.min(), raw.max())]
        whole = np.iinfo(np.int16)
        if whole.min <= min(ends) and max(ends) <= whole.max:
            return np.dtype(np.int16)
    return raw.dtype if raw.dtype == np.float64 else np.dtype(np.float32)


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write an array of shape (z, y, x) as NIfTI 1 on a grid that may be sheared.

    On the grid of a NIfTI file it has both places of that file's header, so that it lies on it in every program,
    whichever of them that uses.
    """
    _write(path, [array], geometry, array.shape[::-1], array.dtype)


def write_channels(path: Path, channels: Iterable[np.ndarray], geometry: Geometry, count: int) -> None:
    """Write so many arrays of uint8, shape (z, y, x), as one file of four dimensions; they are taken one by one."""
    _write(path, channels, geometry, (*geometry.size, count), np.dtype(np.uint8))


def _write(
    path: Path, arrays: Iterable[np.ndarray], geometry: Geometry, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_zooms((*geometry.spacing, *[1.0] * (len(shape) - 3)))
    header.set_slope_inter(1, 0)
    source = geometry.header
    if source is not None and _states(source, geometry, path):
        for name in FORM_FIELDS:
            header[name] = source[name]
        header["pixdim"][:4] = source["pixdim"][:4]
    else:
        affine, rectangular = RAS_TO_LPS @ geometry.affine, are_orthonormal(np.reshape(geometry.direction, (3, 3)))
        header.set_qform(affine if rectangular else None, SCANNER if rectangular else 0)
        header.set_sform(affine, SCANNER)
        header.set_xyzt_units("mm")
    # Not by way of nibabel's images, which have one affine for both places.
    first = header.sizeof_hdr + EXTENSION_FLAG
    header["vox_offset"] = first
    with path.open("wb") as file, packed.packing(file) if is_packed(path) else contextlib.nullcontext(file) as stream:
        stream.write(header.binaryblock.ljust(first, b"\0"))
        for array in arrays:
            for plane in array:
                stream.write(np.ascontiguousarray(plane).data)


def is_packed(path: Path) -> bool:
    """Say whether a file is compressed as a whole, by its name."""
    return path.name.lower().endswith(".gz")


def _states(header: Nifti1Header, geometry: Geometry, path: Path) -> bool:
    """Say whether a header states a grid, which may have been cropped or turned since it was read."""
    stated = _geometry(header, path)[0]
    return stated.size == geometry.size and np.allclose(stated.affine, geometry.affine, atol=1e-3)
