"""Means with bootstrap confidence intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segmamba.errors import InputError
from segmamba.evaluation.names import CASES

REPEATS = 2000
PERCENTILES = (2.5, 97.5)
MEASURES = ("dice", "assd_mm", "hd95_mm", "identified")
# Of a case, not of one of its structures.
ALL = "dice_foreground"


def mean_with_interval(groups: Sequence[Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """Return the mean of all values and its 95% confidence interval.

    The interval is the percentile bootstrap's over the groups: whole groups are drawn, with replacement, as often as
    there are any, 2,000 times. Vertebrae of one case are alike, so a group should be a case.

    Parameters
    ----------
    groups : sequence of sequence of float
        Empty ones are left out.
    seed : int

    Returns
    -------
    dict
        ``mean`` (None without values), ``interval`` (two numbers; None for fewer than two groups), ``values``,
        ``groups`` (how many).
    """
    kept = [group for group in groups if len(group)]
    sums, counts = np.array([sum(group) for group in kept]), np.array([len(group) for group in kept])
    interval = None
    if len(kept) > 1:
        drawn = np.random.default_rng(seed).integers(len(kept), size=(REPEATS, len(kept)))
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        interval = [float(limit) for limit in np.percentile(means, PERCENTILES)]
    mean = float(sums.sum() / counts.sum()) if kept else None
    return {"mean": mean, "interval": interval, "values": int(counts.sum()), "groups": len(kept)}


def grouped(values: Mapping[str, Sequence[float]], resample: str) -> list[Sequence[float]]:
    """Return values by case as groups to draw: the cases, or each value by itself."""
    if resample == CASES:
        return list(values.values())
    return [[value] for case in values.values() for value in case]


def eligible(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a case's eligible structures."""
    return [row for row in case["structures"] if row["ineligible"] is None]


def values_of(cases: Sequence[Mapping[str, Any]], measure: str) -> dict[str, list[float]]:
    """Return a measure of the eligible structures, by case; without those where it does not exist."""
    values: dict[str, list[float]] = {}
    for case in cases:
        found = [float(row[measure]) for row in eligible(case) if row[measure] is not None]
        values.setdefault(case["case"], []).extend(found)
    return values


def compare(first: Mapping[str, Any], second: Mapping[str, Any], resample: str, seed: int = 0) -> dict[str, Any]:
    """Return the differences of two evaluations, second minus first, over the structures that are eligible in both.

    Parameters
    ----------
    first, second : mapping
        What `segmamba.evaluation.run.evaluation` returned.
    resample : str
        "cases" or "structures": what is drawn for the intervals.

    Returns
    -------
    dict
        For each kind of perturbation and each measure what `mean_with_interval` gives for the paired differences, and
        the means of both (``first``, ``second``). A surface distance is only paired where both found the structure.

    Raises
    ------
    InputError
        They have no case in common.
    """
    others = {(case["case"], case["perturbation"]): case for case in second["cases"]}
    if not any((case["case"], case["perturbation"]) in others for case in first["cases"]):
        raise InputError("The two evaluations have no case in common: give two of the same pairs.")
    result: dict[str, Any] = {}
    for kind in dict.fromkeys(case["kind"] for case in first["cases"]):
        result[kind] = {}
        for measure in (*MEASURES, ALL):
            pairs: dict[str, list[tuple[float, float]]] = {}
            for case in first["cases"]:
                other = others.get((case["case"], case["perturbation"]))
                if case["kind"] == kind and other is not None:
                    pairs.setdefault(case["case"], []).extend(_pairs(case, other, measure))
            differences = {name: [b - a for a, b in values] for name, values in pairs.items()}
            both = [pair for values in pairs.values() for pair in values]
            means = np.mean(both, axis=0).tolist() if both else [None, None]
            difference = mean_with_interval(grouped(differences, resample), seed)
            result[kind][measure] = difference | {"first": means[0], "second": means[1]}
    return result


def _pairs(first: Mapping[str, Any], second: Mapping[str, Any], measure: str) -> list[tuple[float, float]]:
    if measure == ALL:
        return [(first[ALL], second[ALL])]
    others = {row["value"]: row[measure] for row in eligible(second)}
    pairs = [(row[measure], others.get(row["value"])) for row in eligible(first)]
    return [(float(a), float(b)) for a, b in pairs if a is not None and b is not None]
