"""What a reader should look at first in a report of a spine, the gravest first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segmamba.reporting.report import level_variants, numbering_doubt
from segmamba.spine.grades import GRADE_KEYS, grade_text

# A vertebra whose voxels have a lower mean probability, or whose level a lower one, is doubtful.
SURE_MASK, SURE_LEVEL = 0.8, 0.75
# A vertebra that lies so far in front of or behind the next one has slipped, mm.
SLIPPED_MM = 4.0
# Trabecular density of L1, HU: at or below the first, more than 90 % of the people without osteoporosis are above; at
# or below the second are 90 % of those with it (DXA, Pickhardt et al., Ann Intern Med 2013).
SPECIFIC_HU, SENSITIVE_HU = 110.0, 160.0
NO_CONTRAST = "no contrast seen"
# Mean trabecular density of two lumbar vertebrae by QCT with a phantom, mg/cm3 (Cheng et al., Quant Imaging Med Surg
# 2020, table 2): below the first one osteoporosis, up to the second one low.
LOW_MG_CM3 = (80.0, 120.0)


def look_first(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what to look at, the gravest first.

    Returns
    -------
    list of dict
        ``value``: of the structure, None for the whole column; ``text``: a sentence.
    """
    rows = report.get("measurements") or []
    graded = [row for row in rows if row["fracture_grade"]]
    certain = [row for row in graded if row["fracture_grade_lowest"] > 0]
    possible = [row for row in rows if row["fracture_grade"] is not None and row not in certain]
    possible = [row for row in possible if row["fracture_grade"] > 0 or row["fracture_grade_highest"] > 1]
    found: list[tuple[int | None, str]] = [(None, text) for text in filter(None, [numbering_doubt(report)])]
    found += [(row["value"], _fracture(row)) for row in _by_loss(certain)]
    found += [(row["value"], _fracture(row)) for row in _by_loss(possible)]
    found += [(row["value"], text) for row in rows for text in [_slip(row)] if text]
    bone = report.get("bone") or {}
    found += [(None, text) for text in (bone.get("scanner"), _bone(bone)) if text]
    found += doubtful(report)
    found += [(None, text) for text in level_variants(report)]
    return [{"value": value, "text": text} for value, text in found]


def short(name: str) -> str:
    """Return the name of a vertebra without the word."""
    return name.removesuffix(" vertebra")


def grade_of_row(row: Mapping[str, Any]) -> str:
    """Return the grade of a vertebra with its range, see `segmamba.spine.grades.grade_text`."""
    return grade_text(*(row[key] for key in GRADE_KEYS))


def _by_loss(rows: list[Any]) -> list[Any]:
    return sorted(rows, key=lambda row: -row["height_loss_percent"])


def _fracture(row: Mapping[str, Any]) -> str:
    loss = f"{row['height_loss_percent']} % of the height is lost ({row['height_loss_place']})"
    deviation = f"standard deviation {row['height_loss_sd_percent']} %"
    if not row["fracture_grade"] or not row["fracture_grade_lowest"]:
        return f"{short(row['name'])}: uncertain, grade {grade_of_row(row)}; {loss}, {deviation}."
    return f"{short(row['name'])}: {row['fracture_shape']}, grade {grade_of_row(row)}; {loss}, {deviation}."


def _slip(row: Mapping[str, Any]) -> str:
    if row["slip_mm"] is None or abs(row["slip_mm"]) < SLIPPED_MM:
        return ""
    where = "in front of" if row["slip_mm"] > 0 else "behind"
    return f"{short(row['name'])} lies {abs(row['slip_mm'])} mm {where} the vertebra below."


def _bone(bone: Mapping[str, Any]) -> str:
    """Return a sentence about a low density of L1; none where contrast medium may have raised it, or HU are wrong."""
    density = bone.get("l1_hu")
    if density is None or density > SENSITIVE_HU or bone["phase"] != NO_CONTRAST or bone.get("scanner"):
        return ""
    limit = SPECIFIC_HU if density <= SPECIFIC_HU else SENSITIVE_HU
    return f"Trabecular density of L1 is {density} HU, at or below {limit:.0f} HU."


def doubtful(report: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return the values of the structures whose mask or level the network is not sure of, and a sentence each."""
    levels = (report.get("numbering") or {}).get("levels", {})
    found = []
    for segment in report["segments"]:
        sure = levels.get(str(segment["value"]), 1.0)
        # Masks that no network drew have no probability.
        mask = segment["mean_confidence"]
        doubts = [f"mask {mask}"] * (mask is not None and mask < SURE_MASK)
        doubts += [f"level {sure}"] * (sure < SURE_LEVEL)
        if doubts:
            found.append(
                (segment["value"], f"{short(segment['name'])} is uncertain: probability of {', '.join(doubts)}.")
            )
    return found
