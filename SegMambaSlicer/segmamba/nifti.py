"""What ITK passes over in silence when it reads NIfTI, found before it does.

Its reader fills up a truncated file, turns NaN into 0 (water, in a CT) and prefers the qform to a sheared sform.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from segmamba.errors import InputError

CHUNK = 1 << 24
FLOATS = {"16": "f4", "64": "f8"}
HEADER_SIZES = (348, 540)


def unpacked_size(path: Path) -> int:
    """Return the number of bytes in a gzip file.

    Raises
    ------
    InputError
        It is truncated or damaged.
    """
    unpacked = 0
    try:
        with gzip.open(path, "rb") as stream:
            while chunk := stream.read(CHUNK):
                unpacked += len(chunk)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} is truncated or damaged: copy or download it again.") from error
    return unpacked


def is_nifti(reader: sitk.ImageFileReader) -> bool:
    """Tell whether the file, whose header has been read, is a NIfTI file."""
    return all(reader.HasMetaDataKey(key) for key in ("vox_offset", "bitpix", "datatype", "sform_code"))


def expected_size(reader: sitk.ImageFileReader) -> float:
    """Return the number of (unpacked) bytes that the header announces."""
    bits = math.prod(reader.GetSize()) * float(reader.GetMetaData("bitpix"))
    return float(reader.GetMetaData("vox_offset")) + bits / 8


def direction(reader: sitk.ImageFileReader) -> np.ndarray:
    """Return the directions of the sform's axes, shape (3, 3); of the identity if it has none."""
    if reader.GetMetaData("sform_code") == "0":
        return np.eye(3)
    rows = [[float(part) for part in reader.GetMetaData(f"srow_{axis}").split()[:3]] for axis in "xyz"]
    lengths = np.linalg.norm(rows, axis=0)
    return np.array(rows) / lengths if lengths.all() else np.eye(3)


def count_bad_values(path: Path, reader: sitk.ImageFileReader) -> int:
    """Return the number of voxels that are NaN or infinite in the file."""
    kind = FLOATS.get(reader.GetMetaData("datatype"))
    if kind is None:
        return 0
    bad = 0
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as stream:
        header = stream.read(int(float(reader.GetMetaData("vox_offset"))))
        order = "<" if int.from_bytes(header[:4], "little") in HEADER_SIZES else ">"
        left = math.prod(reader.GetSize()) * int(kind[1])
        while chunk := stream.read(min(CHUNK, left)):
            left -= len(chunk)
            bad += int(np.count_nonzero(~np.isfinite(np.frombuffer(chunk, dtype=order + kind))))
    return bad
