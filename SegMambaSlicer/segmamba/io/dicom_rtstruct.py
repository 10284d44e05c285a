"""Segmentations as a DICOM RT Structure Set (RTSTRUCT): contours on the slices of the series."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import numpy as np

from segmamba import __version__
from segmamba.io.contours import outlines
from segmamba.io.dicom import Slice
from segmamba.io.dicom_headers import pydicom
from segmamba.io.dicom_source import (
    LABEL,
    LONGEST,
    MANUFACTURER,
    MAY_BE_EMPTY,
    NO_DEVICE,
    UNICODE,
    Identifiers,
    Result,
    Source,
)
from segmamba.labels import Code, Label
from segmamba.utils.arrays import label_boxes

KIND = "rtstruct"
SERIES_NUMBER = 9002
STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
# Contours may be longer than the lengths of explicit VR count.
IMPLICIT = "1.2.840.10008.1.2"
# An older class that structure sets name a study by.
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
# Modules of the patient and the study, besides what may be empty.
ALSO_REPEATED = (
    *("ReferringPhysicianName", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "PatientComments", "IssuerOfPatientID"),
)
CONTOUR_DATA = 0x30060050


def structure_set(source: Source, result: Result) -> Any:
    """Return a structure set as a dataset.

    It has one region of interest for each structure, with the manifest's name, code and colour. On each slice, each
    connected region is one closed polygon through the points half-way to voxels outside; holes are cut out by
    channels. Points lie in the plane of their slice, to a ten-thousandth of a millimetre.

    Raises
    ------
    ImportError
        contourpy is missing.
    Exception
        Whatever pydicom raises at headers that are not as they should be.
    """
    identifiers = Identifiers.of(KIND, source, result)
    dataset = _common(source, result, identifiers)
    dataset.ReferencedFrameOfReferenceSequence = [_referenced_frame(source)]
    boxes = label_boxes(result.labels)
    items = [
        _region(number, label, dataset.FrameOfReferenceUID, result) for number, label in enumerate(result.present, 1)
    ]
    dataset.StructureSetROISequence, dataset.RTROIObservationsSequence = map(list, zip(*items, strict=True))
    dataset.ROIContourSequence = [
        _item(
            ROIDisplayColor=list(label.color),
            ContourSequence=list(_contours(result.labels, label.value, boxes[label.value], source)),
            ReferencedROINumber=number,
        )
        for number, label in enumerate(result.present, 1)
    ]
    return dataset


def _common(source: Source, result: Result, identifiers: Identifiers) -> Any:
    """Return a structure set that has all but the structures."""
    header, now = source.headers[0], datetime.now()
    dataset = _item(
        SpecificCharacterSet=UNICODE,
        SOPClassUID=STORAGE,
        SOPInstanceUID=identifiers.instance,
        InstanceCreationDate=now.strftime("%Y%m%d"),
        InstanceCreationTime=now.strftime("%H%M%S"),
        StudyInstanceUID=header.StudyInstanceUID,
        SeriesInstanceUID=identifiers.series,
        SeriesNumber=SERIES_NUMBER,
        SeriesDescription=result.title,
        Modality="RTSTRUCT",
        OperatorsName="",
        Manufacturer=MANUFACTURER,
        ManufacturerModelName=result.model.title[:LONGEST],
        SoftwareVersions=__version__,
        DeviceSerialNumber="0",
        FrameOfReferenceUID=header.FrameOfReferenceUID,
        PositionReferenceIndicator="",
        InstanceNumber=1,
        StructureSetLabel=LABEL,
        StructureSetName=result.title,
        StructureSetDescription=NO_DEVICE,
        StructureSetDate=now.strftime("%Y%m%d"),
        StructureSetTime=now.strftime("%H%M%S"),
        ApprovalStatus="UNAPPROVED",
    )
    for name in (*MAY_BE_EMPTY, *ALSO_REPEATED):
        if name in header:
            dataset[name] = header[name]
    if "ReferringPhysicianName" not in dataset:
        dataset.ReferringPhysicianName = ""
    meta = pydicom().dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = STORAGE, identifiers.instance
    meta.TransferSyntaxUID = IMPLICIT
    dataset.file_meta = meta
    return dataset


def _referenced_frame(source: Source) -> Any:
    """Return the item that names the series' study, series and images."""
    header = source.headers[0]
    images = [_image(each) for each in source.headers]
    series = _item(SeriesInstanceUID=header.SeriesInstanceUID, ContourImageSequence=images)
    study = _item(
        ReferencedSOPClassUID=STUDY_CLASS,
        ReferencedSOPInstanceUID=header.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=header.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _region(number: int, label: Label, frame: str, result: Result) -> tuple[Any, Any]:
    """Return what is said of a structure: as a region of interest, and as an observation."""
    region = _item(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=frame,
        ROIName=label.name[:LONGEST],
        ROIGenerationAlgorithm="AUTOMATIC",
        ROIGenerationDescription=f"{result.model.id} {result.model.version}"[:LONGEST],
    )
    # What it means for a treatment is not for us to say: the type stays empty.
    observation = _item(
        ObservationNumber=number,
        ReferencedROINumber=number,
        RTROIIdentificationCodeSequence=[_code(label.type)],
        RTROIInterpretedType="",
        ROIInterpreter="",
    )
    return region, observation


def _contours(labels: np.ndarray, value: int, box: tuple[slice, ...], source: Source) -> Iterator[Any]:
    low = np.array([box[2].start, box[1].start])
    for number in range(box[0].start, box[0].stop):
        mask = labels[number, box[1], box[2]] == value
        if not mask.any():
            continue
        place = source.slices[number]
        image = _image(source.header_of(number), place.frame)
        for outline in outlines(mask):
            contour = _item(
                ContourImageSequence=[image],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(outline),
            )
            _set_points(contour, _points(outline + low, place))
            yield contour


def _points(indices: np.ndarray, place: Slice) -> np.ndarray:
    """Return points (n, 3) in LPS millimetres of indices (n, 2) x and y within a slice."""
    along_x, along_y = place.orientation / np.linalg.norm(place.orientation, axis=1, keepdims=True)
    down, across = place.spacing
    points: np.ndarray = place.position + indices[:, :1] * along_x * across + indices[:, 1:] * along_y * down
    return points


def _set_points(contour: Any, points: np.ndarray) -> None:
    # As bytes: pydicom makes an object of each number otherwise, of which there may be millions.
    numbers = (np.round(points, 4) + 0.0).ravel().tolist()
    text = "\\".join(["%.4f"] * len(numbers)) % tuple(numbers)
    content = text.encode("ascii") + b" " * (len(text) % 2)
    tag = pydicom().tag.Tag(CONTOUR_DATA)
    contour[tag] = pydicom().dataelem.RawDataElement(tag, "DS", len(content), content, 0, True, True)
    # Those of the set of characters that pydicom takes for the default are written as they are.
    contour.set_original_encoding(True, True, pydicom().charset.default_encoding)


def _image(header: Any, frame: int | None = None) -> Any:
    image = _item(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
    if frame is not None:
        image.ReferencedFrameNumber = frame
    return image


def _code(code: Code) -> Any:
    return _item(CodeValue=code.value, CodingSchemeDesignator=code.scheme, CodeMeaning=code.meaning)


def _item(**values: Any) -> Any:
    item = pydicom().Dataset()
    for name, value in values.items():
        setattr(item, name, list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value)
    return item
