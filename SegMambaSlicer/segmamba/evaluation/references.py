"""Reference label maps: their numbering, and which of their vertebrae are eligible."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segmamba.errors import InputError
from segmamba.evaluation.names import OWN_IDS, TOTALSEGMENTATOR_IDS
from segmamba.io.read import read_volume
from segmamba.io.volume import Volume
from segmamba.spine.levels import SACRUM
from segmamba.utils.arrays import as_labels, label_boxes

HIGHEST = 255
# VerSe's labels of fused vertebrae: sacrum and coccyx.
FUSED = (SACRUM, 27)
# TotalSegmentator v2 classes to VerSe labels: sacrum, S1, L5 to L1, T12 to T1, C7 to C1.
TOTALSEGMENTATOR = {25: SACRUM, 26: SACRUM} | {27 + i: 24 - i for i in range(5)}
TOTALSEGMENTATOR |= {32 + i: 19 - i for i in range(12)} | {44 + i: 7 - i for i in range(7)}
# Fewer voxels than this say little about a shape.
SMALLEST_VOXELS = 1000


def read_reference(path: Path, ids: str = OWN_IDS) -> Volume:
    """Read a reference label map as uint8.

    Parameters
    ----------
    path : Path
    ids : str
        "own": the values are those of our labels. "totalsegmentator": they are classes of TotalSegmentator v2, of
        which the vertebrae are kept, in VerSe's numbering.

    Raises
    ------
    InputError
        It cannot be read, or is not such a label map.
    """
    volume = read_volume(path)
    labels = as_labels(volume.array, HIGHEST, str(path))
    if ids == TOTALSEGMENTATOR_IDS:
        table = np.zeros(HIGHEST + 1, dtype=np.uint8)
        table[list(TOTALSEGMENTATOR)] = list(TOTALSEGMENTATOR.values())
        labels = table[labels]
    if not labels.any():
        raise InputError(f"{path} holds none of the structures to compare: check its numbering (--reference-ids).")
    return Volume(labels, volume.geometry)


def at_border(box: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
    """Say whether a bounding box has the first or the last slice of any axis in it."""
    return any(part.start == 0 or part.stop == length for part, length in zip(box, shape, strict=True))


def ineligible_reasons(reference: np.ndarray) -> dict[int, str | None]:
    """Say for each label of a reference of vertebrae why it is not eligible, or None where it is.

    Only the reference decides. A vertebra is eligible if it has more than 1,000 voxels and none in the first or last
    slice of any axis, where the volume may truncate it.

    Parameters
    ----------
    reference : ndarray of uint8 (z, y, x)
        In VerSe's numbering, at the resolution that it came in.
    """
    reasons: dict[int, str | None] = {}
    for value, box in label_boxes(reference).items():
        if value in FUSED:
            reasons[value] = "not a single vertebra"
        elif at_border(box, reference.shape):
            reasons[value] = "at the volume's border"
        elif np.count_nonzero(reference[box] == value) <= SMALLEST_VOXELS:
            reasons[value] = f"not over {SMALLEST_VOXELS:,} voxels"
        else:
            reasons[value] = None
    return reasons
