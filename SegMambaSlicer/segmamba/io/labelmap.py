"""Writing a segmentation: a plain label map, or Slicer's segmentation file (``.seg.nrrd``)."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from segmamba.errors import InputError, OutputError
from segmamba.io.volume import Geometry, quiet, read_image, to_image
from segmamba.models.manifest import Label
from segmamba.utils.paths import check_name

SEGMENTATION_EXTENSION = ".seg.nrrd"
# Longest first: "x.seg.nrrd" also ends in ".nrrd".
LABELMAP_EXTENSIONS = (SEGMENTATION_EXTENSION, ".nii.gz", ".nii", ".nrrd", ".mha")
REPRESENTATION = "Binary labelmap"


def check_output(path: str | os.PathLike[str], extensions: Sequence[str] = LABELMAP_EXTENSIONS) -> None:
    """Make sure, before any work is done, that a result can be written to ``path``.

    Raises
    ------
    OutputError
        The extension is none of ``extensions``, the name cannot be one, or the folder is not there or not writable.
    """
    path = Path(path)
    _extension(path, extensions)
    check_name(path)
    folder = path.absolute().parent
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file.")
    if not folder.is_dir():
        raise OutputError(f"The folder {folder} does not exist: create it, or choose another one.")
    try:
        # Only an attempt tells the truth on network drives and on Windows.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be written to: choose another one.") from error


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], extensions: Sequence[str] = LABELMAP_EXTENSIONS) -> Iterator[Path]:
    """Give a temporary name beside ``path`` that becomes ``path`` when the block ends without an error.

    Whatever happens, there is never a partial file at ``path``, and no temporary file stays.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    path = Path(path)
    extension = _extension(path, extensions)
    temporary = path.absolute().with_name(f".{secrets.token_hex(8)}{extension}")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path} cannot be written: check the folder's permissions and free space.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_labelmap(
    path: str | os.PathLike[str], labels: np.ndarray, geometry: Geometry, segments: Sequence[Label]
) -> None:
    """Write labels on the grid they lie on.

    Parameters
    ----------
    path : path
        ``.seg.nrrd`` writes Slicer's segmentation file with names, colours and terminology of the labels that are
        present; ``.nii.gz``, ``.nii``, ``.nrrd`` and ``.mha`` write a plain label map with the labels' values.
    labels : ndarray of uint8
        Shape (z, y, x).
    geometry : Geometry
        The grid of ``labels``.
    segments : sequence of Label
        What the values mean.

    Raises
    ------
    OutputError
        The extension is unknown or the file cannot be written; then there is no file.
    """
    if labels.shape != geometry.size[::-1]:
        raise ValueError(f"labels of shape {labels.shape} do not fit a grid of size {geometry.size}")
    with whole_file(path) as temporary:
        image = to_image(np.ascontiguousarray(labels, dtype=np.uint8), geometry)
        if temporary.name.endswith(SEGMENTATION_EXTENSION):
            for key, value in segmentation_metadata(labels, geometry, segments).items():
                image.SetMetaData(key, value)
        with quiet():
            sitk.WriteImage(image, str(temporary), useCompression=True)
        # ITK says nothing when a disk is full while it writes NIfTI; what is read back tells.
        try:
            written = read_image(temporary).array
        except InputError as error:
            raise OSError("the file is not whole") from error
        if not np.array_equal(written, labels):
            raise OSError("the file does not hold what was written to it")


def segment_id(label: Label) -> str:
    """Return the label's segment ID in Slicer, for example "L1_vertebra"."""
    return label.name.replace(" ", "_")


def segmentation_metadata(labels: np.ndarray, geometry: Geometry, segments: Sequence[Label]) -> dict[str, str]:
    """Return the NRRD fields that Slicer's segmentation reader looks for (one layer, labels present only)."""
    fields = {
        "Segmentation_MasterRepresentation": REPRESENTATION,
        "Segmentation_ContainedRepresentationNames": f"{REPRESENTATION}|",
        "Segmentation_ConversionParameters": f"Reference image geometry|{_slicer_geometry(geometry)}|&",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    extents = label_boxes(labels)
    present = [label for label in segments if label.value in extents]
    for number, label in enumerate(present):
        extent = " ".join(f"{part.start} {part.stop - 1}" for part in reversed(extents[label.value]))
        segment = {
            "ID": segment_id(label),
            "Name": label.name,
            "NameAutoGenerated": "1",
            "Color": " ".join(f"{part / 255:.6g}" for part in label.color),
            "ColorAutoGenerated": "1",
            "LabelValue": str(label.value),
            "Layer": "0",
            "Extent": extent,
            "Tags": f"Segmentation.Status:inprogress|TerminologyEntry:{label.terminology_tag}|",
        }
        fields |= {f"Segment{number}_{key}": value for key, value in segment.items()}
    return fields


def label_boxes(labels: np.ndarray) -> dict[int, tuple[slice, slice, slice]]:
    """Return the bounding box (slices along z, y, x) of every label value that is present."""
    from scipy import ndimage

    around = bounding_box(labels > 0)
    if around is None:
        return {}
    # Most of a volume has no label: what has is searched alone.
    boxes = {
        value: tuple(slice(a.start + b.start, a.stop + b.start) for a, b in zip(box, around, strict=True))
        for value, box in enumerate(ndimage.find_objects(labels[around]), start=1)
        if box is not None
    }
    return {value: (box[0], box[1], box[2]) for value, box in boxes.items()}


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Return the box (a slice along each axis) around all that is true in a mask; None where nothing is."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(mask[tuple(box)].any(axis=others))
        if not filled.size:
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _extension(path: Path, extensions: Sequence[str]) -> str:
    name = path.name.lower()
    for extension in extensions:
        if name.endswith(extension) and len(name) > len(extension):
            return extension
    raise OutputError(f"{path} has no extension that can be written: use {', '.join(extensions)}.")


def _slicer_geometry(geometry: Geometry) -> str:
    """Return a grid as Slicer serialises it: voxel index to RAS matrix, then the extent."""
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.index_to_lps()
    extent = [bound for size in geometry.size for bound in (0, size - 1)]
    # Adding 0.0 turns -0.0 into 0.0.
    return "".join(f"{value:.17g};" for value in to_ras.ravel() + 0.0) + "".join(f"{bound};" for bound in extent)
