"""Pages of segmentation nodes: the vertebrae of one as they are now, edits included, and what changed between two."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from segmamba.errors import InputError, ModelError
from segmamba.models.library import load_models
from segmamba.models.manifest import Model
from segmamba.reporting import PAGE_PACKAGES
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.utils.atomic import check_output
from segmamba_mrml.application import needed_packages
from segmamba_mrml.measurements import MeasuredSpine, measured_spine
from segmamba_mrml.reports import parts, read_report
from segmamba_mrml.segmentation import volume_node_of
from segmamba_mrml.vertebra_segments import bones_of

# What a segmentation that this software did not make cannot say of itself.
UNKNOWN = "unknown"
UNKNOWN_MODEL = {"title": UNKNOWN, "id": UNKNOWN, "version": UNKNOWN, "checkpoint_sha256": UNKNOWN}


def write_spine_page(segmentation_node: Any, path: str | os.PathLike[str], volume_node: Any = None) -> dict[str, Any]:
    """Write the page of a segmentation's vertebrae, and return its report.

    Parameters
    ----------
    segmentation_node : vtkMRMLSegmentationNode
    path : path
        ``.html``; an existing file is replaced.
    volume_node : vtkMRMLScalarVolumeNode, optional
        What was segmented; by default the one that the segmentation refers to.

    Raises
    ------
    InputError
        The vertebrae cannot be measured, see `segmamba_mrml.measurements.measured_spine`.
    OutputError
        The page cannot be written.
    InstallationError
        A package is missing.
    """
    check_output(path, (".html",))
    with _packages():
        from segmamba.measurements.vertebrae import labels_of
        from segmamba.reporting.page import Case, page, write_page
    spine = measured_spine(segmentation_node, volume_node)
    report = scene_report(segmentation_node, spine)
    labels = labels_of(spine.masks, spine.volume.geometry)
    write_page(os.fspath(path), page(Case(report, spine.volume, labels, _model_of(report))))
    return report


def write_comparison_page(first_node: Any, second_node: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Write the page of what changed from one segmentation of a spine to another, and return what it shows.

    Parameters
    ----------
    first_node, second_node : vtkMRMLSegmentationNode
        Of the earlier and of the later exam, with their volumes in the scene.
    path : path
        ``.html``; an existing file is replaced.

    Raises
    ------
    InputError
        The two are one, or one cannot be measured, see `segmamba_mrml.measurements.measured_spine`.
    OutputError
        The page cannot be written.
    InstallationError
        A package is missing.
    """
    if first_node is second_node:
        raise InputError(f"'{first_node.GetName()}' cannot be compared with itself: choose another segmentation.")
    check_output(path, (".html",))
    with _packages():
        from segmamba.measurements.comparison import Exam, compare
        from segmamba.reporting.comparison_page import comparison_page, comparison_result
        from segmamba.reporting.page import write_page
    spines = measured_spine(first_node), measured_spine(second_node)
    first, second = (Exam(spine.rows, spine.found["bone"], spine.masks) for spine in spines)
    described = _described(first_node), _described(second_node)
    result = comparison_result(compare(first, second), described)
    write_page(os.fspath(path), comparison_page(result, (first, second), (spines[0].volume, spines[1].volume)))
    return result


@contextlib.contextmanager
def _packages() -> Iterator[None]:
    """Raise InstallationError where a package that pages are made with, or that this block imports, is missing."""
    with needed_packages():
        for module in PAGE_PACKAGES.values():
            import_module(module)
        yield


def _described(node: Any) -> dict[str, Any]:
    volume, model = volume_node_of(node), parts(read_report(node))[0].get("model", {})
    return {
        "exam": node.GetName(),
        "segmentation": node.GetName(),
        "segmentation_sha256": None,
        "image": None if volume is None else volume.GetName(),
        "model": f"{model['id']} {model['version']}" if {"id", "version"} <= model.keys() else None,
    }


def scene_report(node: Any, spine: MeasuredSpine) -> dict[str, Any]:
    """Return the report of a segmentation as it is now: what its run said, and what is measured now."""
    from segmamba.io.modality import resolve_modality
    from segmamba.reporting import report as reporting
    from segmamba.reporting.look_first import look_first

    volume = resolve_modality(spine.volume)
    said = read_report(node)
    last = parts(said)[0]
    run = {"warnings": [], "notes": [], "device_title": UNKNOWN, "precision": UNKNOWN, **last.get("run", {})}
    report = {
        **{key: value for key, value in last.items() if key != "earlier"},
        **spine.found,
        "input": last.get("input") or node.GetName(),
        "output": node.GetName(),
        "output_sha256": None,
        "segments": _segments(node, spine),
        "model": last.get("model") or UNKNOWN_MODEL,
        "software": reporting.describe_software(),
        "volume": reporting.describe_grid(volume.geometry)
        | {"modality": volume.modality or UNKNOWN, "modality_inferred": volume.modality_inferred},
        "run": run,
    }
    report["summary"] = reporting.summary(report)
    return {**report, "look_first": look_first(report)}


def _segments(node: Any, spine: MeasuredSpine) -> list[dict[str, Any]]:
    """Return the vertebrae that are there now, with the confidence that their runs had; None where no run says it."""
    confidence = {
        row["segment_id"]: row["mean_confidence"]
        for part in reversed(parts(read_report(node)))
        for row in part.get("segments", [])
        if "segment_id" in row
    }
    by_level = {level: confidence.get(identifier) for identifier, level in bones_of(node).items()}
    return [
        {"value": row["value"], "name": row["name"], "mean_confidence": by_level.get(row["value"])}
        for row in spine.rows
    ]


def _model_of(report: dict[str, Any]) -> Model:
    """Return the model that made a segmentation; the default one where that is not known here."""
    models = load_models(None)
    try:
        return models.choose(None, report["model"]["id"])
    except ModelError:
        return models.choose(VERTEBRAE_TASK, None)
