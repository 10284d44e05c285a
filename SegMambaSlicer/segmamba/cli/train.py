"""``segmamba train``: on synthetic images, as a configuration file says, or on the labelled images of a folder."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmamba.errors import InputError

if TYPE_CHECKING:
    from segmamba.training.dataset.plan import Plan

# Options that mean nothing beside a configuration file.
OF_DATASETS = ("architecture", "output", "from", "bodies", "recipe", "fold", "device", "seed", "plan_only")


def add_command(commands: Any) -> None:
    """Add ``train`` to the command line."""
    parser = commands.add_parser(
        "train",
        help="train a network on labelled or synthetic images",
        description="Train a network on a data set (a folder: nnU-Net v2, Medical Segmentation Decathlon, or pairs of "
        "an image and its labels), or on synthetic images (a configuration file).",
    )
    parser.add_argument("what", metavar="DATASET|CONFIG", type=Path, help="a folder of labelled images, or a JSON file")
    text = "stop after M minutes; the same command resumes. For a data set: the total training time"
    parser.add_argument("--minutes", type=float, metavar="M", help=text)
    of_datasets = parser.add_argument_group("for a data set")
    of_datasets.add_argument(
        "--output", "-o", type=Path, metavar="RUN", help="folder for the plan, cache, log and weights"
    )
    text = "segmamba-v2, segmamba-v2-paper or spinemamba (default: the plan's, or segmamba-v2-paper)"
    of_datasets.add_argument("--architecture", metavar="NAME", help=text)
    text = "start from a model of 'segmamba models list' (grid, normalization, network), not from random weights"
    of_datasets.add_argument("--from", metavar="MODEL", help=text)
    text = "with --from a model of vertebrae: only vertebral bodies are labelled, arches are unknown"
    of_datasets.add_argument("--bodies", action="store_true", help=text)
    text = "ours (default), or paper: SegMamba-V2's patch, batch, 1,000 epochs and SGD"
    of_datasets.add_argument("--recipe", choices=("ours", "paper"), help=text)
    text = "the fold to hold out, from 0, or 'all' to hold out nobody (default: 0)"
    of_datasets.add_argument("--fold", metavar="N", help=text)
    of_datasets.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)")
    text = "seed of the first weights and of the samples (default: the plan's, 0)"
    of_datasets.add_argument("--seed", type=int, metavar="N", help=text)
    of_datasets.add_argument("--plan-only", action="store_true", help="check the images, write RUN/plan.json and stop")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    written = _on_dataset(options) if options.what.is_dir() else _from_config(options)
    # The log is on standard output, one JSON object a line.
    print(f"Written: {written}", file=sys.stderr)
    return 0


def _from_config(options: argparse.Namespace) -> Path:
    if not options.what.exists():
        raise InputError(f"{options.what} does not exist: give the folder of a data set, or a configuration file.")
    for name in OF_DATASETS:
        if getattr(options, name) not in (None, False):
            option = name.replace("_", "-")
            raise InputError(f"--{option} is for data sets, and {options.what} is no folder: leave it out.")
    # torch takes seconds to import, and other commands do without.
    from segmamba.training.loop import train_from_config

    return train_from_config(options.what, math.inf if options.minutes is None else options.minutes)


def _on_dataset(options: argparse.Namespace) -> Path:
    if options.output is None:
        raise InputError("Training on a data set needs a folder for its results: give --output RUN.")
    if options.minutes is not None and not options.minutes > 0:
        raise InputError("--minutes must be more than 0: correct it, or leave it out.")
    if options.seed is not None and options.seed < 0:
        raise InputError("--seed must not be negative: correct it, or leave it out.")
    from segmamba.training.dataset.train import PLAN, Order, plan_training, train_on_dataset
    from segmamba.training.vertebrae.tuning import is_tuning, plan_tuning, tune

    order = Order(
        options.what,
        options.output,
        options.architecture,
        options.fold or "0",
        options.minutes,
        options.device or "auto",
        # The name is a word of the language.
        getattr(options, "from"),
        options.recipe or "ours",
        options.seed,
        options.bodies,
        options.plan_only,
    )
    if is_tuning(order):
        tuning = plan_tuning(order)
        parts = "vertebral bodies" if tuning.bodies else "whole vertebrae"
        print(f"Plan: both stages of {tuning.base_model}, {parts} on {tuning.modality}", file=sys.stderr)
    else:
        _print_plan(plan_training(order))
    if options.plan_only:
        return order.output / PLAN
    description = tune(order) if is_tuning(order) else train_on_dataset(order)
    print(f"To use it: segmamba models import {description.parent}", file=sys.stderr)
    return description


def _print_plan(plan: Plan) -> None:
    size = " x ".join(map(str, plan.patch))
    spacing = " x ".join(f"{step:g}" for step in plan.spacing)
    network = plan.recipe.architecture
    print(
        f"Plan: {network}, images {', '.join(plan.channels)}, patch {size} (z, y, x), voxels {spacing} mm, "
        f"batch {plan.recipe.batch}",
        file=sys.stderr,
    )
