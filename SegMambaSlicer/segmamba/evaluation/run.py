"""Run the cases, score them, and sum up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segmamba.evaluation.cases import EvaluationCase, on_grid, read_case, read_prediction
from segmamba.evaluation.certainty import calibration, level_rows, right_and_certain
from segmamba.evaluation.names import CASES, CROPS, NATIVE, NOISE
from segmamba.evaluation.perturbations import PerturbedCase, perturb
from segmamba.evaluation.scores import ScoringConfig, score
from segmamba.evaluation.statistics import MEASURES, eligible, grouped, mean_with_interval, values_of
from segmamba.io.modality import CT, check_modality, resolve_modality
from segmamba.io.volume import Volume
from segmamba.models.manifest import Model
from segmamba.reporting.preview import compose, draw, write_png
from segmamba.reporting.report import describe_software
from segmamba.request import Options
from segmamba.spine.levels import C1, C2, SACRUM
from segmamba.utils.arrays import label_boxes

EVALUATION_VERSION = 3
# What determines the levels of a column without the ribs.
LANDMARKS = (C1, C2, SACRUM)

# Gives the labels for a case's image, and the run's report where there was a run.
Predictor = Callable[[str, Volume], tuple[Volume, Mapping[str, Any] | None]]


def run_model(model: Model, options: Options, checkpoint: Path | None = None, root: Path | None = None) -> Predictor:
    """Return what segments each image by a model; the arguments are those of `segmamba.inference.pipeline.segment`."""

    def predict(name: str, image: Volume) -> tuple[Volume, Mapping[str, Any] | None]:
        from segmamba.inference.pipeline import segment

        image = resolve_modality(image, options.modality)
        if not image.channels:
            check_modality(image, model)
        result = segment(image, model, options, checkpoint=checkpoint, root=root)
        return Volume(result.grid_labels, image.geometry), result.report

    return predict


def read_predictions(folder: Path) -> Predictor:
    """Return what reads the label map of each case from a folder."""
    return lambda name, image: (read_prediction(folder, name), None)


def evaluate_case(
    case: EvaluationCase,
    kinds: Sequence[str],
    predict: Predictor,
    model: Model,
    config: ScoringConfig,
    pictures: Path | None = None,
    options: Options | None = None,
) -> Iterator[dict[str, Any]]:
    """Score a case, then its perturbations; one result each.

    Parameters
    ----------
    case : EvaluationCase
    kinds : sequence of str
        Kinds of perturbations, see `segmamba.evaluation.perturbations`. Noise is skipped unless the image is a CT.
    predict : callable
    model : Model
        Gives names, colours and the intensities of pictures.
    config : ScoringConfig
    pictures : Path, optional
        Folder for a picture of each result.
    options : Options, optional
        Those of the run: ``seed`` is that of the noise, ``modality`` that of several volumes.

    Yields
    ------
    dict
        What `segmamba.evaluation.scores.score` returns, and ``case``, ``perturbation``, ``kind``, ``seconds``,
        ``device``, ``landmark`` (whether the reference shows C1, C2 or the sacrum), ``picture``; rows of vertebrae have
        what `segmamba.evaluation.certainty.level_rows` adds.

    Raises
    ------
    SegMambaError
    """
    options = options or Options()
    native, moved = read_case(case, config, model, options.modality)
    yield _result(case, native, predict, model, config, pictures) | {"reference_resampled": moved}
    for kind in kinds:
        if kind == NOISE and case.modality != CT:
            continue
        for perturbed in perturb(kind, native.image, native.reference, native.reasons, options.seed):
            yield _result(case, perturbed, predict, model, config, pictures)


def evaluation(
    cases: Sequence[Mapping[str, Any]],
    config: ScoringConfig,
    subject: Mapping[str, Any],
    resample: str = CASES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the evaluation for JSON: what was measured, all results of `evaluate_case`, and their summary.

    Parameters
    ----------
    cases : sequence of dict
    config : ScoringConfig
    subject : mapping
        What was measured: the model as in a report, or the folder of predictions.
    resample : str
        "cases" or "structures": what the bootstrap draws.
    seed : int
        Of the bootstrap.
    """
    kinds = dict.fromkeys(case["kind"] for case in cases)
    summary = {kind: summarize([case for case in cases if case["kind"] == kind], resample, seed) for kind in kinds}
    losses = {
        kind: dice_loss([case for case in cases if case["kind"] in (NATIVE, kind)], resample, seed) for kind in kinds
    }
    losses.pop(NATIVE, None)
    result = {
        "evaluation_version": EVALUATION_VERSION,
        "subject": dict(subject),
        "compared": config.kind,
        "resample": resample,
        "software": describe_software(),
        "summary": summary,
        "losses": losses,
        "cases": list(cases),
    }
    if config.vertebrae:
        by_kind = {kind: [case for case in cases if case["kind"] == kind] for kind in kinds}
        result["certainty"] = {kind: right_and_certain(some) for kind, some in by_kind.items()}
        result["calibration"] = calibration(cases)
    crops = [kind for kind in CROPS if kind in kinds]
    if crops:
        result["crops"] = {kind: abstentions([case for case in cases if case["kind"] == kind]) for kind in crops}
    return result


def summarize(cases: Sequence[Mapping[str, Any]], resample: str, seed: int = 0) -> dict[str, Any]:
    """Return, for each measure, what `mean_with_interval` says of the eligible structures, and of ``dice_foreground``.

    ``dice_foreground`` is over all cases, also those without an eligible structure, and always drawn by case.
    """
    result = {measure: mean_with_interval(grouped(values_of(cases, measure), resample), seed) for measure in MEASURES}
    missed = sum(case["missed"] for case in cases)
    by_case: dict[str, list[float]] = {}
    for case in cases:
        by_case.setdefault(case["case"], []).append(case["dice_foreground"])
    every = mean_with_interval(list(by_case.values()), seed)
    return result | {"dice_foreground": every, "missed": missed, "cases": len(by_case)}


def dice_loss(cases: Sequence[Mapping[str, Any]], resample: str, seed: int = 0) -> dict[str, Any]:
    """Return how much mean Dice perturbed cases lose against their native case, over structures eligible in both.

    ``mean`` (positive: lost) and its interval as in `mean_with_interval`; ``native``, ``changed``: the two means;
    ``abstained``: perturbed cases whose run abstained. The Dice of such a crop is that after the best consistent
    shift of its levels.
    """
    native = {case["case"]: case for case in cases if case["kind"] == NATIVE}
    pairs: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        if case["kind"] == NATIVE:
            continue
        whole = {row["value"]: row["dice"] for row in eligible(native[case["case"]])}
        key = "dice_shifted" if case["kind"] in CROPS and abstained(case) else "dice"
        found = [(whole[row["value"]], row[key]) for row in eligible(case) if row["value"] in whole]
        pairs.setdefault(case["case"], []).extend(found)
    losses = {name: [before - after for before, after in values] for name, values in pairs.items()}
    both = [pair for values in pairs.values() for pair in values]
    means = {
        "native": sum(before for before, _ in both) / len(both) if both else None,
        "changed": sum(after for _, after in both) / len(both) if both else None,
        "abstained": sum(abstained(case) for case in cases if case["kind"] != NATIVE),
    }
    return mean_with_interval(grouped(losses, resample), seed) | means


def abstained(case: Mapping[str, Any]) -> bool:
    """Say whether the run of a case abstained: it said that its levels are not certain."""
    return case.get("numbering", {}).get("certain") is False


def abstentions(crops: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Count how crops were numbered, separately for those with C1, C2 or the sacrum in view and those without.

    A crop is wrong if one of its eligible vertebrae is mostly covered by another level. ``abstention_rate`` is that
    among crops that are not numbered correctly: abstained / (abstained + wrong).
    """
    table = {}
    for name, landmark in (("landmark", True), ("no_landmark", False)):
        part = [crop for crop in crops if crop["landmark"] == landmark]
        wrong = [crop for crop in part if crop["numbering"]["wrong"]]
        all_abstained, wrong_abstained = (sum(map(abstained, group)) for group in (part, wrong))
        certain_wrong = len(wrong) - wrong_abstained
        not_right = all_abstained + certain_wrong
        table[name] = {
            "crops": len(part),
            "right": len(part) - not_right,
            "wrong": certain_wrong,
            "abstained_right": all_abstained - wrong_abstained,
            "abstained_wrong": wrong_abstained,
            "abstention_rate": all_abstained / not_right if not_right else None,
        }
    return table


def reported_certainty(report: Mapping[str, Any] | None) -> bool | None:
    """Return what a report says about its levels: certain, not certain, or nothing (None).

    Either of the whole (``numbering.certain``), or of its vertebrae (``level_certain``): then all have to be.
    """
    if report is None:
        return None
    whole = (report.get("numbering") or {}).get("certain")
    each = [segment["level_certain"] for segment in report.get("segments", []) if "level_certain" in segment]
    if whole is not None:
        return bool(whole)
    return all(each) if each else None


def _result(
    case: EvaluationCase,
    perturbed: PerturbedCase,
    predict: Predictor,
    model: Model,
    config: ScoringConfig,
    pictures: Path | None,
) -> dict[str, Any]:
    started = time.perf_counter()
    prediction, report = predict(case.name, perturbed.image)
    seconds = time.perf_counter() - started
    labels = on_grid(prediction, perturbed.image.geometry)[0].array
    result: dict[str, Any] = {
        "case": case.name,
        "perturbation": perturbed.name,
        "kind": perturbed.kind,
        "seconds": None if report is None else round(seconds, 2),
        "device": None if report is None else report["run"]["device_title"],
        "landmark": any(value in LANDMARKS for value in label_boxes(perturbed.reference.array)),
        "picture": None,
    }
    result |= score(labels, perturbed.reference, config, perturbed.reasons, reported_certainty(report))
    if config.vertebrae:
        level_rows(result, report)
    if report is not None:
        result["model"] = report["model"] | {"options": report["run"].get("options")}
    if pictures is not None:
        title = f"{case.name}, {perturbed.name}: dashed is the reference"
        path = pictures / f"{case.name}-{perturbed.name.replace(' ', '-')}.png"
        write_png(path, draw(compose(perturbed.image, labels, model, title, perturbed.reference.array)))
        result["picture"] = path.name
    return result
