"""From the folder of a data set to trained weights: ``segmamba train DATASET``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from segmamba.errors import InputError
from segmamba.inference.device import choose_device
from segmamba.training.dataset.cache import make_folder, read_case
from segmamba.training.dataset.checks import notes
from segmamba.training.dataset.fingerprint import take_fingerprint
from segmamba.training.dataset.gallery import draw_cases, draw_worst
from segmamba.training.dataset.layout import Case, Dataset
from segmamba.training.dataset.package import write_model
from segmamba.training.dataset.partial import drawn_sets
from segmamba.training.dataset.plan import Plan, read_plan, write_plan
from segmamba.training.dataset.planning import as_in_paper, make_plan, network_of
from segmamba.training.dataset.prepare import fill_cache
from segmamba.training.dataset.read import read_dataset
from segmamba.training.dataset.results import FoldResults, read_all_results, write_results
from segmamba.training.dataset.splits import Split, make_splits
from segmamba.training.dataset.start import dice_before, find_start, plan_from, write_start
from segmamba.training.dataset.task import DatasetTask
from segmamba.training.loop import train

ALL = "all"
PLAN = "plan.json"
CASES = "cases.png"
PAPER = "paper"
# As good as the others on lumbar MR, in half the memory and time of the released one (Docs/experiments/lumbar-mr.md).
DEFAULT = "segmamba-v2-paper"


@dataclass(frozen=True)
class Order:
    """What is to be trained.

    Attributes
    ----------
    dataset, output : Path
        Folders. In ``output`` are the plan, the cache, and a folder for each fold.
    architecture : str or None
        A key of `segmamba.training.dataset.planning.NETWORKS`; None is the plan's, or for a new one `DEFAULT`.
    fold : str
        A number from 0, or "all": nothing is held out.
    minutes : float or None
        All the time for steps, over which the learning rate falls to zero; None: as many iterations as planned.
    device : str
        "auto", "cpu", "cuda", ...
    base_model : str or None
        Id of a model in the list that the training begins from, instead of random weights.
    recipe : str
        "ours", or "paper": SegMamba-V2's patch, batch, epochs and optimizer.
    seed : int or None
        Of the first weights and of the samples; None is the plan's.
    bodies : bool
        For a model of vertebrae: only their bodies are labelled.
    plan_only : bool
        Nothing is to be trained yet: whether there is such a fold matters later.
    """

    dataset: Path
    output: Path
    architecture: str | None = None
    fold: str = "0"
    minutes: float | None = None
    device: str = "auto"
    base_model: str | None = None
    recipe: str = "ours"
    seed: int | None = None
    bodies: bool = False
    plan_only: bool = False


def plan_training(order: Order) -> Plan:
    """Return the plan of a run: the one in its folder, or a new one, which is written there and may be edited.

    Raises
    ------
    InputError, ModelError, DeviceError
        The data set cannot be trained on, the architecture is unknown, or the GPU has too little memory.
    OutputError
        The plan cannot be written.
    """
    path = order.output / PLAN
    if path.is_file():
        plan = read_plan(path)
        if order.architecture is not None and network_of(order.architecture) != plan.recipe.architecture:
            raise InputError(f"{path} is for another architecture: delete it, or choose another output folder.")
        check_base_model(order, plan.base_model, path)
        return plan
    check_one_process(path)
    if order.base_model and order.architecture:
        raise InputError("A training that begins from a model has that model's architecture: leave out --architecture.")
    if order.bodies:
        raise InputError("--bodies is for training from a model of vertebrae (--from spinemamba): leave it out.")
    start = find_start(order.base_model) if order.base_model else None
    dataset = read_dataset(order.dataset)
    check_fold(order, dataset)
    fingerprint = take_fingerprint(dataset)
    for note in notes(dataset, fingerprint.spacings, fingerprint.voxels, fingerprint.cases_with):
        print(f"Note: {note}", file=sys.stderr)
    plan = make_plan(dataset, fingerprint, order.architecture or DEFAULT, _free_memory(order.device))
    if order.recipe == PAPER:
        plan = as_in_paper(plan)
    if order.seed is not None:
        plan = replace(plan, recipe=replace(plan.recipe, seed=order.seed))
    make_folder(order.output)
    if start is not None:
        plan = plan_from(plan, start)
        write_start(plan, start, order.output)
    write_plan(plan, path)
    return read_plan(path)


def check_base_model(order: Order, planned: str | None, path: Path) -> None:
    """Raise InputError if an order names another model to begin from than the plan at ``path``."""
    if order.base_model not in (None, planned):
        raise InputError(f"{path} does not begin from '{order.base_model}': delete it, or choose another folder.")


def check_fold(order: Order, dataset: Dataset) -> None:
    """Raise InputError if a training would end for want of its fold; its images are read later, which takes a while."""
    if not order.plan_only:
        choose_split(dataset, order.fold)


def check_one_process(path: Path) -> None:
    """Raise InputError if several processes are about to make a plan each."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"There is no plan {path}: make it first, without torchrun and with --plan-only.")


def train_on_dataset(order: Order) -> Path:
    """Train as the plan in the output folder says, and return the description of the model that comes out.

    Raises
    ------
    InputError, ModelError, DeviceError, OutputError
        See `plan_training` and `segmamba.training.loop.train`.
    """
    plan = plan_training(order)
    dataset = read_dataset(order.dataset)
    _check_labels(plan, dataset, order)
    split = choose_split(dataset, order.fold)
    cache = order.output / "cache" / fingerprint_of_files(plan.data(), dataset.cases)
    sets = drawn_sets(dataset.cases, plan.classes)
    fill_cache([*split.training, *split.validation], plan, cache, sets)
    training, validation = (
        [read_case(cache, case.name) for case in part] for part in (split.training, split.validation)
    )
    folder = order.output.absolute() / f"fold-{order.fold}"
    minutes = plan.recipe.minutes if order.minutes is None else order.minutes
    seed = plan.recipe.seed if order.seed is None else order.seed
    recipe = replace(plan.recipe, folder=str(folder), minutes=minutes, device=order.device, seed=seed)
    plan = replace(plan, recipe=recipe)
    main_process = int(os.environ.get("RANK", "0")) == 0
    if main_process:
        make_folder(folder)
        draw_cases(training + validation, plan, order.output / CASES)
    before = dice_before(plan, validation, folder) if main_process else None
    task = DatasetTask(plan, training, validation, sets)
    weights = train(recipe, task=task)
    if not main_process:
        return weights
    results = FoldResults(order.fold, len(training), task.scores, before, plan.base_model)
    write_results(results, folder)
    if validation:
        draw_worst(validation, plan, results, weights)
    return write_model(plan, results, read_all_results(order.output), weights)


def choose_split(dataset: Dataset, fold: str) -> Split:
    """Return the cases of a fold. Raises InputError where there is none of that number."""
    if fold == ALL:
        return Split(dataset.cases, ())
    splits = make_splits(dataset)
    if not (fold.isdecimal() and int(fold) < len(splits)):
        raise InputError(f"There is no fold {fold}: choose 0 to {len(splits) - 1}, or all.")
    return splits[int(fold)]


def fingerprint_of_files(data: Mapping[str, Any], cases: Sequence[Case]) -> str:
    """Return what changes with all that cached cases are made from: a cache is never used for something else."""
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for c in cases for path in (*c.images, c.labels)]
    drawn = [case.drawn for case in cases]
    content = json.dumps(
        [data, files, drawn] if any(drawn) else [data, files], sort_keys=True, default=dataclasses.asdict
    )
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _check_labels(plan: Plan, dataset: Dataset, order: Order) -> None:
    ours = (plan.channels, dict(plan.labels), plan.ignore, dict(plan.regions))
    if ours != (dataset.channels, dict(dataset.labels), dataset.ignore, dict(dataset.regions)):
        raise InputError(f"{order.output / PLAN} has other channels or labels than {order.dataset}: delete it.")


def _free_memory(name: str) -> int | None:
    """Return the free bytes of a GPU; None for another device."""
    device = torch.device(choose_device("cpu" if name == "auto" and not torch.cuda.is_available() else name).name)
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
