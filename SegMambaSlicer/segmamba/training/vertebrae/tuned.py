"""A fine-tuned vertebra model: measured by the whole pipeline on held-out cases, and packed as a model of the list."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import segmamba
from segmamba.errors import OutputError
from segmamba.evaluation.cases import on_grid
from segmamba.evaluation.names import BODIES, WHOLE
from segmamba.evaluation.run import run_model
from segmamba.evaluation.scores import ScoringConfig, score
from segmamba.io.read import read_volume
from segmamba.io.volume import Volume
from segmamba.labels import Code, Label
from segmamba.models.library import DESCRIPTION
from segmamba.models.manifest import SCHEMA_VERSION, Model
from segmamba.reporting.preview import compose, draw, write_png
from segmamba.request import Options
from segmamba.training.dataset.layout import Case
from segmamba.training.dataset.package import (
    CARD,
    FAILURES,
    MODEL_FOLDER,
    WEIGHTS,
    accuracy_lines,
    card_text,
    dice_rows,
    file_entry,
    held_out,
    limits_of,
    model_id,
)
from segmamba.training.dataset.results import FoldResults, read_all_results, write_results
from segmamba.training.dataset.splits import Split
from segmamba.training.dataset.start import BEFORE, Start
from segmamba.training.dataset.train import Order
from segmamba.training.dataset.validation import mean_dice
from segmamba.training.losses import UNKNOWN
from segmamba.training.vertebrae.tuning_plan import TuningPlan, read_levels
from segmamba.utils.atomic import atomic_write
from segmamba.utils.hashing import file_sha256
from segmamba.utils.words import counted

# Both stages in one file, beside the folders of their trainings.
MERGED = "weights.safetensors"
HOW = "by both stages with all post-processing, on the images' own grids"


@dataclass(frozen=True)
class Measured:
    """What a model reached on the cases that are held out: Dice, levels, and a picture of the worst one (PNG)."""

    scores: Mapping[str, Mapping[str, float]]
    levels: Mapping[str, Mapping[str, int]]
    worst: bytes | None = None


def write_tuned(plan: TuningPlan, start: Start, folder: Path, split: Split, order: Order) -> Path:
    """Measure a fine-tuned model and the one that it came from, and write the folder of the new one.

    Parameters
    ----------
    plan : TuningPlan
    start : Start
    folder : Path
        Of the fold; holds `MERGED`.
    split : Split
    order : Order

    Returns
    -------
    Path
        The model's description.

    Raises
    ------
    InputError, DeviceError
        A held-out case cannot be segmented.
    OutputError
        The folder cannot be written.
    """
    target = folder / MODEL_FOLDER
    try:
        target.mkdir(exist_ok=True)
        shutil.copyfile(folder / MERGED, target / WEIGHTS)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror}): free some space.") from error
    before = _before(plan, start, folder, split.validation, order.device)
    ours = replace(
        start.model, title=f"{plan.dataset}, from '{start.model.id}'", version=file_sha256(target / WEIGHTS)[:8]
    )
    after = measure(split.validation, plan, ours, target / WEIGHTS, order.device)
    scored = mean_dice(before) if split.validation else None
    results = FoldResults(
        order.fold, len(split.training), after.scores, scored, plan.base_model, after.levels if after.scores else None
    )
    write_results(results, folder)
    if after.worst is not None:
        write_png(target / FAILURES, after.worst)
    name = model_id(plan.dataset, order.fold)
    folds = read_all_results(order.output)
    entry = _entry(name, plan, start.model, results, folds, target / WEIGHTS)
    label_set = [_as_json(label) for label in start.model.labels]
    content = {"schema_version": SCHEMA_VERSION, "label_sets": {name: label_set}, "models": [entry]}
    with atomic_write(target / CARD, (".md",)) as file:
        file.write_text(_card(entry, plan, results, folds), encoding="utf-8")
    with atomic_write(target / DESCRIPTION, (".json",)) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return target / DESCRIPTION


def measure(cases: Sequence[Case], plan: TuningPlan, model: Model, weights: Path, device: str) -> Measured:
    """Segment cases with both stages and compare each labelled vertebra; what nobody labelled does not count.

    Raises
    ------
    InputError, DeviceError
        A case cannot be read or segmented.
    """
    predict = run_model(model, Options(device=device, modality=plan.modality), weights)
    config = ScoringConfig(BODIES if plan.bodies else WHOLE, {label.value: label.name for label in model.labels})
    scores: dict[str, dict[str, float]] = {}
    levels: dict[str, dict[str, int]] = {}
    lowest, worst = 2.0, None
    for case in cases:
        image = read_volume(case.images[0])
        reference = on_grid(read_levels(case, plan), image.geometry)[0]
        known = np.where(reference.array == UNKNOWN, 0, reference.array)
        if not known.any():
            continue
        found = predict(case.name, image)[0].array
        compared = np.where(reference.array == UNKNOWN, 0, found)
        rows = score(compared, Volume(known, image.geometry), config, {})["structures"]
        scores[case.name] = {row["name"]: round(row["dice"], 4) for row in rows}
        numbered = [row["identified"] for row in rows if row["identified"] is not None]
        levels[case.name] = {"identified": sum(map(bool, numbered)), "of": len(numbered)}
        mean = sum(scores[case.name].values()) / len(rows)
        if mean < lowest:
            lowest = mean
            title = f"{case.name}, Dice {mean:.2f}: dashed is the reference"
            worst = draw(compose(image, found, model, title, known))
    return Measured(scores, levels, worst)


def _before(
    plan: TuningPlan, start: Start, folder: Path, cases: Sequence[Case], device: str
) -> dict[str, dict[str, float]]:
    """Return what the model reached before; it is measured once, and kept in ``folder``."""
    kept = folder / BEFORE
    if not kept.is_file():
        found = measure(cases, plan, start.model, start.weights, device)
        with atomic_write(kept, (".json",)) as file:
            content = {"mean_dice": mean_dice(found.scores), "scores": found.scores, "levels": found.levels}
            file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    scores: dict[str, dict[str, float]] = json.loads(kept.read_text(encoding="utf-8"))["scores"]
    return scores


def _entry(
    name: str, plan: TuningPlan, model: Model, results: FoldResults, folds: list[FoldResults], weights: Path
) -> dict[str, Any]:
    """Return the entry of the model that it came from, with what is new."""
    file = file_entry(weights)
    base = {key: value for key, value in model.entry.items() if key not in ("compared", "limits")}
    parts = "vertebral bodies" if plan.bodies else "vertebrae"
    entry = base | {
        "id": name,
        "version": file["sha256"][:8],
        "title": f"{plan.dataset}: {parts} on {plan.modality} ('{model.id}', trained on here)",
        "modalities": [plan.modality],
        "label_set": name,
        "file": file,
        "origin": f"'{model.id}' {model.version}, trained on {plan.dataset}, fold {results.fold}, with SegMambaSlicer "
        f"{segmamba.__version__}",
        "training_data": f"{model.entry.get('training_data') or model.id}; then {counted(results.training, 'case')} of "
        f"{plan.dataset} ({parts}, {plan.modality})",
        "accuracy": _accuracy(plan, results),
        "limits": [*limits_of(results, folds), *_limits(plan, model), *model.entry.get("limits", ())],
    }
    if results.before is not None and results.scores:
        entry["compared"] = {"model": results.base, "before": results.before, "after": results.mean}
    return entry


def _limits(plan: TuningPlan, model: Model) -> list[str]:
    others = [modality for modality in model.modalities if modality != plan.modality]
    lost = "On levels that these cases do not show it may have become worse, and that was not measured."
    return [lost, *(f"It is for {plan.modality} only: for {other}, use '{model.id}'." for other in others)]


def _accuracy(plan: TuningPlan, results: FoldResults) -> list[dict[str, Any]]:
    data = held_out(plan.dataset, results)
    command = f"segmamba train {plan.dataset} --from {plan.base_model} --fold {results.fold}"
    rows = dice_rows(results, data, command)
    counts = (results.levels or {}).values()
    of = sum(count["of"] for count in counts)
    if of:
        right = sum(count["identified"] for count in counts) / of
        rows.append({"data": data, "measure": "identification rate", "value": round(right, 3), "command": command})
    return rows


def _card(entry: Mapping[str, Any], plan: TuningPlan, results: FoldResults, folds: list[FoldResults]) -> str:
    recipes = [
        f"**{stage.capitalize()} stage**: {counted(recipe['iterations'], 'iteration')} of "
        f"{counted(recipe['batch'], 'sample')}, learning rate {recipe['learning_rate']:g}."
        for stage, recipe in plan.stages.items()
    ]
    counts = (results.levels or {}).values()
    right, of = (sum(count[key] for count in counts) for key in ("identified", "of"))
    levels = [f"Right levels: {right} of {of}."] if of else []
    compared = []
    if "compared" in entry:
        before, after = entry["compared"]["before"], entry["compared"]["after"]
        compared = [f"Mean Dice on these cases: {after:.3f}; '{plan.base_model}' before: {before:.3f}."]
    facts = [f"**Data**: {entry['training_data']}.", *recipes]
    accuracy = accuracy_lines(results.fold, folds, HOW)
    return card_text(entry, facts, [*accuracy, *(line for text in (*compared, *levels) for line in (text, ""))])


def _as_json(label: Label) -> dict[str, Any]:
    def code(value: Code) -> list[str]:
        return [*asdict(value).values()]

    entry: dict[str, Any] = {"value": label.value, "name": label.name, "color": list(label.color)}
    entry |= {"category": code(label.category), "type": code(label.type)}
    return entry | {"region": code(label.region) if label.region else None}
