"""DICOM series as a scanner or an archive would store them, written with pydicom from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from segmamba.io.volume import Geometry

STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage}


def write_slices(
    folder: Path,
    array: np.ndarray,
    geometry: Geometry,
    rescale: Sequence[tuple[float, float]] = ((1, -1024),),
    start: int = 0,
    **tags: Any,
) -> list[Path]:
    """Write a series, one file a slice; their names and numbers are in an order that says nothing of their places.

    Parameters
    ----------
    array : ndarray
        Shape (z, y, x): what the files rescale to.
    rescale : sequence of (slope, intercept)
        Of the slices, in turn.
    start : int
        Number of the first file.
    **tags
        Replace or add attributes of all files; None leaves one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    direction, matrix = np.reshape(geometry.direction, (3, 3)), geometry.affine
    shared = _shared(geometry) | tags
    numbers = np.random.default_rng(len(array)).permutation(len(array)).tolist()
    files = []
    for k, (number, plane) in enumerate(zip(numbers, array, strict=True)):
        slope, intercept = rescale[k % len(rescale)]
        # Two's complement: the same bytes for both values of PixelRepresentation.
        stored = np.rint((plane - intercept) / slope).astype(np.int64).astype(np.uint16)
        own = {
            "SOPInstanceUID": generate_uid(),
            "InstanceNumber": start + number + 1,
            "ImagePositionPatient": [f"{value:.6f}" for value in (matrix @ [0, 0, k, 1])[:3]],
            "ImageOrientationPatient": [f"{value:.8f}" for value in direction[:, :2].T.ravel()],
            "Rows": plane.shape[0],
            "Columns": plane.shape[1],
            "RescaleSlope": slope,
            "RescaleIntercept": intercept,
            "PixelData": stored.tobytes(),
        }
        files.append(folder / f"IM{start + number:03d}.dcm")
        write_dataset(files[-1], own | shared)
    return files


def write_frames(
    path: Path,
    array: np.ndarray,
    geometry: Geometry,
    order: Sequence[int],
    slopes: Sequence[float] = (1,),
    lost: str = "",
    positions: np.ndarray | None = None,
    repeated: bool = False,
    **tags: Any,
) -> None:
    """Write an enhanced CT or MR: some slices of an array (z, y, x) as the frames of one file, in an order.

    Parameters
    ----------
    slopes : sequence of float
        Those of the frames, in turn.
    lost : str
        Names a sequence that is left out.
    positions : ndarray, shape (z, 3), optional
        LPS millimetres of the slices, where they do not lie on the grid.
    repeated : bool
        Each frame says its orientation and pixel size, as many scanners write it, and not all together.
    **tags
        Replace or add attributes of the file; with ``Modality="MR"``, it is an enhanced MR.
    """
    direction, matrix = np.reshape(geometry.direction, (3, 3)), geometry.affine
    if positions is None:
        positions = np.array([(matrix @ [0, 0, k, 1])[:3] for k in range(len(array))])
    frames, planes = [], []
    for number, k in enumerate(order):
        slope = slopes[number % len(slopes)]
        place = {"ImagePositionPatient": [f"{value:.6f}" for value in positions[k]]}
        value = {"RescaleSlope": slope, "RescaleIntercept": -1024, "RescaleType": "HU"}
        frames.append(_groups(lost, PlanePositionSequence=place, PixelValueTransformationSequence=value))
        planes.append(np.rint((array[k] + 1024) / (slope or 1)).astype(np.uint16))
    orientation = {"ImageOrientationPatient": [f"{value:.8f}" for value in direction[:, :2].T.ravel()]}
    shared = _shared(geometry)
    measures = {name: shared.pop(name) for name in ("PixelSpacing", "SliceThickness")}
    common = {"PlaneOrientationSequence": orientation, "PixelMeasuresSequence": measures}
    if repeated:
        for frame in frames:
            frame.update(_groups(lost, **common))
    groups = _groups(lost, **({} if repeated else common))
    own = {
        "SOPClassUID": EnhancedMRImageStorage if tags.get("Modality") == "MR" else EnhancedCTImageStorage,
        "SOPInstanceUID": generate_uid(),
        "Rows": array.shape[1],
        "Columns": array.shape[2],
        "NumberOfFrames": len(frames),
        "SharedFunctionalGroupsSequence": [groups],
        "PerFrameFunctionalGroupsSequence": frames,
        "PixelData": np.stack(planes).tobytes(),
    }
    write_dataset(path, shared | own | tags)


def _groups(lost: str, **groups: dict[str, Any]) -> Dataset:
    item = Dataset()
    for name, tags in groups.items():
        if name != lost:
            setattr(item, name, [Dataset()])
            for tag, value in tags.items():
                setattr(item[name][0], tag, value)
    return item


def write_dataset(path: Path, tags: dict[str, Any]) -> None:
    """Write one DICOM file with these attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = tags["SOPClassUID"]
    meta.MediaStorageSOPInstanceUID = tags["SOPInstanceUID"]
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in tags.items():
        if value is not None:
            setattr(dataset, name, value)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def _shared(geometry: Geometry) -> dict[str, Any]:
    return {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "PositionReferenceIndicator": "",
        "PatientName": "Phantom",
        "PatientID": "P1",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyID": "1",
        "StudyDate": "20260102",
        "StudyTime": "120000",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "SeriesNumber": 3,
        "SeriesDescription": "spine",
        "PixelSpacing": [geometry.spacing[1], geometry.spacing[0]],
        "SliceThickness": geometry.spacing[2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
    }
