"""The outcome of a case: a row of the table, a line for machines, a card of the overview."""

from __future__ import annotations

import json
from collections.abc import Mapping
from numbers import Number
from pathlib import Path
from typing import Any

from segmamba.batch.batch_case import BatchCase
from segmamba.batch.case_record import CaseRecord
from segmamba.batch.layout import CASES, REPORT
from segmamba.batch.plan import Plan
from segmamba.reporting import report as reporting

Row = dict[str, Any]

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
LEVELS_UNCERTAIN, UNUSUAL_LEVELS, NOTHING_FOUND = "levels uncertain", "unusual levels", "nothing found"
AT_BORDER, WARNING, REPEATED, OUTDATED = "cut by the border", "warning", "repeated", "old results kept"
LOST_HEIGHT = "loss of height"
# The gravest first.
FLAGS = (NOTHING_FOUND, LOST_HEIGHT, LEVELS_UNCERTAIN, WARNING, UNUSUAL_LEVELS, OUTDATED, REPEATED, AT_BORDER)


def done_row(record: CaseRecord, plan: Plan, folder: Path, this_run: bool) -> Row:
    """Return the row of a case whose folder is complete.

    Returns
    -------
    dict
        ``case``, ``status``, ``error``, ``flags`` (list of short texts to look at), ``summary``, ``variants``
        (sentences about unusual levels), ``look_first`` (sentences, the gravest first), ``modality``,
        ``modality_inferred`` (nobody states it), ``input``, ``folder`` (below that of the run), ``this_run`` (else an
        earlier run did it), ``attempts``, ``seconds``, ``finished``, ``host``, ``model``, ``model_version``,
        ``checkpoint_sha256``, ``settings``, versions of the ``software``, ``device``, ``device_title``, ``precision``,
        ``scan_backend``, ``timings_s`` (seconds by stage) and ``structures``: name, then measurements by name.
    """
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    run = record.run
    used = {name: report["run"][name] for name in ("device", "device_title", "precision", "scan_backend")}
    return {
        **_base(BatchCase(record.name, record.path), plan, DONE),
        "flags": flags(report, run["attempts"]),
        "summary": report["summary"],
        "variants": reporting.level_variants(report),
        "look_first": [entry["text"] for entry in report.get("look_first") or []],
        "modality": report["volume"]["modality"],
        "modality_inferred": report["volume"]["modality_inferred"],
        "folder": f"{CASES}/{record.name}",
        "this_run": this_run,
        **{name: run[name] for name in ("attempts", "seconds", "finished", "host")},
        "software": report["software"],
        **used,
        "timings_s": run["timings_s"],
        "structures": structures(report),
    }


def failed_row(case: BatchCase, plan: Plan, error: str, attempts: int) -> Row:
    """Return the row of a case that failed; outdated results of an earlier run stay, with a flag."""
    row = _base(case, plan, FAILED)
    if (Path(plan.folder) / CASES / case.name).is_dir():
        row |= {"flags": [OUTDATED]}
    return row | {"error": error, "attempts": attempts}


def skipped_row(case: BatchCase, plan: Plan) -> Row:
    """Return the row of a DICOM series that is not a scan to segment."""
    return _base(case, plan, SKIPPED) | {"error": case.skipped}


def flags(report: Mapping[str, Any], attempts: int) -> list[str]:
    """Return what a person should look at."""
    found = []
    if not report["segments"]:
        found.append(NOTHING_FOUND)
    if report["segments"] and reporting.numbering_doubt(report):
        found.append(LEVELS_UNCERTAIN)
    if reporting.level_variants(report):
        found.append(UNUSUAL_LEVELS)
    if any(row.get("fracture_grade_lowest") for row in report.get("measurements") or []):
        found.append(LOST_HEIGHT)
    if any(segment["at_border"] for segment in report["segments"]):
        found.append(AT_BORDER)
    if report["run"]["warnings"]:
        found.append(WARNING)
    if attempts > 1:
        found.append(REPEATED)
    return found


def rank(row: Row) -> int:
    """Return where a row comes if what a person should look at comes first: 0 for what failed."""
    if row["status"] != DONE:
        return 0 if row["status"] == FAILED else len(FLAGS) + 2
    return 1 + min((FLAGS.index(flag) for flag in row["flags"] if flag in FLAGS), default=len(FLAGS))


def structures(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the measurements of each structure: those of its segment, and those of vertebrae where there are any."""
    found = {
        segment["name"]: {name: segment[name] for name in ("volume_ml", "mean_confidence", "at_border")}
        for segment in report["segments"]
    }
    for measured in report.get("measurements") or []:
        measurements = {
            name: value for name, value in measured.items() if isinstance(value, Number) and name != "value"
        }
        found.setdefault(measured["name"], {}).update(measurements)
    return found


def _base(case: BatchCase, plan: Plan, status: str) -> Row:
    model = {"model": plan.model["id"], "model_version": plan.model["version"]}
    return {
        "case": case.name,
        "status": status,
        "error": "",
        "flags": [],
        "summary": "",
        "variants": [],
        "look_first": [],
        "input": case.path,
        "folder": "",
        "this_run": True,
        "attempts": 0,
        "seconds": None,
        "finished": "",
        "host": "",
        **model,
        "checkpoint_sha256": plan.model["checkpoint_sha256"],
        "settings": plan.settings,
    }
