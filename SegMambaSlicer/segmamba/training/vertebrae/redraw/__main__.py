"""Make patches, train on them, write the bundled file.

``python -m segmamba.training.vertebrae.redraw make ANATOMIES PATCHES [--part K] [--seconds S] [--count C]``: of the
tissue maps of `segmamba.training.vertebrae.label_maps`; several processes, each with its part, make other patches.
``... train PATCHES NET.pt [--minutes M] [--steps N] [--seed S] [--without-shapes]``
``... export NET.pt FILE.safetensors --licence L --training-data TEXT``
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from segmamba.inference.engine import prepare
from segmamba.models.manifest import load_manifest
from segmamba.models.resources import SHAPES, resource_root
from segmamba.networks.two_stage import TwoStageSpineMamba
from segmamba.request import Options
from segmamba.spine.shape_model import load_shapes
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.vertebrae.redraw.samples import PATCH, SPACING, make, patches_of_sample
from segmamba.training.vertebrae.redraw.training import BATCH, Run, export, train
from segmamba.training.vertebrae.tissue_maps import load_anatomies

# Tissue maps that one process reads: to interpolate them takes longer than to paint.
MAPS = 8


def main() -> None:
    """Make, train or export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    steps = {"make": _make, "train": _train, "export": _export}
    parsers = {name: commands.add_parser(name) for name in steps}
    for name, command in parsers.items():
        command.set_defaults(run=steps[name])
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path)
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parsers["make"].add_argument("--part", type=int, default=0, help="number of this process")
    parsers["make"].add_argument("--seconds", type=float, default=150.0, help="for so long")
    parsers["make"].add_argument("--count", type=int, default=10**6, help="patches at most")
    parsers["train"].add_argument("--minutes", type=float, default=Run.minutes, help="for so long")
    parsers["train"].add_argument("--steps", type=int, default=Run.steps, help="at most")
    parsers["train"].add_argument("--batch", type=int, default=BATCH)
    parsers["train"].add_argument("--seed", type=int, default=0)
    parsers["train"].add_argument("--without-shapes", action="store_true", help="for comparison")
    parsers["export"].add_argument("--licence", required=True)
    parsers["export"].add_argument("--training-data", required=True)
    options = parser.parse_args()
    options.run(options)


def _make(options: argparse.Namespace) -> None:
    device, rng = torch.device(options.device), np.random.default_rng([7, options.part])
    model = load_manifest(None).default(VERTEBRAE_TASK)
    both = prepare(model, Options(device=options.device), None, None).network
    assert isinstance(both, TwoStageSpineMamba)
    network = both.fine.to(device).eval()
    files = sorted(options.source.glob("*.npz"))
    anatomies = load_anatomies([files[n] for n in rng.permutation(len(files))[:MAPS]], device, SPACING)
    generator = torch.Generator(device).manual_seed(1000 + options.part)
    context = SamplingContext(PATCH, SPACING, device, rng, generator)
    one_sample = partial(patches_of_sample, network, anatomies, context, model, load_shapes(resource_root() / SHAPES))
    print(make(one_sample, options.target, f"{options.part:02}", options.seconds, options.count), "patches")


def _train(options: argparse.Namespace) -> None:
    torch.backends.cudnn.benchmark = True
    run = Run(options.minutes, options.steps, options.batch, options.seed, not options.without_shapes)
    shapes = load_shapes(resource_root() / SHAPES)
    train(options.source, options.target, shapes, run, torch.device(options.device))


def _export(options: argparse.Namespace) -> None:
    shapes = load_shapes(resource_root() / SHAPES)
    export(options.source, options.target, shapes, options.licence, options.training_data)


if __name__ == "__main__":
    main()
