"""The page of a case: one HTML file with pictures, tables and what to look at first, which needs only a browser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segmamba.errors import InstallationError
from segmamba.io.volume import Volume
from segmamba.models.manifest import Model
from segmamba.reporting import DISCLAIMER, PAGE_PACKAGES
from segmamba.reporting.look_first import LOW_MG_CM3, SENSITIVE_HU, SPECIFIC_HU, grade_of_row, short
from segmamba.reporting.page_pictures import column_picture, curve_picture, sagittal_plane, vertebra_picture
from segmamba.reporting.preview import display_window
from segmamba.spine.grades import grade_text
from segmamba.utils.atomic import atomic_write

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE = "page.html.j2"
# Columns of the tables: titles, and the keys of the values. Numbers are those of the report, digit by digit.
VERTEBRAE = {
    "Loss, %": "height_loss_percent",
    "± SD": "height_loss_sd_percent",
    "at": "height_loss_place",
    "Anterior, mm": "anterior_height_mm",
    "Middle, mm": "middle_height_mm",
    "Posterior, mm": "posterior_height_mm",
    "Left, mm": "left_height_mm",
    "Right, mm": "right_height_mm",
    "± SD, mm": "height_sd_mm",
    "Density, HU": "trabecular_hu",
    "Volume, mL": "volume_ml",
}
CALIBRATED = {"Density, mg/cm³": "trabecular_mg_cm3"}
BELOW = {
    "Disc angle, °": "disc_angle_deg",
    "Disc anterior, mm": "disc_anterior_mm",
    "Disc middle, mm": "disc_middle_mm",
    "Disc posterior, mm": "disc_posterior_mm",
    "Slip, mm": "slip_mm",
    "Slip, %": "slip_percent",
    "Sagittal angle, °": "sagittal_angle_deg",
    "Coronal angle, °": "coronal_angle_deg",
}
CURVES = {
    "thoracic_kyphosis": "Thoracic kyphosis",
    "lumbar_lordosis": "Lumbar lordosis",
    "coronal_cobb": "Largest coronal Cobb angle",
    "sacral_slope": "Sacral slope",
}


@dataclass(frozen=True, eq=False)
class Case:
    """What a page shows.

    Attributes
    ----------
    report : mapping
        Of the run, as it is written to JSON.
    volume : Volume
    labels : ndarray of uint8
        Shape (z, y, x), on the volume's grid.
    model : Model
    """

    report: Mapping[str, Any]
    volume: Volume
    labels: np.ndarray
    model: Model


def check_page() -> None:
    """Raise InstallationError if a package that pages are made with is missing."""
    for package, module in PAGE_PACKAGES.items():
        if find_spec(module) is None:
            raise InstallationError(
                f"A report page needs {package}: install it with 'pip install {package}', or leave out --page."
            )


def page(case: Case) -> str:
    """Return the page of a case of vertebrae as HTML."""
    report, rows = case.report, case.report["measurements"]
    flagged = {entry["value"] for entry in report["look_first"] if entry["value"] is not None}
    fractured = [row for row in rows if row["fracture_grade"] or row["value"] in flagged]
    enlarged = [row for row in fractured if row["height_points_ras_mm"] is not None]
    calibrated = report["bone"] is not None and report["bone"]["calibration"] is not None
    plane = sagittal_plane(case.volume, case.labels)
    window = display_window(case.model, [plane])
    measured = any(row["anterior_height_mm"] is not None for row in rows)
    pictures = {
        "column": column_picture(plane, case.model.labels, flagged, window) if rows else "",
        "curve": curve_picture(rows) if measured else "",
        "vertebrae": [(row, vertebra_picture(row, case.volume, case.labels, window)) for row in enlarged],
    }
    text: str = (
        templates()
        .get_template(TEMPLATE)
        .render(
            report=report,
            rows=rows,
            # No folders: they may tell who the patient is.
            name=Path(report["input"]).name,
            output=Path(report["output"]).name,
            disclaimer=DISCLAIMER,
            pictures=pictures,
            columns={"vertebrae": VERTEBRAE | (CALIBRATED if calibrated else {}), "below": BELOW, "curves": CURVES},
            confidence={segment["value"]: segment["mean_confidence"] for segment in report["segments"]},
            levels=(report.get("numbering") or {}).get("levels", {}),
            limits=(SENSITIVE_HU, SPECIFIC_HU),
            low=LOW_MG_CM3,
        )
    )
    return text


def templates() -> Environment:
    """Return what makes pages of this package's templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("segmamba.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "shown": shown, "grade": grade_of_row, "grades": grade_text}
    return environment


def write_page(path: str | Path, text: str) -> None:
    """Write a page, whole or not at all.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    with atomic_write(path, (".html",)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def shown(value: Any) -> str:
    """Return a value as the report has it; a dash where there is none."""
    return "–" if value is None else str(value)
