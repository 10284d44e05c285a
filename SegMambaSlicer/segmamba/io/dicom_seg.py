"""Segmentations as DICOM Segmentation objects (SEG): a bit for each structure, or one map of labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from segmamba import __version__
from segmamba.io.dicom_source import LABEL, LONGEST, MANUFACTURER, NO_DEVICE, Identifiers, Result, Source, concept
from segmamba.labels import Label
from segmamba.models.manifest import ListedModel

BINARY, LABELMAP = "BINARY", "LABELMAP"
# Far from the numbers that scanners give.
SERIES_NUMBERS = {BINARY: 9000, LABELMAP: 9001}
# Lossless and by far the smallest for maps of labels; it has no form for single bits.
SYNTAXES = {BINARY: "1.2.840.10008.1.2.1", LABELMAP: "1.2.840.10008.1.2.4.80"}


def segmentation(kind: str, source: Source, result: Result) -> Any:
    """Return a segmentation of a kind (`BINARY`, `LABELMAP`) as a dataset.

    It has one segment for each structure, with the manifest's codes and colours. Slices without a structure have no
    frame.

    Raises
    ------
    ImportError
        highdicom is missing.
    Exception
        Whatever highdicom and pydicom raise at headers that are not as they should be.
    """
    import highdicom

    identifiers = Identifiers.of(kind, source, result)
    algorithm = _algorithm(highdicom, result.model)
    # highdicom numbers segments from 1, and takes frames in the order of their file.
    table = np.zeros(256, np.uint8)
    table[[label.value for label in result.present]] = np.arange(1, len(result.present) + 1)
    numbers = table[result.labels]
    if source.is_multiframe:
        numbers = numbers[np.argsort([one.frame or 0 for one in source.slices])]
    dataset = highdicom.seg.Segmentation(
        source_images=source.headers,
        pixel_array=numbers,
        segmentation_type=kind,
        segment_descriptions=[
            _segment(highdicom, number, label, algorithm) for number, label in enumerate(result.present, start=1)
        ],
        series_instance_uid=identifiers.series,
        series_number=SERIES_NUMBERS[kind],
        sop_instance_uid=identifiers.instance,
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=result.model.title[:LONGEST],
        software_versions=__version__,
        device_serial_number="0",
        series_description=result.title,
        content_description=NO_DEVICE,
        content_label=LABEL,
        transfer_syntax_uid=SYNTAXES[kind],
    )
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = identifiers.dimensions
    return dataset


def _segment(highdicom: Any, number: int, label: Label, algorithm: Any) -> Any:
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.name,
        segmented_property_category=concept(highdicom, label.category),
        segmented_property_type=concept(highdicom, label.type),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        anatomic_regions=[concept(highdicom, label.region)] if label.region else None,
        display_color=highdicom.color.CIELabColor.from_rgb(*label.color),
    )


def _algorithm(highdicom: Any, model: ListedModel) -> Any:
    family = highdicom.sr.CodedConcept("123109", "DCM", "Artificial Intelligence")
    return highdicom.AlgorithmIdentificationSequence(
        name=model.id[:LONGEST], family=family, version=model.version[:LONGEST], source=MANUFACTURER
    )
