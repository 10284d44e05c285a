"""What ITK passes over in silence when it reads NIfTI, found before it does.

Its reader fills up a truncated file, turns NaN into 0 (water, in a CT), prefers the qform to a sheared sform, takes the
voxel size from another field than the directions, mirrors the volume where that size is negative, takes 1 mm where it
is zero, and reads the voxels of "x.nii.gz" from "x.nii" where that is beside it.
"""

from __future__ import annotations

import gzip
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from segmamba.errors import InputError
from segmamba.utils.paths import PACKED

CHUNK = 1 << 24
FLOATS = {"16": "f4", "64": "f8"}
HEADER_SIZES = (348, 540)
# Where voxels can begin at the earliest in a file that holds header and voxels.
FIRST_VOXEL = 352
SINGLE_FILE = "1"
IMPOSSIBLE = "{} has a header with an impossible voxel size or direction: correct the header."
# Headers round the voxel size; more than this much, as a part of it, makes a volume of another size.
SPACING_TOLERANCE = 0.01


def unpacked_size(path: Path) -> int:
    """Return the number of bytes in a file, unpacked where its name ends in ".gz".

    Raises
    ------
    InputError
        It is truncated or damaged.
    """
    if not path.name.lower().endswith(".gz"):
        return path.stat().st_size
    unpacked = 0
    try:
        with gzip.open(path, "rb") as stream:
            while chunk := stream.read(CHUNK):
                unpacked += len(chunk)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} is truncated or damaged: copy or download it again.") from error
    return unpacked


def announced_size(path: Path) -> int:
    """Return how many bytes a file says that it holds, unpacked: a gzip file (below 4 GiB) does at its end."""
    size = path.stat().st_size
    if not path.name.lower().endswith(".gz"):
        return size
    with path.open("rb") as stream:
        stream.seek(max(0, size - 4))
        return int.from_bytes(stream.read(4), "little")


@contextmanager
def alone(path: Path) -> Iterator[Path]:
    """Give a path at which ITK finds a file and no other beside it: the file's own, or one in a private folder."""
    if not path.name.lower().endswith(PACKED) or not os.path.exists(os.fspath(path)[: -len(".gz")]):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="segmamba-") as folder:
        place = Path(folder) / f"volume{PACKED}"
        try:
            place.symlink_to(path.absolute())
        except OSError:  # Windows lets few users make links
            shutil.copyfile(path, place)
        yield place


def is_nifti(reader: sitk.ImageFileReader) -> bool:
    """Tell whether the file, whose header has been read, is a NIfTI file."""
    return all(reader.HasMetaDataKey(key) for key in ("vox_offset", "bitpix", "datatype", "sform_code"))


def check_header(path: Path, reader: sitk.ImageFileReader) -> None:
    """Make sure that a header says how large its voxels are and where they begin.

    Raises
    ------
    InputError
        It does not.
    """
    offset = float(reader.GetMetaData("vox_offset"))
    if reader.GetMetaData("nifti_type") == SINGLE_FILE and not offset >= FIRST_VOXEL:
        raise InputError(f"{path} has a damaged header (its voxels begin within it): export it again.")
    sizes, matrix = _voxel_size(reader), _sform(reader)
    if not (np.isfinite(matrix).all() and np.isfinite(sizes).all() and np.all(sizes > 0)):
        raise InputError(IMPOSSIBLE.format(path))


def check_voxel_size(path: Path, reader: sitk.ImageFileReader) -> None:
    """Make sure that the two places of a header that state the voxel size agree.

    Raises
    ------
    InputError
        They do not.
    """
    sizes, lengths = _voxel_size(reader), np.linalg.norm(_sform(reader), axis=0)
    if reader.GetMetaData("sform_code") != "0" and not np.allclose(lengths, sizes, rtol=SPACING_TOLERANCE):
        first, second = (" x ".join(f"{part:g}" for part in both) for both in (sizes, lengths))
        raise InputError(f"{path} gives two voxel sizes ({first} and {second}) in its header: correct the header.")


def expected_size(reader: sitk.ImageFileReader) -> float:
    """Return the number of (unpacked) bytes that the header announces."""
    bits = math.prod(reader.GetSize()) * float(reader.GetMetaData("bitpix"))
    return float(reader.GetMetaData("vox_offset")) + bits / 8


def direction(reader: sitk.ImageFileReader) -> np.ndarray:
    """Return the directions of the sform's axes, shape (3, 3); of the identity if it has none."""
    matrix = _sform(reader)
    lengths = np.linalg.norm(matrix, axis=0)
    return matrix / lengths if lengths.all() else np.eye(3)


def _sform(reader: sitk.ImageFileReader) -> np.ndarray:
    """Return the sform's axes, shape (3, 3); the identity if it has none."""
    if reader.GetMetaData("sform_code") == "0":
        return np.eye(3)
    return np.array([[float(part) for part in reader.GetMetaData(f"srow_{axis}").split()[:3]] for axis in "xyz"])


def _voxel_size(reader: sitk.ImageFileReader) -> np.ndarray:
    return np.array([float(reader.GetMetaData(f"pixdim[{axis}]")) for axis in (1, 2, 3)])


def count_bad_values(path: Path, reader: sitk.ImageFileReader) -> int:
    """Return the number of voxels that are NaN or infinite in the file.

    Raises
    ------
    InputError
        The file, which was whole before, is no longer so.
    """
    kind = FLOATS.get(reader.GetMetaData("datatype"))
    if kind is None:
        return 0
    try:
        return _count_bad_values(path, reader, kind)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise InputError(f"{path} is truncated or damaged: copy or download it again.") from error


def _count_bad_values(path: Path, reader: sitk.ImageFileReader, kind: str) -> int:
    bad = 0
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as stream:
        header = stream.read(int(float(reader.GetMetaData("vox_offset"))))
        order = "<" if int.from_bytes(header[:4], "little") in HEADER_SIZES else ">"
        left = math.prod(reader.GetSize()) * int(kind[1])
        while chunk := stream.read(min(CHUNK, left)):
            left -= len(chunk)
            bad += int(np.count_nonzero(~np.isfinite(np.frombuffer(chunk, dtype=order + kind))))
    return bad
