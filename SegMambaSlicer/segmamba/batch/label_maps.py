"""Tell label maps from images, by their values: a data set has them next to its images."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from segmamba.batch.datafiles import data_files
from segmamba.io.nifti import is_nifti
from segmamba.io.read import quiet
from segmamba.utils.words import counted

# Words in the name of a file or its folder, as data sets have them: labelsTr, segmentations, ct_seg, msk.
NAMES = re.compile(
    r"(?<![a-z])(segs?|segmentations?|labels?(tr|ts|va)?|labelmaps?|masks?|msk|aseg|aparc|gt|ground[-_ ]?truth"
    r"|annotations?)(?![a-z])",
    re.IGNORECASE,
)
CHUNK_BYTES = 1 << 20
# Up to so many values, a file is a label map. Up to the second number, it is one if most of its foreground voxels have
# the value of the next one in their row or column: 86 % and more do in label maps of the spine and the abdomen, and up
# to 68 % in 8-bit MR images, whose background is dark and flat (Docs/adr/0028).
FEW_LABELS, MOST_LABELS, FLAT_PART = 8, 200, 0.77
LEAST_LABEL, LARGEST_LABEL = -1, 999  # -1 for "ignore"; larger ones only where the name says that it is a label map
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
    return f"It is a label map ({counted(len(labels), 'whole number')}, {low} to {high}), not an image."


def _labels(chunks: Iterable[np.ndarray], named: bool) -> set[int]:
    """Return the values of a label map, of which a part is enough if its name says that it is one; else none."""
    labels: set[int] = set()
    flat, foreground = np.zeros(2, int), np.zeros(2, int)
    for chunk in chunks:
        # Counting is faster than sorting, where there is little to count.
        values = np.flatnonzero(np.bincount(chunk.ravel())) if chunk.dtype == np.uint8 else np.unique(chunk)
        if chunk.dtype.kind not in "iu" and not np.array_equal(values, np.round(values)):
            return set()
        labels.update(int(value) for value in values[: MOST_LABELS + 1])
        if len(labels) > MOST_LABELS or min(labels) < LEAST_LABEL or (max(labels) > LARGEST_LABEL and not named):
            return set()
        for axis in (0, 1):
            here, following = (chunk[:, :-1], chunk[:, 1:]) if axis else (chunk[:-1], chunk[1:])
            inside = here != 0
            foreground[axis] += np.count_nonzero(inside)
            flat[axis] += np.count_nonzero(inside & (here == following))
        if foreground.max() >= ENOUGH_VOXELS and (named or not _are_labels(labels, flat, foreground)):
            break
    return labels if _are_labels(labels, flat, foreground) else set()


def _are_labels(labels: set[int], flat: np.ndarray, foreground: np.ndarray) -> bool:
    return len(labels) <= FEW_LABELS or bool(np.any(flat >= FLAT_PART * np.maximum(foreground, 1)))


def _chunks(path: Path) -> Iterator[np.ndarray]:
    """Give the rows of a file as they are stored, shape (n, x), some at a time; none where it must be an image."""
    return _nifti_chunks(path) if is_nifti(path) else _itk_chunks(path)


def _nifti_chunks(path: Path) -> Iterator[np.ndarray]:
    import nibabel
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.openers import ImageOpener

    proxy = nibabel.load(path).dataobj  # type: ignore[attr-defined]
    assert isinstance(proxy, ArrayProxy)
    with ImageOpener(proxy.file_like) as stream:
        stream.seek(proxy.offset)
        yield from _pieces(stream, proxy.dtype, proxy.shape)


def _itk_chunks(path: Path) -> Iterator[np.ndarray]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    _quietly(reader.ReadImageInformation)
    dtype = np.dtype(sitk.GetArrayFromImage(sitk.Image(1, 1, 1, reader.GetPixelID())).dtype)
    files = data_files(str(path)) or [str(path)]
    size = sum(Path(file).stat().st_size for file in files)
    whole = math.prod(reader.GetSize()) * dtype.itemsize
    if size >= whole and len(files) == 1:
        # Not compressed: the voxels are the end of the file.
        with open(files[0], "rb") as stream:
            stream.seek(size - whole)
            yield from _pieces(stream, dtype, reader.GetSize())
    elif size < COMPRESSED_IMAGE * whole:
        for plane in sitk.GetArrayFromImage(_quietly(reader.Execute)):
            yield plane.reshape(-1, reader.GetSize()[0])


def _quietly(call: Callable[[], Any]) -> Any:
    with ITK, quiet():
        return call()


def _pieces(stream: Any, dtype: np.dtype, shape: Sequence[int]) -> Iterator[np.ndarray]:
    row, rows = shape[0] * dtype.itemsize, math.prod(shape[1:])
    step = max(1, CHUNK_BYTES // row)
    for first in range(0, rows, step):
        content = stream.read(min(step, rows - first) * row)
        if not content:
            raise EOFError
        yield np.frombuffer(content[: len(content) // row * row], dtype).reshape(-1, shape[0])
