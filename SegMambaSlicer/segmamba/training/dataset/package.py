"""The result of a training as a model: weights, the description that the software's list takes, a card, pictures.

``RUN/fold-N/model`` is all that ``segmamba models import`` needs.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import segmamba
from segmamba.errors import OutputError
from segmamba.models.decode import encode_label
from segmamba.models.library import DESCRIPTION
from segmamba.models.manifest import SCHEMA_VERSION, load_manifest
from segmamba.networks.checkpoint import load_state_dict
from segmamba.training.dataset.pictures import color_of
from segmamba.training.dataset.plan import Plan, modality_of
from segmamba.training.dataset.results import FoldResults, table
from segmamba.utils.atomic import atomic_write
from segmamba.utils.hashing import file_sha256
from segmamba.utils.words import counted

MODEL_FOLDER = "model"
CARD = "card.md"
FAILURES = "worst.png"
WEIGHTS = "weights.safetensors"
STRUCTURE = ["SCT", "123037004", "Anatomical Structure"]
# DICOM lets anybody use a scheme that begins with 99; a code has at most 16 characters.
OWN_SCHEME, CODE_LENGTH = "99SEGMAMBA", 16
OVERLAP = 0.5


def write_model(
    plan: Plan, results: FoldResults, all_results: list[FoldResults], weights: Path, memory: float | None = None
) -> Path:
    """Write the folder of a trained model beside its weights, and return its description.

    Parameters
    ----------
    plan : Plan
    results, all_results : FoldResults
        Of the fold that the weights are from; of all folds of the run that are finished.
    weights : Path
        The averaged weights, in the fold's folder.
    memory : float, optional
        GiB of GPU memory that a window took at its peak, if that was measured.

    Raises
    ------
    OutputError
        The folder cannot be written.
    ModelError
        The weights are damaged.
    """
    folder = weights.parent / MODEL_FOLDER
    try:
        folder.mkdir(exist_ok=True)
        shutil.copyfile(weights, folder / WEIGHTS)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}): free some space.") from error
    name = model_id(plan.dataset, results.fold)
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "label_sets": {name: label_set(plan)},
        "models": [_entry(name, plan, results, all_results, folder / WEIGHTS, memory)],
    }
    with atomic_write(folder / CARD, (".md",)) as file:
        file.write_text(card(content["models"][0], plan, results.fold, all_results), encoding="utf-8")
    with atomic_write(folder / DESCRIPTION, (".json",)) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder / DESCRIPTION


def model_id(dataset: str, fold: str) -> str:
    """Return a name for the list of models: of the data set and, if one was held out, of the fold."""
    name = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "own"
    return f"own-{name}" if fold == "all" else f"own-{name}-fold-{fold}"


def label_set(plan: Plan) -> list[dict[str, Any]]:
    """Return the structures as a manifest describes them; those that the software knows by name with their codes.

    What a result shows of a region is what no later one lies over, and it is named so.
    """
    labels = {_rest_of(name, plan.regions): value for name, value in plan.labels.items()}
    known = {label.name.casefold(): label for model in load_manifest().models for label in model.labels}
    entries = []
    for number, (name, value) in enumerate(labels.items(), start=1):
        code = re.sub(r"[^A-Za-z0-9]+", "", name)[: CODE_LENGTH - 4] + f"-{value}"
        entry: dict[str, Any] = {
            "value": value,
            "name": name,
            "color": [round(255 * part) for part in color_of(number)],
            "category": STRUCTURE,
            "type": [OWN_SCHEME, code, name],
        }
        same = known.get(name.casefold())
        if same is not None:
            entry = encode_label(same) | {"value": value, "name": name}
        entries.append(entry)
    return entries


def file_entry(weights: Path) -> dict[str, Any]:
    """Return a manifest's entry of weights that were trained here."""
    return {
        "name": WEIGHTS,
        "size": weights.stat().st_size,
        "sha256": file_sha256(weights),
        "bundled": None,
        "urls": [],
        "note": None,
    }


def _entry(
    name: str,
    plan: Plan,
    results: FoldResults,
    all_results: list[FoldResults],
    weights: Path,
    memory: float | None,
) -> dict[str, Any]:
    parameters = sum(value.numel() for value in load_state_dict(weights).values())
    file = file_entry(weights)
    structures = ", ".join(list(plan.labels)[:3]) + (", ..." if len(plan.labels) > 3 else "")
    entry = {
        "id": name,
        "version": file["sha256"][:8],
        "title": f"{plan.dataset}: {structures} (trained here)",
        "task": name,
        "architecture": plan.recipe.architecture,
        "arguments": dict(plan.recipe.arguments),
        "modalities": sorted({modality_of(channel) or "MR" for channel in plan.channels}),
        "channels": list(plan.channels),
        "label_set": name,
        "channel_values": [*([] if plan.regions else [0]), *plan.labels.values()],
        "preprocessing": _preprocessing(plan),
        "patch": list(plan.patch),
        "overlap": OVERLAP,
        "flip_axes": list(plan.flip_axes),
        "postprocessing": "none",
        "parameters": parameters,
        "memory_gib": memory,
        "main_memory_gib": None,
        "file": file,
        "origin": f"trained on {plan.dataset}, fold {results.fold}, with SegMambaSlicer {segmamba.__version__}",
        "licence": None,
        "citation": None,
        "training_data": f"{counted(results.training, 'case')} of {plan.dataset}",
        "accuracy": _accuracy(plan, results),
        "limits": limits_of(results, all_results),
    }
    if results.before is not None and results.scores:
        entry["compared"] = {"model": results.base, "before": results.before, "after": results.mean}
    if plan.input_channels:
        entry["input_channels"] = [asdict(channel) for channel in plan.input_channels]
    if plan.regions:
        entry["output"] = "regions"
        entry["regions"] = {name: list(values) for name, values in plan.regions.items()}
    return entry


def _rest_of(name: str, regions: Mapping[str, tuple[int, ...]]) -> str:
    """Return what a result's structure is called: of a region with others over it, what it is without those."""
    later = list(regions)[list(regions).index(name) + 1 :] if regions else []
    over = next((other for other in later if set(regions[other]) & set(regions[name])), None)
    return f"{name} without {over}" if over else name


def _preprocessing(plan: Plan) -> dict[str, Any]:
    whole = plan.preprocessing
    return {
        "orientation": whole.orientation,
        "spacing_mm": list(whole.spacing),
        "interpolation": whole.interpolation,
        "crop_threshold": whole.crop_threshold,
        "crop_nonzero": whole.crop_nonzero,
        "fill_value": whole.fill_value,
        "normalization": [asdict(channel) for channel in plan.normalization],
        "estimated": None,
    }


def _accuracy(plan: Plan, results: FoldResults) -> list[dict[str, Any]]:
    data = f"{held_out(plan.dataset, results)}, on the model's grid"
    return dice_rows(results, data, f"segmamba train {plan.dataset} --fold {results.fold}")


def held_out(dataset: str, results: FoldResults) -> str:
    """Return what a fold was measured on, for the reader."""
    cases = counted(len(results.scores), "held-out case")
    return f"{cases} of {dataset} (fold {results.fold})"


def dice_rows(results: FoldResults, data: str, command: str) -> list[dict[str, Any]]:
    """Return a manifest's rows of the mean Dice of each structure, measured on ``data`` by ``command``."""
    return [
        {"data": data, "measure": f"Dice, {name}", "value": round(sum(values) / len(values), 3), "command": command}
        for name, values in results.by_structure().items()
    ]


def limits_of(results: FoldResults, all_results: list[FoldResults]) -> list[str]:
    """Return what has to be said of a model beside its figures, a sentence each."""
    limits = [
        f"It has seen {counted(results.training, 'case')} of one data set: on images of other scanners, protocols or "
        "patients its accuracy is unknown."
    ]
    if results.scores:
        worst = min(results.scores, key=lambda case: min(results.scores[case].values(), default=1.0))
        low = min(results.scores[worst].values(), default=1.0)
        limits.append(f"On the held-out cases the worst Dice is {low:.2f} ({worst}).")
    elif any(other.scores for other in all_results):
        limits.append("No case was held out: see the card for the accuracy of the other folds of this training.")
    else:
        limits.append("No case was held out: its accuracy was never measured.")
    if results.before is not None and results.mean < results.before:
        limits.append(
            f"It does worse on its validation cases than '{results.base}', which it was trained from: Dice "
            f"{results.mean:.3f}, before {results.before:.3f}."
        )
    return limits


def card(entry: Mapping[str, Any], plan: Plan, fold: str, folds: list[FoldResults]) -> str:
    """Return the model's card as Markdown: data, plan, accuracy by fold and limits."""
    x, y, z = plan.spacing
    size = " x ".join(map(str, plan.patch))
    structures = counted(len(plan.labels), "structure")
    facts = [
        f"**Data**: {entry['training_data']}; {structures}; images: {', '.join(plan.channels)}.",
        f"**Network**: {plan.recipe.architecture}, {entry['parameters'] / 1e6:.1f} million parameters.",
        f"**Plan**: voxels of {x:g} x {y:g} x {z:g} mm, patch {size} (z, y, x), batch {plan.recipe.batch}, "
        f"{plan.recipe.optimizer}, learning rate {plan.recipe.learning_rate:g}.",
    ]
    return card_text(entry, facts, accuracy_lines(fold, folds, "on the model's own grid, without post-processing"))


def card_text(entry: Mapping[str, Any], facts: Sequence[str], accuracy: Sequence[str]) -> str:
    """Return a model's card: its manifest entry's title, weights and limits around facts and lines on accuracy."""
    lines = [
        f"# {entry['title']}",
        "",
        "Research software, not a medical device.",
        "",
        *(f"- {fact}" for fact in facts),
        f"- **Weights**: {entry['file']['name']}, SHA-256 {entry['file']['sha256']}.",
        "",
        *accuracy,
        "## Limitations",
        "",
        *(f"- {limit}" for limit in entry["limits"]),
        "",
    ]
    return "\n".join(lines)


def accuracy_lines(fold: str, folds: list[FoldResults], how: str) -> list[str]:
    """Return a card's section on the accuracy of all finished folds; ``how`` ends "On held-out cases, ..."."""
    numbers = [results.fold for results in folds if results.scores]
    lines = ["## Accuracy", ""]
    if numbers:
        head = ["structure", "cases", "mean Dice", "worst Dice", *(f"fold {fold}" for fold in numbers)]
        lines += [_row(head), _row(["---"] * len(head))]
        for row in table(folds):
            means = [f"{row[fold]:.3f}" if fold in row else "" for fold in numbers]
            lines.append(
                _row([row["structure"], str(row["cases"]), f"{row['mean']:.3f}", f"{row['worst']:.3f}", *means])
            )
        lines += [
            "",
            f"On held-out cases, {how}. Each fold is another network; these weights are of fold {fold}.",
            "",
        ]
    if fold != "all":
        lines += [f"The worst held-out cases: {FAILURES}.", ""]
    return lines


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
