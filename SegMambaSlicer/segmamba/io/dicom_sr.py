"""Measurements as a DICOM Structured Report (SR, TID 1500): one group of numbers for each structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from segmamba import __version__
from segmamba.io.dicom_source import LONGEST, MANUFACTURER, Identifiers, Result, Source, concept, uid
from segmamba.labels import Label
from segmamba.spine.grades import GRADE_KEYS

KIND = "sr"
SERIES_NUMBER = 9003
# Procedures of LOINC by the modality of the series; others are imaging in general.
PROCEDURES = {
    "CT": ("25045-6", "LN", "CT unspecified body region"),
    "MR": ("25056-3", "LN", "MR unspecified body region"),
}
IMAGING = ("363679005", "SCT", "Imaging procedure")
# Our own codes, for what has none in SNOMED CT or DICOM; DICOM keeps "99" for these.
SCHEME = "99SEGMAMBA"
CODES = {
    "volume_ml": ("118565006", "SCT", "Volume"),
    "trabecular_hu": ("112031", "DCM", "Attenuation Coefficient"),
}
# Units of UCUM by how the names of measurements end.
UNITS = {
    "_mm": ("mm", "millimeter"),
    "_ml": ("mL", "milliliter"),
    "_hu": ("[hnsf'U]", "Hounsfield unit"),
    "_mg_cm3": ("mg/cm3", "milligram per cubic centimeter"),
    "_deg": ("deg", "degree"),
    "_percent": ("%", "percent"),
}


def measurement_report(source: Source, result: Result) -> Any:
    """Return a Comprehensive SR as a dataset.

    It has a group for each structure that is present, with its name and code, and each number of the report's row for
    it with a unit. Numbers are those of the report, digit by digit.

    Raises
    ------
    ImportError
        highdicom is missing.
    Exception
        Whatever highdicom and pydicom raise at headers that are not as they should be.
    """
    import highdicom

    identifiers = Identifiers.of(KIND, source, result)
    rows = {row["value"]: row for row in result.measurements}
    header = source.headers[0]
    device = highdicom.sr.DeviceObserverIdentifyingAttributes(
        uid=uid("device", result.model.id, result.model.version, __version__),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=f"{result.model.id} {result.model.version}"[:LONGEST],
    )
    observer = highdicom.sr.ObserverContext(
        observer_type=highdicom.sr.CodedConcept("121007", "DCM", "Device"), observer_identifying_attributes=device
    )
    content = highdicom.sr.MeasurementReport(
        observation_context=highdicom.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=highdicom.sr.CodedConcept(*PROCEDURES.get(str(header.get("Modality")), IMAGING)),
        imaging_measurements=[
            _group(highdicom, label, rows.get(label.value, {}), identifiers, header) for label in result.present
        ],
    )
    return highdicom.sr.ComprehensiveSR(
        evidence=source.headers,
        content=content,
        series_instance_uid=identifiers.series,
        series_number=SERIES_NUMBER,
        series_description=result.title,
        sop_instance_uid=identifiers.instance,
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=result.model.title[:LONGEST],
        software_versions=__version__,
        device_serial_number="0",
        is_complete=True,
        is_verified=False,
    )


def numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float, tuple[str, str]]]:
    """Yield what of a report's row is a number: its name, the number, and the code and the meaning of its unit."""
    for name, value in row.items():
        unit = (
            ("1", "no units") if name in GRADE_KEYS else next((UNITS[end] for end in UNITS if name.endswith(end)), None)
        )
        if unit is not None and isinstance(value, int | float):
            yield name, value, unit


def _group(highdicom: Any, label: Label, row: Mapping[str, Any], identifiers: Identifiers, header: Any) -> Any:
    # The series is meant: of a group one image of it has to be named.
    image = highdicom.sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)
    return highdicom.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=highdicom.sr.TrackingIdentifier(uid(identifiers.instance, str(label.value)), label.name),
        finding_type=concept(highdicom, label.type),
        finding_sites=[highdicom.sr.FindingSite(concept(highdicom, label.region))] if label.region else None,
        source_images=[image],
        measurements=[
            highdicom.sr.Measurement(
                name=highdicom.sr.CodedConcept(*CODES.get(name, (name, SCHEME, _meaning(name)))),
                value=value,
                unit=highdicom.sr.CodedConcept(unit[0], "UCUM", unit[1]),
            )
            for name, value, unit in numbers(row)
        ],
    )


def _meaning(name: str) -> str:
    """Return the words of a measurement's name, without its unit."""
    end = next((end for end in UNITS if name.endswith(end)), "")
    return name.removesuffix(end).replace("_", " ").capitalize()[:LONGEST]
