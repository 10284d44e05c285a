"""The figures of one case: our labels against its reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segmamba.evaluation.bodies import compared_parts
from segmamba.evaluation.metrics import centroids, dice_of_all, identified, overlap_table, surface_distances, table_dice
from segmamba.evaluation.names import BODIES, PLAIN
from segmamba.evaluation.references import FUSED, LAST_LEVEL, SACRUM
from segmamba.evaluation.statistics import counted
from segmamba.io.volume import Geometry, Volume


@dataclass(frozen=True)
class Rules:
    """How a task is scored.

    Attributes
    ----------
    kind : str
        `WHOLE` vertebrae, vertebral `BODIES` or `PLAIN` structures, of `segmamba.evaluation.names`.
    names : mapping of int to str
        Names of the labels.
    """

    kind: str
    names: Mapping[int, str]

    @property
    def vertebrae(self) -> bool:
        return self.kind != PLAIN

    def name(self, value: int) -> str:
        return self.names.get(value, f"label {value}")


def score(
    labels: np.ndarray, reference: Volume, rules: Rules, reasons: Mapping[int, str | None], certain: bool | None = None
) -> dict[str, Any]:
    """Compare labels with a reference.

    Parameters
    ----------
    labels : ndarray of uint8 (z, y, x)
        On the reference's grid.
    reference : Volume
    rules : Rules
    reasons : mapping
        For each label why it does not count, or None where it does.
    certain : bool or None
        What the run said of its numbering; None where it said nothing.

    Returns
    -------
    dict
        ``dice_all`` (all structures against the background), ``dice_vertebrae`` (the same without the sacrum, of
        which many references hold a part; None where there are no vertebrae), ``dice_mean``, ``assd_mean_mm``,
        ``hd95_mean_mm`` (over the structures that count; distances over those that were found), ``missed``,
        ``identified`` and ``of`` (how many), ``structures`` (a row each, see `_row`), ``extra`` (labels that the
        reference does not have), and for vertebrae ``numbering``.
    """
    theirs, geometry = reference.array, reference.geometry
    compared = against_background = labels
    if rules.kind == BODIES:
        compared, against_background = compared_parts(labels, theirs, geometry)
    if rules.vertebrae and not (theirs == SACRUM).any():
        against_background = np.where(np.isin(against_background, FUSED), 0, against_background)
    table = overlap_table(compared, theirs)
    places = centroids(compared, geometry), centroids(theirs, geometry)
    rows = [_row(value, compared, reference, table, places, rules, reasons.get(value)) for value in places[1]]
    result = {"dice_all": dice_of_all(against_background, theirs), "structures": rows}
    result["dice_vertebrae"] = None
    if rules.vertebrae:
        ours_without, theirs_without = (np.where(np.isin(a, FUSED), 0, a) for a in (against_background, theirs))
        result["dice_vertebrae"] = dice_of_all(ours_without, theirs_without)
    result |= _means(counted(result))
    extra = sorted(places[0].keys() - places[1].keys())
    result["extra"] = [
        {"value": value, "name": rules.name(value), "voxels": int(table[:, value].sum())} for value in extra
    ]
    if rules.vertebrae:
        numbering = _numbering(table, counted(result), certain)
        for row in rows:
            row["dice_shifted"] = _moved_dice(table, row["value"], numbering["best_shift"])
        result["numbering"] = numbering
    return result


def _row(
    value: int,
    labels: np.ndarray,
    reference: Volume,
    table: np.ndarray,
    places: tuple[Mapping[int, np.ndarray], Mapping[int, np.ndarray]],
    rules: Rules,
    reason: str | None,
) -> dict[str, Any]:
    """Return what one structure of the reference got.

    ``covered_by`` is the label of ours that covers most of it, 0 where the background does.
    """
    ours, theirs = places
    geometry: Geometry = reference.geometry
    millilitres = geometry.voxel_volume / 1000
    average = hausdorff = distance = None
    if value in ours:
        average, hausdorff = surface_distances(labels == value, reference.array == value, geometry.spacing[::-1])
        distance = float(np.linalg.norm(ours[value] - theirs[value]))
    row = {
        "value": value,
        "name": rules.name(value),
        "not_counted": reason,
        "dice": table_dice(table, value, value),
        "assd_mm": average,
        "hd95_mm": hausdorff,
        "centroid_distance_mm": distance,
        "volume_ml": float(table[:, value].sum() * millilitres),
        "reference_voxels": int(table[value].sum()),
        "reference_volume_ml": float(table[value].sum() * millilitres),
        "covered_by": int(table[value].argmax()),
        "identified": None,
    }
    if rules.vertebrae:
        whole = {number: place for number, place in theirs.items() if number not in FUSED}
        row["identified"] = None if value in FUSED else identified(value, ours, whole)
    return row


def _means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    found = [row for row in rows if row["assd_mm"] is not None]
    return {
        "dice_mean": mean([row["dice"] for row in rows]),
        "assd_mean_mm": mean([row["assd_mm"] for row in found]),
        "hd95_mean_mm": mean([row["hd95_mm"] for row in found]),
        "missed": len(rows) - len(found),
        "identified": sum(bool(row["identified"]) for row in rows),
        "of": len(rows),
    }


def _numbering(table: np.ndarray, rows: list[dict[str, Any]], certain: bool | None) -> dict[str, Any]:
    """Return how the numbers fit.

    ``wrong``: how many vertebrae that count are covered most by another level than their own. ``best_shift``: how many
    levels ours have to be moved down for the best mean Dice, and ``dice_mean_shifted`` that Dice.
    """
    levels = [row["value"] for row in rows if row["value"] <= LAST_LEVEL]
    shift, dice = best_shift(table, levels)
    return {
        "certain": certain,
        "wrong": sum(row["covered_by"] not in (0, row["value"]) for row in rows),
        "best_shift": shift,
        "dice_mean_shifted": dice,
    }


def best_shift(table: np.ndarray, levels: list[int]) -> tuple[int, float | None]:
    """Return the shift of our levels that gives the best mean Dice, and that Dice (None without levels).

    Parameters
    ----------
    table : ndarray
        An `overlap_table`.
    levels : list of int
        The reference's levels over which the mean is taken, 1 to 25. Of equally good shifts the smallest is taken.

    Returns
    -------
    shift : int
        What has to be added to each of our levels; those that leave 1 to 25 are lost, the sacrum stays.
    dice : float or None
    """
    if not levels:
        return 0, None
    best, kept = -1.0, 0
    for shift in sorted(range(1 - LAST_LEVEL, LAST_LEVEL), key=abs):
        moved = [_moved_dice(table, level, shift) for level in levels]
        if np.mean(moved) > best:
            best, kept = float(np.mean(moved)), shift
    return kept, best


def _moved_dice(table: np.ndarray, value: int, shift: int) -> float:
    """Return the Dice of a reference's value after a shift of our levels: see `best_shift`."""
    if value > LAST_LEVEL:
        return table_dice(table, value, value)
    return table_dice(table, value, value - shift) if 1 <= value - shift <= LAST_LEVEL else 0.0
