"""Run the cases, score them, and sum up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segmamba.evaluation.cases import CT, Case, on_grid, read_case, read_prediction
from segmamba.evaluation.names import CASES, CROP, NATIVE, NOISE
from segmamba.evaluation.references import SACRUM
from segmamba.evaluation.scores import Rules, score
from segmamba.evaluation.statistics import MEASURES, counted, grouped, mean_with_interval, values_of
from segmamba.evaluation.variants import Variant, make_variants
from segmamba.io.modality import check_modality, resolve_modality
from segmamba.io.volume import Volume
from segmamba.models.manifest import Model
from segmamba.reporting.preview import render, write_png
from segmamba.reporting.report import describe_software
from segmamba.request import Options
from segmamba.utils.arrays import label_boxes

EVALUATION_VERSION = 1
# The vertebrae that number a column without a look at the ribs: C1, C2 and the sacrum.
LANDMARKS = (1, 2, SACRUM)

# Gives the labels for a case's image, and the run's report where there was a run.
Predictor = Callable[[str, Volume], tuple[Volume, Mapping[str, Any] | None]]


def run_model(model: Model, options: Options, checkpoint: Path | None = None, root: Path | None = None) -> Predictor:
    """Return what segments each image by a model; the arguments are those of `segmamba.inference.pipeline.segment`."""

    def predict(name: str, image: Volume) -> tuple[Volume, Mapping[str, Any] | None]:
        from segmamba.inference.pipeline import segment

        image = resolve_modality(image)
        check_modality(image, model)
        result = segment(image, model, options, checkpoint=checkpoint, root=root)
        return Volume(result.labels, image.geometry), result.report

    return predict


def read_predictions(folder: Path) -> Predictor:
    """Return what reads the label map of each case from a folder."""
    return lambda name, image: (read_prediction(folder, name), None)


def evaluate_case(
    case: Case,
    kinds: Sequence[str],
    predict: Predictor,
    model: Model,
    rules: Rules,
    pictures: Path | None = None,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Score a case, then its versions; one result each.

    Parameters
    ----------
    case : Case
    kinds : sequence of str
        Kinds of versions, see `segmamba.evaluation.variants`. Noise is left out where the image is no CT.
    predict : callable
    model : Model
        Gives names, colours and the intensities of pictures.
    rules : Rules
    pictures : Path, optional
        Folder for a picture of each result.
    seed : int
        Of the noise.

    Yields
    ------
    dict
        What `segmamba.evaluation.scores.score` returns, and ``case``, ``variant``, ``kind``, ``seconds``, ``device``,
        ``landmark`` (whether the reference shows C1, C2 or the sacrum), ``picture``.

    Raises
    ------
    SegMambaError
    """
    native, moved = read_case(case, rules)
    yield _result(case, native, predict, model, rules, pictures) | {"reference_resampled": moved}
    for kind in kinds:
        if kind == NOISE and case.kind != CT:
            continue
        for variant in make_variants(kind, native.image, native.reference, native.reasons, seed):
            yield _result(case, variant, predict, model, rules, pictures)


def evaluation(
    cases: Sequence[Mapping[str, Any]], rules: Rules, subject: Mapping[str, Any], resample: str = CASES, seed: int = 0
) -> dict[str, Any]:
    """Return the evaluation for JSON: what was measured, all results of `evaluate_case`, and their summary.

    Parameters
    ----------
    cases : sequence of dict
    rules : Rules
    subject : mapping
        What was measured: the model as in a report, or the folder of predictions.
    resample : str
        "cases" or "structures": what the bootstrap draws.
    seed : int
        Of the bootstrap.
    """
    kinds = dict.fromkeys(case["kind"] for case in cases)
    summary = {kind: summed_up([case for case in cases if case["kind"] == kind], resample, seed) for kind in kinds}
    drops = {kind: drop([case for case in cases if case["kind"] in (NATIVE, kind)], resample, seed) for kind in kinds}
    drops.pop(NATIVE, None)
    result = {
        "evaluation_version": EVALUATION_VERSION,
        "subject": dict(subject),
        "compared": rules.kind,
        "resample": resample,
        "software": describe_software(),
        "summary": summary,
        "drops": drops,
        "cases": list(cases),
    }
    if CROP in kinds:
        result["crops"] = abstentions([case for case in cases if case["kind"] == CROP])
    return result


def summed_up(cases: Sequence[Mapping[str, Any]], resample: str, seed: int = 0) -> dict[str, Any]:
    """Return, for each measure, what `mean_with_interval` says of the structures that count, and of ``dice_all``.

    ``dice_all`` is over all cases, also those of which nothing counts, and always drawn by case.
    """
    result = {measure: mean_with_interval(grouped(values_of(cases, measure), resample), seed) for measure in MEASURES}
    missed = sum(case["missed"] for case in cases)
    by_case: dict[str, list[float]] = {}
    for case in cases:
        by_case.setdefault(case["case"], []).append(case["dice_all"])
    every = mean_with_interval(list(by_case.values()), seed)
    return result | {"dice_all": every, "missed": missed, "cases": len(by_case)}


def drop(cases: Sequence[Mapping[str, Any]], resample: str, seed: int = 0) -> dict[str, Any]:
    """Return how much mean Dice versions lose against their native case, over the structures that count in both.

    ``mean`` (positive: lost) and its interval as in `mean_with_interval`; ``native``, ``changed``: the two means;
    ``abstained``: versions that said they do not know the numbers. Of such a crop the Dice is that after the best
    consistent shift of its numbers.
    """
    native = {case["case"]: case for case in cases if case["kind"] == NATIVE}
    pairs: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        if case["kind"] == NATIVE:
            continue
        whole = {row["value"]: row["dice"] for row in counted(native[case["case"]])}
        key = "dice_shifted" if case["kind"] == CROP and abstained(case) else "dice"
        found = [(whole[row["value"]], row[key]) for row in counted(case) if row["value"] in whole]
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
    """Say whether the run of a case said that it does not know the numbers."""
    return case.get("numbering", {}).get("certain") is False


def abstentions(crops: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Count how crops were numbered, apart for those with C1, C2 or the sacrum in view and those without.

    A crop is wrong if one of its vertebrae that count has more of another level on it than of its own.
    ``left_open`` is the part of those not numbered right with certainty in which the numbers were left open.
    """
    table = {}
    for name, landmark in (("landmark", True), ("no_landmark", False)):
        part = [crop for crop in crops if crop["landmark"] == landmark]
        wrong = [crop for crop in part if crop["numbering"]["wrong"]]
        left_open, open_and_wrong = (sum(map(abstained, some)) for some in (part, wrong))
        sure_and_wrong = len(wrong) - open_and_wrong
        not_right = left_open + sure_and_wrong
        table[name] = {
            "crops": len(part),
            "right": len(part) - not_right,
            "wrong": sure_and_wrong,
            "open_and_right": left_open - open_and_wrong,
            "open_and_wrong": open_and_wrong,
            "left_open": left_open / not_right if not_right else None,
        }
    return table


def said_certain(report: Mapping[str, Any] | None) -> bool | None:
    """Return what a report says of its numbering: certain, not certain, or nothing (None).

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
    case: Case, variant: Variant, predict: Predictor, model: Model, rules: Rules, pictures: Path | None
) -> dict[str, Any]:
    started = time.perf_counter()
    answer, report = predict(case.name, variant.image)
    seconds = time.perf_counter() - started
    labels = on_grid(answer, variant.image.geometry)[0].array
    result: dict[str, Any] = {
        "case": case.name,
        "variant": variant.name,
        "kind": variant.kind,
        "seconds": None if report is None else round(seconds, 2),
        "device": None if report is None else report["run"]["device_title"],
        "landmark": any(value in LANDMARKS for value in label_boxes(variant.reference.array)),
        "picture": None,
    }
    result |= score(labels, variant.reference, rules, variant.reasons, said_certain(report))
    if report is not None:
        result["model"] = report["model"] | {"options": report["run"].get("options")}
    if pictures is not None:
        title = f"{case.name}, {variant.name}: dashed is the reference"
        path = pictures / f"{case.name}-{variant.name.replace(' ', '-')}.png"
        write_png(path, render(variant.image, labels, model, title, variant.reference.array))
        result["picture"] = path.name
    return result
