"""Fine-tuning of a vertebra model with two stages on labelled cases: ``segmamba train FOLDER --from spinemamba``.

Few cases must not make the model forget the rest of the column. So the rate is a third of the one that it was last
trained with, the training is short, no sample comes twice (each is deformed and scanned again, as in the first
training), and what a case does not show or nobody labelled counts for nothing. The other modality is forgotten all the
same (Docs/experiments/fine-tuning.md), so the new model is for one modality.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from segmamba.errors import InputError
from segmamba.io.modality import check_modality
from segmamba.io.read import read_volume
from segmamba.models.library import load_models
from segmamba.models.manifest import Model
from segmamba.networks.checkpoint import load_state_dict, save_safetensors
from segmamba.spine.levels import level_name
from segmamba.training import loop
from segmamba.training.config import Config
from segmamba.training.dataset.cache import make_folder
from segmamba.training.dataset.checks import notes
from segmamba.training.dataset.fingerprint import take_fingerprint
from segmamba.training.dataset.layout import Case
from segmamba.training.dataset.pictures import Picture, draw_page, picture_of
from segmamba.training.dataset.plan import IGNORED
from segmamba.training.dataset.read import read_dataset
from segmamba.training.dataset.start import Start, find_start
from segmamba.training.dataset.train import (
    CASES,
    PLAN,
    Order,
    check_base_model,
    check_fold,
    check_one_process,
    choose_split,
    fingerprint_of_files,
)
from segmamba.training.tasks import SyntheticTask
from segmamba.training.vertebrae.exams import SPACING, write_exam
from segmamba.training.vertebrae.labelled import known_levels, labelled_exam, storable
from segmamba.training.vertebrae.merge_stages import merge
from segmamba.training.vertebrae.tuned import MERGED, write_tuned
from segmamba.training.vertebrae.tuning_plan import (
    COARSE,
    FINE,
    TuningPlan,
    make_tuning_plan,
    notes_on,
    read_levels,
    read_tuning_plan,
)
from segmamba.utils.atomic import atomic_write
from segmamba.utils.parallel import at_once
from segmamba.utils.words import counted

STAGE_ARCHITECTURE = "spine_mamba"
# Cases on the page of pictures.
SHOWN = 12
# The axis of the largest spacing is the one that pictures are cut across: here the one from right to left.
CUT_SAGITTALLY = (SPACING, SPACING, 1.001 * SPACING)


class TuningTask(SyntheticTask):
    """Samples of real exams only, at a rate that falls over iterations or minutes."""

    @property
    def records(self) -> bool:
        return True


def is_tuning(order: Order) -> bool:
    """Whether an order is for this module: its plan, or else its model, has two stages. Raises ModelError."""
    path = order.output / PLAN
    if path.is_file():
        try:
            return "stages" in json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            return False  # what reads plans says what is wrong with it
    if order.base_model is None:
        return False
    return load_models().model(order.base_model).fine is not None


def plan_tuning(order: Order) -> TuningPlan:
    """Return the plan of a run: the one in its folder, or a new one, which is written there and may be edited.

    Raises
    ------
    InputError, ModelError, DeviceError
        The data set or the model cannot be trained with.
    OutputError
        The plan cannot be written.
    """
    if order.architecture or order.recipe != "ours":
        raise InputError("A model with two stages keeps its networks: leave out --architecture and --recipe.")
    path = order.output / PLAN
    if path.is_file():
        plan = read_tuning_plan(path)
        check_base_model(order, plan.base_model, path)
        return plan
    check_one_process(path)
    assert order.base_model is not None
    start = find_start(order.base_model)
    dataset = read_dataset(order.dataset)
    check_fold(order, dataset)
    plan = make_tuning_plan(dataset, start.model, order.bodies)
    fingerprint = take_fingerprint(dataset)
    for note in notes(dataset, fingerprint.spacings, fingerprint.voxels, fingerprint.cases_with) + notes_on(plan):
        print(f"Note: {note}", file=sys.stderr)
    make_folder(order.output)
    write_starts(start, order.output)
    with atomic_write(path, (".json",)) as file:
        file.write_text(json.dumps(asdict(plan), indent=2) + "\n", encoding="utf-8")
    return plan


def tune(order: Order) -> Path:
    """Train both stages as the plan says, and return the description of the model that comes out.

    Raises
    ------
    InputError, ModelError, DeviceError, OutputError
        See `plan_tuning` and `segmamba.training.loop.train`.
    """
    plan = plan_tuning(order)
    start = find_start(plan.base_model)
    dataset = read_dataset(order.dataset)
    if (dict(plan.labels), plan.ignore) != (dict(dataset.labels), dataset.ignore):
        raise InputError(f"{order.output / PLAN} has other labels than {order.dataset}: delete it.")
    split = choose_split(dataset, order.fold)
    exams = Path("cache") / fingerprint_of_files(plan.data(), split.training)
    at_once(lambda case: _check_intensities(case, plan, start.model), (*split.training, *split.validation))
    pictures = fill_exams(split.training, plan, order.output / exams)
    folder = order.output.absolute() / f"fold-{order.fold}"
    make_folder(folder)
    main_process = int(os.environ.get("RANK", "0")) == 0
    if main_process and pictures and not (order.output / CASES).is_file():
        title = f"{plan.dataset}: {counted(len(pictures), 'case')}; look for labels that do not fit their vertebra"
        names = [level_name(level) for level in known_levels(plan.levels)]
        draw_page(pictures, names, order.output / CASES, title)
    weights = []
    for stage in (COARSE, FINE):
        config = stage_config(plan, stage, start, order, exams)
        weights.append(loop.train(config, task=TuningTask(config)))
    if not main_process:
        return weights[0]
    coarse, fine = weights
    merge(coarse, fine, folder / MERGED)
    return write_tuned(plan, start, folder, split, order)


def stage_config(plan: TuningPlan, stage: str, start: Start, order: Order, exams: Path) -> Config:
    """Return the configuration of one stage's training.

    Raises
    ------
    InputError
        The plan has a value that cannot be.
    """
    model = start.model
    assert model.fine is not None
    spacing = model.fine.spacing if stage == FINE else model.preprocessing.spacing
    content: dict[str, Any] = {"anatomies": "", "exam_share": 1.0, **plan.stages[stage]}
    if order.minutes is not None:
        content["minutes"] = order.minutes / 2
    if order.seed is not None:
        content["seed"] = order.seed
    try:
        content["patch"] = tuple(content["patch"])
        return Config(
            **content,
            architecture=STAGE_ARCHITECTURE,
            arguments=model.arguments[stage],
            channels=model.preprocessing.normalization,
            mr_channels=model.mr_preprocessing.normalization if model.mr_preprocessing else (),
            spacing=spacing[0],
            exams=(exams / "*.npz").as_posix(),
            folder=f"fold-{order.fold}/{stage}",
            start_from=_start_name(stage),
            device=order.device,
            base=order.output.absolute(),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{order.output / PLAN} is not valid ({error}): correct it, or delete it.") from error


def write_starts(start: Start, folder: Path) -> None:
    """Write the weights that each stage begins with. Raises ModelError or OutputError."""
    state = load_state_dict(start.weights)
    for stage in (COARSE, FINE):
        prefix = f"{stage}."
        part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        with atomic_write(folder / _start_name(stage), (".safetensors",)) as file:
            save_safetensors(part, file, metadata={"from": start.model.id})


def fill_exams(cases: tuple[Case, ...], plan: TuningPlan, folder: Path) -> list[Picture]:
    """Prepare the cases that are not in a folder of exams yet, and return pictures of the first of these.

    Raises
    ------
    InputError
        A case cannot be trained on; the sentence names it.
    OutputError
        An exam cannot be written.
    """
    make_folder(folder)
    missing = [case for case in cases if not (folder / f"{case.name}.npz").is_file()]

    def add(case: Case) -> Picture:
        try:
            volume = storable(read_volume(case.images[0]), plan.modality)
            image, codes, centres = labelled_exam(volume, read_levels(case, plan), plan.bodies)
        except InputError as error:
            raise InputError(f"{case.labels} cannot be trained on ({error}): leave the case out.") from error
        write_exam(folder / f"{case.name}.npz", image, codes, centres, plan.modality)
        return picture_of(case.name, image, _as_classes(codes, plan), CUT_SAGITTALLY, "LPS")

    return list(at_once(add, missing).values())[:SHOWN]


def _check_intensities(case: Case, plan: TuningPlan, model: Model) -> None:
    """Refuse what cannot be CT in Hounsfield units before it is trained on. Raises InputError."""
    try:
        check_modality(read_volume(case.images[0]), model, plan.modality)
    except InputError as error:
        raise InputError(f"{case.images[0]}: {error}") from error


def _as_classes(codes: np.ndarray, plan: TuningPlan) -> np.ndarray:
    """Return codes as numbers of the plan's levels, for pictures; what is unknown is `IGNORED`."""
    table = np.full(256, IGNORED, np.uint8)
    table[0] = 0
    for number, level in enumerate(known_levels(plan.levels), start=1):
        table[level] = number
    return table[codes]


def _start_name(stage: str) -> str:
    return f"start-{stage}.safetensors"
