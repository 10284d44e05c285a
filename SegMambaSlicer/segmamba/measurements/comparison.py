"""What has changed between two exams of a spine, and which changes are more than the error of measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from segmamba.measurements.bone_density import NO_CONTRAST, NOT_ASSESSED
from segmamba.measurements.shape_matching import Match, Shape, match, shape_of
from segmamba.measurements.vertebrae import HEIGHTS, centroid, direction
from segmamba.measurements.vertebral_body import Mask
from segmamba.spine.grades import GRADE_KEYS, grade_text
from segmamba.utils.csv_file import write_csv
from segmamba.utils.parallel import at_once
from segmamba.utils.words import counted

VOLUME, DENSITY = "volume_ml", "trabecular_hu"
QUANTITIES = (*HEIGHTS, VOLUME, DENSITY)
# Standard deviations of one measurement, from second exams of spines in which nothing has changed: of a volume, as a
# part of it, and of a density. `python benchmarks/follow_up.py again`. Heights have their own.
VOLUME_SD, DENSITY_SD_HU = 0.04, 10.0
# A change of one value beyond this probability of the error of measurement is possible; it is a change if that also
# holds for all values that are compared together (Sidak).
PROBABILITY = 0.95
# Medians of the changes of so many vertebrae, or more, that no spine has: the exams differ. Of density in HU, of others
# as parts, and so many standard deviations of a median.
FEWEST, SHIFTED_PART, SHIFTED_HU, SHIFTED_SD = 4, 0.03, 15.0, 3.0
CHANGE, POSSIBLE, WITHIN = "change", "possible", "within error"
EXAMS = ("first", "second")
SUFFIXES = (*EXAMS, "change", "sd", "verdict")
COLUMNS = (
    *("first_name", "second_name", "shape_distance_mm"),
    *(f"{key}_{exam}" for exam in EXAMS for key in GRADE_KEYS),
    *("fracture_worse", "note"),
    *(f"{name}_{suffix}" for name in QUANTITIES for suffix in SUFFIXES),
)
CUT = "The image ends within the vertebra in one of the exams: its volume is not compared."
PHASES = "Density is not compared: the phases of contrast medium are '{}' and '{}'."
UNSURE_PHASE = "Contrast medium was not assessed in both exams: it raises density."
UNCERTAIN = (
    "It is not certain which vertebra is which: too few are in view, or they changed too much. Look at both exams."
)
OTHER_PERSON = "The vertebrae are not alike in shape: check that both exams are of the same person."
NO_VALUE = "No value is there in both exams, so that nothing can be compared."
NOTHING = "No vertebra is in both exams."


@dataclass(frozen=True, eq=False)
class Exam:
    """A measured segmentation of a spine.

    Attributes
    ----------
    rows : sequence of mapping
        As `segmamba.measurements.vertebrae.measure` returns them.
    bone : mapping or None
        As `segmamba.measurements.bone_density.bone_density` returns it.
    masks : mapping of int to Mask
        By level, and the sacrum's.
    """

    rows: Sequence[Mapping[str, Any]]
    bone: Mapping[str, Any] | None
    masks: Mapping[int, Mask]


def shapes_of(exam: Exam) -> dict[int, Shape | None]:
    """Return the shape of each vertebra of an exam; None where the image ends within it."""
    cut = {row["value"] for row in exam.rows if row["at_border"]}
    centres = {level: centroid(mask) for level, mask in exam.masks.items()}

    def shape(level: int) -> Shape | None:
        return None if level in cut else shape_of(exam.masks[level], direction(level, centres))

    return at_once(shape, exam.masks)


def compare(first: Exam, second: Exam, found: Match | None = None) -> dict[str, Any]:
    """Compare two exams of a spine.

    Parameters
    ----------
    first, second : Exam
        Of one person.
    found : Match, optional
        Which vertebrae belong together; by default as `segmamba.measurements.shape_matching.match` says.

    Returns
    -------
    dict
        ``summary``: sentences, the gravest first; ``matching``: ``certain``, ``same_person``, ``renumbered`` (a list of
        ``first`` and ``second``, names of one vertebra), ``only_first``, ``only_second``: names; ``compared``: how many
        values; ``quantities``: of each its ``title``, ``unit`` and ``median_change``; ``vertebrae``: one for each pair
        from the head down, with ``name``, ``first_name``, ``second_name``, ``first_value``, ``second_value``,
        ``shape_distance_mm``, ``to_second_lps`` (4 x 4, lays the vertebra of the first exam on that of the second),
        ``fracture_grade_first``, ``fracture_grade_lowest_first``, ``fracture_grade_highest_first`` and those of the
        second, ``fracture_worse`` (the second one's range of grades lies above that of the first), ``note`` and
        ``changes``: by quantity (heights in mm, volume in mL, density in HU) ``first``, ``second``, ``change``, its
        standard deviation ``sd``, and ``verdict``: "change", "possible" or "within error". None where there is no
        value.
    """
    found = match(shapes_of(first), shapes_of(second)) if found is None else found
    rows_1, rows_2 = ({row["value"]: row for row in exam.rows} for exam in (first, second))
    dense, phase_note = _phases(first.bone, second.bone)
    vertebrae = []
    for one, other in found.pairs:
        before, after = rows_1[one], rows_2[other]
        cut = before["at_border"] or after["at_border"]
        each = found.fits.get((one, other))
        vertebrae.append(
            {
                "name": pair_name(before["name"], after["name"]),
                "first_value": one,
                "second_value": other,
                "first_name": before["name"],
                "second_name": after["name"],
                "shape_distance_mm": None if each is None else round(each.distance_mm, 2),
                "to_second_lps": None if each is None else np.round(each.to_second, 5).tolist(),
                **{
                    f"{key}_{exam}": row[key]
                    for exam, row in zip(EXAMS, (before, after), strict=True)
                    for key in GRADE_KEYS
                },
                "fracture_worse": _worse(before, after),
                "note": CUT if cut else None,
                "changes": {
                    name: _change(name, before, after)
                    if not (name == VOLUME and cut) and (name != DENSITY or dense)
                    else _no_change(before[name], after[name])
                    for name in QUANTITIES
                },
            }
        )
    compared = sum(change["sd"] is not None for row in vertebrae for change in row["changes"].values())
    for row in vertebrae:
        for change in row["changes"].values():
            change["verdict"] = _verdict(change, compared)
    named = {pair: (rows_1[pair[0]]["name"], rows_2[pair[1]]["name"]) for pair in found.pairs}
    medians = {name: _median(vertebrae, name) for name in QUANTITIES}
    return {
        "summary": _summary(found, named, vertebrae, medians, phase_note),
        "matching": {
            "certain": found.certain,
            "same_person": found.same_person,
            "renumbered": [dict(zip(("first", "second"), named[pair], strict=True)) for pair in found.renumbered],
            "only_first": [row["name"] for row in first.rows if row["value"] not in {one for one, _ in found.pairs}],
            "only_second": [row["name"] for row in second.rows if row["value"] not in {two for _, two in found.pairs}],
        },
        "compared": compared,
        "quantities": {
            name: {"title": title(name), "unit": unit(name), "median_change": medians[name]} for name in QUANTITIES
        },
        "vertebrae": vertebrae,
    }


def standard_deviation(name: str, row: Mapping[str, Any]) -> float | None:
    """Return the standard deviation of a measurement of a row, in its unit; None where there is no value."""
    if row[name] is None:
        return None
    if name == VOLUME:
        return VOLUME_SD * float(row[name])
    if name == DENSITY:
        return DENSITY_SD_HU
    # Older reports have the largest one alone.
    sds = row.get("height_sds_mm") or [row["height_sd_mm"]] * len(HEIGHTS)
    return dict(zip(HEIGHTS, sds, strict=True))[name]


def write_changes(path: str | Path, comparison: Mapping[str, Any]) -> None:
    """Write changes as CSV, a row for each vertebra, whole or not at all; missing values are empty cells.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    write_csv(path, COLUMNS, (flat(row) for row in comparison["vertebrae"]))


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a vertebra of `compare` with the columns of the table."""
    changes = {f"{name}_{suffix}": row["changes"][name][suffix] for name in QUANTITIES for suffix in SUFFIXES}
    cells = {**row, **changes}
    return {column: cells[column] for column in COLUMNS}


def _change(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    sd_before, sd_after = standard_deviation(name, before), standard_deviation(name, after)
    if sd_before is None or sd_after is None:
        return _no_change(before[name], after[name])
    values = before[name], after[name]
    # As many decimals as the values have.
    digits = {VOLUME: 3, DENSITY: 1}.get(name, 2)
    return {
        "first": values[0],
        "second": values[1],
        "change": round(values[1] - values[0], digits) + 0.0,
        "sd": round(float(np.hypot(sd_before, sd_after)), digits),
    }


def _no_change(first: Any, second: Any) -> dict[str, Any]:
    return {"first": first, "second": second, "change": None, "sd": None}


def _verdict(change: Mapping[str, Any], compared: int) -> str | None:
    if change["sd"] is None:
        return None
    off = abs(change["change"]) / max(change["sd"], 1e-6)
    single, together = (-ndtri((1 - PROBABILITY ** (1 / count)) / 2) for count in (1, compared))
    return CHANGE if off > together else POSSIBLE if off > single else WITHIN


def _median(vertebrae: Sequence[Mapping[str, Any]], name: str) -> float | None:
    changes = [row["changes"][name]["change"] for row in vertebrae]
    known = [change for change in changes if change is not None]
    return round(float(np.median(known)), 2) + 0.0 if known else None


def _phases(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> tuple[bool, str]:
    """Say whether the densities of two exams can be compared, and return a sentence about it."""
    if first is None or second is None:
        return False, ""
    phases = first["phase"], second["phase"]
    if phases == (NO_CONTRAST, NO_CONTRAST):
        return True, ""
    if NOT_ASSESSED in phases:
        return True, UNSURE_PHASE
    # Contrast medium twice is not the same twice.
    return False, PHASES.format(*phases)


def _summary(
    found: Match,
    named: Mapping[tuple[int, int], tuple[str, str]],
    vertebrae: Sequence[Mapping[str, Any]],
    medians: Mapping[str, float | None],
    phase_note: str,
) -> list[str]:
    if not found.pairs:
        return [NOTHING]
    sentences: list[str] = [OTHER_PERSON] if found.same_person is False else []
    if found.renumbered:
        names = ", ".join(f"{_short(named[pair][0])} is {_short(named[pair][1])}" for pair in found.renumbered)
        sentences.append(
            f"The numbers differ: by shape, what the first exam calls {names} in the second. Changes are those of the "
            "same bone; which numbers are right is not known."
        )
    if not found.certain:
        sentences.append(UNCERTAIN)
    sentences += filter(None, (_graver(row) for row in vertebrae))
    sentences += _shifted(vertebrae, medians)
    for verdict, text in ((CHANGE, "beyond the error of measurement"), (POSSIBLE, "possible")):
        changed = [_named_changes(row, verdict) for row in vertebrae]
        sentences += [f"{name}: {text}: {changes}." for name, changes in filter(None, changed)]
    verdicts = [change["verdict"] for row in vertebrae for change in row["changes"].values() if change["verdict"]]
    if not verdicts:
        sentences.append(NO_VALUE)
    elif CHANGE not in verdicts:
        sentences.append(f"Of {counted(len(verdicts), 'value')}, none changed beyond the error of measurement.")
    return sentences + [phase_note] * bool(phase_note)


def _shifted(vertebrae: Sequence[Mapping[str, Any]], medians: Mapping[str, float | None]) -> list[str]:
    """Return sentences about quantities that differ by much the same in most vertebrae."""
    sentences = []
    for name, median in medians.items():
        values = [row["changes"][name] for row in vertebrae if row["changes"][name]["change"] is not None]
        if median is None or len(values) < FEWEST:
            continue
        limit = SHIFTED_HU if name == DENSITY else SHIFTED_PART * float(np.median([each["first"] for each in values]))
        # The deviation of a median of normal values.
        error = 1.25 * float(np.median([each["sd"] for each in values])) / np.sqrt(len(values))
        if abs(median) > max(limit, SHIFTED_SD * error):
            sentences.append(
                f"{title(name)} differs by {median:+g} {unit(name)} at the median of all vertebrae: scanners, slices "
                "or models may differ."
            )
    return sentences


def _worse(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    ends = before["fracture_grade_highest"], after["fracture_grade_lowest"]
    return None not in ends and ends[1] > ends[0]


def _graver(row: Mapping[str, Any]) -> str:
    if not row["fracture_worse"]:
        return ""
    before, after = (grade_text(*(row[f"{key}_{exam}"] for key in GRADE_KEYS)) for exam in EXAMS)
    return f"{row['name']}: grade {before} before, {after} now."


def _named_changes(row: Mapping[str, Any], verdict: str) -> tuple[str, str] | None:
    texts = [
        f"{title(name).lower()} {change['first']} to {change['second']} {unit(name)} (change {change['change']:+g}, "
        f"SD {change['sd']})"
        for name, change in row["changes"].items()
        if change["verdict"] == verdict
    ]
    return (row["name"], ", ".join(texts)) if texts else None


def pair_name(first_name: str, second_name: str) -> str:
    """Return what a vertebra is called in two exams: "L1", or "L1 (L2 in the second exam)"."""
    first, second = _short(first_name), _short(second_name)
    return first if first == second else f"{first} ({second} in the second exam)"


def title(name: str) -> str:
    """Return what a quantity is called."""
    return {VOLUME: "Volume", DENSITY: "Density"}.get(name, name.removesuffix("_mm").replace("_", " ").capitalize())


def unit(name: str) -> str:
    """Return the unit of a quantity."""
    return {VOLUME: "mL", DENSITY: "HU"}.get(name, "mm")


def _short(name: str) -> str:
    return name.removesuffix(" vertebra")
