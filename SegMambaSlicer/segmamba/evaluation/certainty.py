"""Whether a run knows what it knows: numbers right or wrong against certain or not, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segmamba.evaluation.statistics import eligible
from segmamba.utils.atomic import atomic_write
from segmamba.utils.words import counted

# Bins of equal width that probabilities are sorted into.
BINS = 10
PICTURE_INCHES, PIXELS_PER_INCH = 4.0, 120


def right_and_certain(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count cases in a 2 x 2 table: numbers right or wrong, and said to be certain or not.

    A case is right if none of its eligible vertebrae is mostly covered by another level or by nothing. Cases of which
    the run said nothing are counted by themselves, cases without an eligible vertebra not at all.

    Returns
    -------
    dict
        ``right_certain``, ``right_uncertain``, ``wrong_certain``, ``wrong_uncertain``, ``right_unsaid``,
        ``wrong_unsaid``: how many; ``runner_up_right``: of the uncertain wrong ones, those whose second labelling is
        right; ``wrong_and_certain``: names of these cases.
    """
    said = {True: "certain", False: "uncertain", None: "unsaid"}
    table: dict[str, Any] = {f"{what}_{how}": 0 for how in said.values() for what in ("right", "wrong")}
    table |= {"runner_up_right": 0, "wrong_and_certain": []}
    for case in cases:
        rows = eligible(case)
        if not rows or case.get("numbering") is None:
            continue
        certain = case["numbering"]["certain"]
        right = all(row["covered_by"] == row["value"] for row in rows)
        table[f"{'right' if right else 'wrong'}_{said[certain]}"] += 1
        if not right and certain:
            table["wrong_and_certain"].append(f"{case['case']}, {case['perturbation']}")
        if not right and certain is False:
            table["runner_up_right"] += all(row.get("runner_up") == row["value"] for row in rows)
    return table


def calibration(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Compare the probabilities of levels with how often they are right, over all eligible vertebrae that were found.

    Returns
    -------
    dict or None
        ``vertebrae``, ``expected_calibration_error``: the mean over ``BINS`` bins of equal width of the difference
        between mean probability and share of right levels, weighted by their size (Naeini et al. 2015); ``bins``:
        for each that is not empty ``vertebrae``, ``probability`` and ``right``. None without probabilities.
    """
    found = [
        (row["level_probability"], row["covered_by"] == row["value"])
        for case in cases
        for row in eligible(case)
        if row.get("level_probability") is not None and row["covered_by"]
    ]
    if not found:
        return None
    probability, right = (np.array(values, float) for values in zip(*found, strict=True))
    number = np.clip((probability * BINS).astype(int), 0, BINS - 1)
    bins = [
        {
            "vertebrae": int((number == index).sum()),
            "probability": float(probability[number == index].mean()),
            "right": float(right[number == index].mean()),
        }
        for index in range(BINS)
        if (number == index).any()
    ]
    error = sum(one["vertebrae"] * abs(one["probability"] - one["right"]) for one in bins) / len(found)
    return {"vertebrae": len(found), "expected_calibration_error": float(error), "bins": bins}


def level_rows(case: Mapping[str, Any], report: Mapping[str, Any] | None) -> None:
    """Add to a case's rows what the run said of the level that covers each structure.

    ``level_probability``, and ``runner_up``, that instance's level in the next best labelling; None where the run said
    nothing.
    """
    numbering = (report or {}).get("numbering") or {}
    probabilities = {int(level): value for level, value in numbering.get("levels", {}).items()}
    rivals = numbering.get("runner_up_levels") or {}
    for row in case["structures"]:
        row["level_probability"] = probabilities.get(row["covered_by"])
        row["runner_up"] = rivals.get(str(row["covered_by"]))


def draw_reliability(result: Mapping[str, Any], path: Path) -> None:
    """Write a reliability diagram (PNG) of what `calibration` returned."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PICTURE_INCHES, PICTURE_INCHES), dpi=PIXELS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--")
    bins = result["bins"]
    probability, right = ([one[key] for one in bins] for key in ("probability", "right"))
    axes.plot(probability, right, marker="o", color="tab:blue")
    for one in bins:
        axes.annotate(str(one["vertebrae"]), (one["probability"], one["right"]), fontsize=7)
    axes.set(xlim=(0, 1), ylim=(0, 1.03), aspect="equal")
    axes.set(xlabel="probability of the level", ylabel="part that is right")
    error = result["expected_calibration_error"]
    vertebrae = counted(result["vertebrae"], "vertebra", "vertebrae")
    axes.set_title(f"{vertebrae}, expected calibration error {error:.3f}", fontsize=9)
    with atomic_write(path, (".png",)) as temporary:
        figure.savefig(temporary)
