"""The plan of fine-tuning a vertebra model: what a data set's labels are taken for, and each stage's recipe."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segmamba.errors import InputError, ModelError
from segmamba.io.modality import CT, MR
from segmamba.io.read import read_image
from segmamba.io.volume import Volume
from segmamba.models.manifest import Model
from segmamba.training.dataset.layout import Case, Dataset
from segmamba.training.losses import UNKNOWN
from segmamba.training.synthesis.tissue_labels import VERTEBRAE
from segmamba.training.vertebrae.labelled import WHOLE_PROPORTION, are_bodies, as_levels, levels_of, proportions
from segmamba.utils.arrays import as_labels
from segmamba.utils.parallel import at_once

LARGEST_VALUE = 254
# Cases whose vertebrae are measured, at most about twice as many.
MEASURED = 10
COARSE, FINE = "coarse", "fine"
ARCHITECTURE = "spine_mamba_two_stage"
# The bundled model was last trained with 3e-4, over 15,000 iterations of images that never came twice.
RECIPE: Mapping[str, Any] = {
    "batch": 2,
    "iterations": 1500,
    "warmup": 50,
    "learning_rate": 1e-4,
    "weight_decay": 1e-2,
    "ema": 0.99,
    "log_every": 50,
    "checkpoint_every": 500,
    "seed": 0,
}


@dataclass(frozen=True)
class TuningPlan:
    """What a vertebra model is fine-tuned on, and how.

    Attributes
    ----------
    dataset : str
        Its name, for the reader.
    base_model : str
        Id of the model that the training begins from.
    modality : str
        "CT" or "MR".
    labels : mapping of str to int
        Structures and their values in the label maps.
    ignore : int or None
        The value of voxels that nobody has labelled.
    levels : mapping of str to int
        From `segmamba.training.vertebrae.labelled.levels_of`; other structures are background.
    bodies : bool
        Only vertebral bodies are labelled.
    stages : mapping of str to mapping
        For "coarse" and "fine" what `segmamba.training.config.Config` has beside the model's own values.
    """

    dataset: str
    base_model: str
    modality: str
    labels: Mapping[str, int]
    ignore: int | None
    levels: Mapping[str, int]
    bodies: bool
    stages: Mapping[str, Mapping[str, Any]]

    def data(self) -> dict[str, Any]:
        """Return all that prepared exams depend on, ready for JSON."""
        names = ("modality", "labels", "ignore", "levels", "bodies")
        return {name: getattr(self, name) for name in names}


def make_tuning_plan(dataset: Dataset, model: Model, bodies: bool) -> TuningPlan:
    """Return a new plan; ``bodies`` as in `TuningPlan`, where the labels' names and shapes do not say it anyway.

    Raises
    ------
    InputError
        The data set has several channels, or no vertebrae, or a label map cannot be read.
    ModelError
        The model is not one of vertebrae, or of another modality.
    """
    modality = CT if dataset.is_ct else MR
    if len(dataset.channels) != 1:
        channels = len(dataset.channels)
        raise InputError(f"'{model.id}' takes one image and the data set has {channels} channels: give one of them.")
    if model.architecture != ARCHITECTURE or (modality == MR and model.mr_preprocessing is None):
        raise ModelError(f"'{model.id}' cannot be trained on {modality}: start from another model, or train a new one.")
    levels = levels_of(dataset.labels)
    known = {name: level if level in model.channel_values else UNKNOWN for name, level in levels.items()}
    assert model.fine is not None
    patches = {COARSE: model.patch, FINE: model.fine.patch}
    stages = {stage: {**RECIPE, "patch": list(patch)} for stage, patch in patches.items()}
    name = dataset.folder.resolve().name
    plan = TuningPlan(name, model.id, modality, dict(dataset.labels), dataset.ignore, known, True, stages)
    return replace(plan, bodies=bodies or are_bodies(known) or _look_like_bodies(dataset.cases, plan))


def _look_like_bodies(cases: Sequence[Case], plan: TuningPlan) -> bool:
    """Whether the vertebrae of some cases are no deeper than bodies are."""
    measured = at_once(lambda case: proportions(read_levels(case, plan)), cases[:: 1 + len(cases) // MEASURED])
    found = [value for values in measured.values() for value in values]
    return bool(found) and statistics.median(found) < WHOLE_PROPORTION


def notes_on(plan: TuningPlan) -> list[str]:
    """Return what the owner of the data set should know of how it is understood, a sentence each."""
    found = [f"'{name}' is no vertebra: it counts as background." for name in plan.labels if name not in plan.levels]
    found += [
        f"'{name}' has no class in '{plan.base_model}': it counts as unknown."
        for name, level in plan.levels.items()
        if level > VERTEBRAE
    ]
    if plan.bodies:
        known = (
            "The labels are taken for vertebral bodies, by their names or shapes or --bodies: what lies behind them is"
        )
        return [*found, f"{known} unknown. If they are whole vertebrae, set bodies to false in plan.json."]
    return [*found, "The labels are taken for whole vertebrae: give --bodies if only their bodies are drawn."]


def read_tuning_plan(path: Path) -> TuningPlan:
    """Read a plan. Raises InputError where it has unknown or missing keys."""
    try:
        plan = TuningPlan(**json.loads(path.read_text(encoding="utf-8")))
        if sorted(plan.stages) != [COARSE, FINE] or plan.modality not in (CT, MR):
            raise ValueError("it needs the stages coarse and fine, and CT or MR")
        return plan
    except OSError as error:
        raise InputError(f"The training plan {path} cannot be read: check the path.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"The training plan {path} is not valid ({error}): correct it, or delete it.") from error


def read_levels(case: Case, plan: TuningPlan) -> Volume:
    """Return a case's labels as levels; see `segmamba.training.vertebrae.labelled.as_levels`. Raises InputError."""
    labels = read_image(case.labels)
    values = as_labels(labels.array, LARGEST_VALUE, str(case.labels))
    return Volume(as_levels(values, plan.labels, plan.levels, plan.ignore), labels.geometry)
