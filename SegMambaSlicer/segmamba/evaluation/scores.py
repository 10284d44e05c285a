"""The scores of one case: a prediction against its reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segmamba.evaluation.bodies import compared_parts
from segmamba.evaluation.metrics import (
    centroids,
    confusion_matrix,
    dice_foreground,
    dice_from_confusion,
    identified,
    surface_distances,
)
from segmamba.evaluation.names import BODIES, PLAIN
from segmamba.evaluation.references import FUSED
from segmamba.evaluation.statistics import eligible
from segmamba.io.volume import Geometry, Volume
from segmamba.spine.levels import C1, L6, SACRUM


@dataclass(frozen=True)
class ScoringConfig:
    """What is compared, and how structures are called.

    Attributes
    ----------
    kind : str
        `WHOLE` vertebrae, vertebral `BODIES` or `PLAIN` structures, of `segmamba.evaluation.names`.
    names : mapping of int to str
        Names of the labels.
    regions : mapping of int to (str, tuple of int)
        Regions that may overlap, by the value that a result has in each: name, and the label values that it is made
        of. Where there are any, they are what is compared, each as a whole.
    """

    kind: str
    names: Mapping[int, str]
    regions: Mapping[int, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def vertebrae(self) -> bool:
        return self.kind != PLAIN

    def name(self, value: int) -> str:
        return self.names.get(value, f"label {value}")


def score(
    prediction: np.ndarray,
    reference: Volume,
    config: ScoringConfig,
    reasons: Mapping[int, str | None],
    certain: bool | None = None,
) -> dict[str, Any]:
    """Compare a prediction with a reference.

    Parameters
    ----------
    prediction : ndarray of uint8 (z, y, x)
        On the reference's grid.
    reference : Volume
    config : ScoringConfig
    reasons : mapping
        For each label why it is not eligible, or None where it is.
    certain : bool or None
        What the run said about its levels; None where it said nothing.

    Returns
    -------
    dict
        ``dice_foreground`` (all structures against the background), ``dice_vertebrae`` (the same without the sacrum, of
        which many references contain a part; None where there are no vertebrae), ``dice_mean``, ``assd_mean_mm``,
        ``hd95_mean_mm`` (over eligible structures; distances over those that were found), ``missed``,
        ``identified`` and ``of`` (how many), ``structures`` (a row each, see `_row`), ``extra`` (labels that the
        reference does not have), and for vertebrae ``numbering``.
    """
    compared = against_background = prediction
    if config.kind == BODIES:
        compared, against_background = compared_parts(prediction, reference.array, reference.geometry)
    if config.vertebrae and not (reference.array == SACRUM).any():
        against_background = _without_fused(against_background)
    confusion = confusion_matrix(compared, reference.array)
    places = centroids(compared, reference.geometry), centroids(reference.array, reference.geometry)
    if config.regions:
        rows = _region_rows(compared, reference, config)
    else:
        rows = [_row(value, compared, reference, confusion, places, config, reasons.get(value)) for value in places[1]]
    result = {"dice_foreground": dice_foreground(against_background, reference.array), "structures": rows}
    result["dice_vertebrae"] = None
    if config.vertebrae:
        without_fused = _without_fused(against_background), _without_fused(reference.array)
        result["dice_vertebrae"] = dice_foreground(*without_fused)
    result |= _means(eligible(result))
    extra = [] if config.regions else sorted(places[0].keys() - places[1].keys())
    result["extra"] = [
        {"value": value, "name": config.name(value), "voxels": int(confusion[:, value].sum())} for value in extra
    ]
    if config.vertebrae:
        numbering = _numbering(confusion, eligible(result), certain)
        for row in rows:
            row["dice_shifted"] = _shifted_dice(confusion, row["value"], numbering["best_shift"])
        result["numbering"] = numbering
    return result


def _region_rows(prediction: np.ndarray, reference: Volume, config: ScoringConfig) -> list[dict[str, Any]]:
    """Return the scores of each region that the reference has, by itself."""
    rows = []
    for value, (name, parts) in config.regions.items():
        ours, theirs = (
            np.where(np.isin(labels, parts), np.uint8(value), np.uint8(0)) for labels in (prediction, reference.array)
        )
        if not theirs.any():
            continue
        places = centroids(ours, reference.geometry), centroids(theirs, reference.geometry)
        alone = Volume(theirs, reference.geometry)
        rows.append(_row(value, ours, alone, confusion_matrix(ours, theirs), places, config, None) | {"name": name})
    return rows


def _without_fused(labels: np.ndarray) -> np.ndarray:
    return np.where(np.isin(labels, FUSED), 0, labels)


def _row(
    value: int,
    prediction: np.ndarray,
    reference: Volume,
    confusion: np.ndarray,
    places: tuple[Mapping[int, np.ndarray], Mapping[int, np.ndarray]],
    config: ScoringConfig,
    reason: str | None,
) -> dict[str, Any]:
    """Return the scores of one structure of the reference.

    ``places`` are the centroids of prediction and reference. ``covered_by`` is the predicted label that covers most
    of the structure, 0 where the background does.
    """
    predicted, true = places
    geometry: Geometry = reference.geometry
    millilitres = geometry.voxel_volume / 1000
    average = hausdorff = distance = None
    if value in predicted:
        average, hausdorff = surface_distances(prediction == value, reference.array == value, geometry.spacing[::-1])
        distance = float(np.linalg.norm(predicted[value] - true[value]))
    row = {
        "value": value,
        "name": config.name(value),
        "ineligible": reason,
        "dice": dice_from_confusion(confusion, value, value),
        "assd_mm": average,
        "hd95_mm": hausdorff,
        "centroid_distance_mm": distance,
        "volume_ml": float(confusion[:, value].sum() * millilitres),
        "reference_voxels": int(confusion[value].sum()),
        "reference_volume_ml": float(confusion[value].sum() * millilitres),
        "covered_by": int(confusion[value].argmax()),
        "identified": None,
    }
    if config.vertebrae:
        vertebrae = {other: place for other, place in true.items() if other not in FUSED}
        row["identified"] = None if value in FUSED else identified(value, predicted, vertebrae)
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


def _numbering(confusion: np.ndarray, rows: list[dict[str, Any]], certain: bool | None) -> dict[str, Any]:
    """Return how well the levels fit.

    ``wrong``: how many eligible vertebrae are mostly covered by another level than their own. ``best_shift``: by how
    many levels the prediction has to be moved down for the best mean Dice, and ``dice_mean_shifted`` that Dice.
    """
    levels = [row["value"] for row in rows if row["value"] <= L6]
    shift, dice = best_shift(confusion, levels)
    return {
        "certain": certain,
        "wrong": sum(row["covered_by"] not in (0, row["value"]) for row in rows),
        "best_shift": shift,
        "dice_mean_shifted": dice,
    }


def best_shift(confusion: np.ndarray, levels: list[int]) -> tuple[int, float | None]:
    """Return the shift of the predicted levels that gives the best mean Dice, and that Dice (None without levels).

    Parameters
    ----------
    confusion : ndarray
        A `confusion_matrix`.
    levels : list of int
        The reference's levels over which the mean is taken, 1 to 25. Of equally good shifts the smallest is taken.

    Returns
    -------
    shift : int
        What has to be added to each predicted level; those that leave 1 to 25 are lost, the sacrum stays.
    dice : float or None
    """
    if not levels:
        return 0, None
    best, kept = -1.0, 0
    for shift in sorted(range(1 - L6, L6), key=abs):
        dice = float(np.mean([_shifted_dice(confusion, level, shift) for level in levels]))
        if dice > best:
            best, kept = dice, shift
    return kept, best


def _shifted_dice(confusion: np.ndarray, value: int, shift: int) -> float:
    """Return the Dice of a reference's value after a shift of the predicted levels: see `best_shift`."""
    if value > L6:
        return dice_from_confusion(confusion, value, value)
    return dice_from_confusion(confusion, value, value - shift) if C1 <= value - shift <= L6 else 0.0
