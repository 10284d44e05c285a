"""Writing several volumes on one grid as one file of four dimensions, without holding them all in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from segmamba.io import nifti
from segmamba.io.packed import packing
from segmamba.io.volume import Geometry

CHANNELS_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
NRRD_SPACE = "left-posterior-superior"


def write_channels(path: Path, geometry: Geometry, names: Sequence[str], channels: Iterable[np.ndarray]) -> None:
    """Write channels as NIfTI or NRRD by the name of the file; they are the fourth, slowest axis.

    Parameters
    ----------
    path : Path
    geometry : Geometry
        Their grid.
    names : sequence of str
        NRRD gets them as the fields ``Channel0_Name`` and so on; NIfTI has no place for them.
    channels : iterable of ndarray
        One uint8 array (z, y, x) for each name, taken one by one.
    """
    if nifti.is_nifti(path):
        nifti.write_channels(path, channels, geometry, len(names))
        return
    matrix = geometry.affine
    axes = [_vector(matrix[:3, axis]) for axis in range(3)]
    header = (
        "NRRD0005",
        "type: uint8",
        "dimension: 4",
        f"space: {NRRD_SPACE}",
        f"sizes: {' '.join(map(str, (*geometry.size, len(names))))}",
        f"space directions: {' '.join(axes)} none",
        "kinds: domain domain domain list",
        "encoding: gzip",
        f"space origin: {_vector(matrix[:3, 3])}",
        *(f"Channel{number}_Name:={name}" for number, name in enumerate(names)),
    )
    with path.open("wb") as file:
        file.write(("\n".join(header) + "\n\n").encode())
        with packing(file) as stream:
            for channel in channels:
                for plane in channel:
                    stream.write(np.ascontiguousarray(plane).data)


def _vector(values: np.ndarray) -> str:
    return f"({','.join(f'{float(value):.17g}' for value in values)})"
