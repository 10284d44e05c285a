"""Tell label maps from images, by their values: a data set has them next to its images."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from segmamba.batch.datafiles import data_files
from segmamba.io.nifti import is_nifti
from segmamba.io.read import quiet

# Words in the name of a file or its folder, as data sets have them: labelsTr, segmentations, ct_seg, msk.
NAMES = re.compile(
    r"(?<![a-z])(segs?|segmentations?|labels?(tr|ts|va)?|labelmaps?|masks?|msk|gt|ground[-_ ]?truth|annotations?)"
    r"(?![a-z])",
    re.IGNORECASE,
)
CHUNK_BYTES = 1 << 20
# Images have more values than the first number. Between the two, label maps are told by their flat regions: most
# voxels of a label have the next one's value, and few voxels of an image have, as it has noise.
MOST_LABELS, FEW_LABELS, FLAT_PART = 256, 8, 0.6
LEAST_LABEL, LARGEST_LABEL = -1, 255  # -1 for "ignore"; larger ones only where the name says that it is a label map
# So many voxels that are not background are enough to tell.
ENOUGH_VOXELS = 10_000
# Images cannot be compressed to less than this part of their size, label maps much further.
COMPRESSED_IMAGE = 0.2
# Files are looked at in several threads, and `quiet` is for one at a time.
ITK = threading.Lock()


def why_label_map(path: str) -> str | None:
    """Return in a sentence why a file holds labels and not an image; None where it does not, or cannot be read.

    Of an image, little more than the beginning is read; of a label map, whose name does not say so, everything.
    """
    file = Path(path)
    named = any(NAMES.search(part) for part in (file.name, file.parent.name))
    try:
        labels = _labels(_chunks(file), named)
    except Exception:  # a damaged file may raise anything; the run says what is wrong with it
        return None
    if not labels:
        return None
    low, high = min(labels), max(labels)
    if low == high:
        return f"It has the value {low} everywhere, and its name is that of a label map." if named else None
    return f"It is a label map ({len(labels)} whole numbers, {low} to {high}), not an image."


def _labels(chunks: Iterable[np.ndarray], named: bool) -> set[int]:
    """Return the values of a label map, of which a part is enough if its name says that it is one; else none."""
    labels: set[int] = set()
    foreground = flat = 0
    for chunk in chunks:
        values = np.unique(chunk)
        if chunk.dtype.kind not in "iu" and not np.array_equal(values, np.round(values)):
            return set()
        labels.update(int(value) for value in values[: MOST_LABELS + 1])
        if len(labels) > MOST_LABELS or min(labels) < LEAST_LABEL or (max(labels) > LARGEST_LABEL and not named):
            return set()
        inside = chunk[:-1] != 0
        foreground += int(np.count_nonzero(inside))
        flat += int(np.count_nonzero(inside & (chunk[:-1] == chunk[1:])))
        if foreground >= ENOUGH_VOXELS and (named or not _are_labels(labels, flat, foreground)):
            break
    return labels if _are_labels(labels, flat, foreground) else set()


def _are_labels(labels: set[int], flat: int, foreground: int) -> bool:
    return len(labels) <= FEW_LABELS or flat >= FLAT_PART * foreground


def _chunks(path: Path) -> Iterator[np.ndarray]:
    """Give the voxels of a file as they are stored, x fastest, some at a time; none where it must be an image."""
    return _nifti_chunks(path) if is_nifti(path) else _itk_chunks(path)


def _nifti_chunks(path: Path) -> Iterator[np.ndarray]:
    import nibabel
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.openers import ImageOpener

    proxy = nibabel.load(path).dataobj  # type: ignore[attr-defined]
    assert isinstance(proxy, ArrayProxy)
    with ImageOpener(proxy.file_like) as stream:
        stream.seek(proxy.offset)
        yield from _pieces(stream, proxy.dtype, math.prod(proxy.shape))


def _itk_chunks(path: Path) -> Iterator[np.ndarray]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    _quietly(reader.ReadImageInformation)
    dtype = np.dtype(sitk.GetArrayFromImage(sitk.Image(1, 1, 1, reader.GetPixelID())).dtype)
    count = math.prod(reader.GetSize())
    files = data_files(str(path)) or [str(path)]
    size, whole = sum(Path(file).stat().st_size for file in files), count * dtype.itemsize
    if size >= whole and len(files) == 1:
        # Not compressed: the voxels are the end of the file.
        with open(files[0], "rb") as stream:
            stream.seek(size - whole)
            yield from _pieces(stream, dtype, count)
    elif size < COMPRESSED_IMAGE * whole:
        yield from sitk.GetArrayFromImage(_quietly(reader.Execute)).reshape(-1, math.prod(reader.GetSize()[:2]))


def _quietly(call: Callable[[], Any]) -> Any:
    with ITK, quiet():
        return call()


def _pieces(stream: Any, dtype: np.dtype, count: int) -> Iterator[np.ndarray]:
    step = CHUNK_BYTES // dtype.itemsize
    while count > 0:
        content = stream.read(min(step, count) * dtype.itemsize)
        if not content:
            raise EOFError
        yield np.frombuffer(content[: len(content) // dtype.itemsize * dtype.itemsize], dtype)
        count -= step
