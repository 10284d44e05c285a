"""The report of a run: what was found, by which model, with what, and how sure."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from segmamba import __version__
from segmamba.io.volume import Geometry
from segmamba.labels import Label
from segmamba.models.manifest import Model
from segmamba.utils.arrays import LabelBox, label_boxes, mean_index
from segmamba.utils.atomic import atomic_write
from segmamba.utils.words import counted

REPORT_VERSION = 2


def measure_segments(
    labels: np.ndarray,
    confidence: np.ndarray,
    geometry: Geometry,
    segments: Sequence[Label],
    boxes: Mapping[int, LabelBox] | None = None,
) -> list[dict[str, Any]]:
    """Measure the structures that are present, in the order of ``segments``.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x).
    confidence : ndarray of uint8
        Probability of each voxel's label, times 255.
    geometry : Geometry
        The grid of both.
    segments : sequence of Label
    boxes : mapping, optional
        Those of `label_boxes`, where they are known.

    Returns
    -------
    list of dict
        ``value``, ``name``, ``voxels``, ``volume_ml``, ``centroid_ras_mm`` (patient coordinates as Slicer shows them:
        right, anterior, superior; x and y have the opposite sign of DICOM's and ITK's LPS), ``mean_confidence``
        (0 to 1) and ``at_border`` (it touches the volume's border, so it may go on beyond it).
    """
    boxes = label_boxes(labels) if boxes is None else boxes
    to_lps = geometry.affine
    rows: list[dict[str, Any]] = []
    for label in segments:
        box = boxes.get(label.value)
        if box is None:
            continue
        mask = labels[box] == label.value
        voxels = int(np.count_nonzero(mask))
        index = mean_index(mask) + [part.start for part in box]
        x, y, z = (to_lps @ [*index[::-1], 1.0])[:3]
        rows.append(
            {
                "value": label.value,
                "name": label.name,
                "voxels": voxels,
                "volume_ml": round(voxels * geometry.voxel_volume / 1000, 3),
                "centroid_ras_mm": [round(-x, 2), round(-y, 2), round(z, 2)],
                "mean_confidence": round(float(confidence[box][mask].mean()) / 255, 4),
                "at_border": any(
                    part.start == 0 or part.stop == length for part, length in zip(box, labels.shape, strict=True)
                ),
            }
        )
    return rows


def describe_model(model: Model, checkpoint: Path, digest: str) -> dict[str, Any]:
    """Return what a reader has to know of the model that ran."""
    return {
        "id": model.id,
        "version": model.version,
        "title": model.title,
        "task": model.task,
        "architecture": model.architecture,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": digest,
        "checkpoint_in_manifest": model.file.sha256 == digest,
        "normalization": [asdict(channel) for channel in model.preprocessing.normalization],
        "estimated": model.preprocessing.estimated,
        "caution": model.caution,
        "limits": list(model.entry.get("limits", [])),
        "licence": model.entry.get("licence"),
        "citation": model.entry.get("citation"),
    }


def describe_software() -> dict[str, str | None]:
    """Return the versions of what computed; None for a package that is not installed."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str | None]:
    # Asking for them reads files, and they do not change while they are in use.
    versions: dict[str, str | None] = {"segmamba": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "scipy", "SimpleITK"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions | {"system": platform.platform()}


def describe_grid(geometry: Geometry) -> dict[str, Any]:
    """Return a grid as JSON: ITK's convention, LPS millimetres."""
    return {
        "size": list(geometry.size),
        "spacing_mm": list(geometry.spacing),
        "origin_lps_mm": list(geometry.origin),
        "direction_lps": list(geometry.direction),
    }


def summary(report: Mapping[str, Any]) -> str:
    """Return the report's outcome: what was found, whether the levels are uncertain, and what is unusual in them."""
    found = [segment["name"] for segment in report["segments"]]
    if not found:
        return "No structure was found: the segmentation is empty."
    outcome = f"{counted(len(found), 'structure')} found: {', '.join(found)}."
    return " ".join(filter(None, (outcome, levels_set(report), numbering_doubt(report), *level_variants(report))))


def numbering_doubt(report: Mapping[str, Any]) -> str:
    """Return a sentence where the vertebral levels are uncertain, else an empty text."""
    numbering = report.get("numbering", {"certain": True})
    return "" if numbering["certain"] else f"Vertebral levels are uncertain: {numbering['reason']}"


def levels_set(report: Mapping[str, Any]) -> str:
    """Return a sentence about levels that were set and used, else an empty text."""
    used = [anchor for anchor in report.get("numbering", {}).get("anchors", []) if anchor["used"]]
    names = ", ".join(anchor["level"] for anchor in used if anchor["set_by"] == "person")
    of_others = any(anchor["set_by"] != "person" for anchor in used)
    said = [f"set by a person ({names})"] * bool(names) + ["taken from another segmentation"] * of_others
    return f"Vertebral levels were {' and '.join(said)}." if said else ""


def level_variants(report: Mapping[str, Any]) -> list[str]:
    """Return what is unusual in the levels of the segments, such as a sixth lumbar vertebra, a sentence each."""
    # Of vertebrae that were removed, nothing is said.
    numbering = report.get("numbering", {}) if report.get("segments", True) else {}
    variants: list[str] = numbering.get("variants", [])
    return variants


def write_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, whole or not at all.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path, (".json",)) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
