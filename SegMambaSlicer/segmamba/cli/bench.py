"""The command ``segmamba bench``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from segmamba.cli.options import add_options, read_request
from segmamba.tasks import VERTEBRAE_TASK


def add_command(commands: Any) -> None:
    """Add ``bench`` to the command line."""
    parser = commands.add_parser("bench", help="measure how fast this machine runs a model's networks, in a minute")
    parser.set_defaults(run=_run)
    add_options(parser, ("task", "model", "manifest", "device", "precision", "scan_backend"))


def _run(options: argparse.Namespace) -> int:
    # PyTorch, which other commands do not need.
    from segmamba.inference.bench import CHEST_MM, bench
    from segmamba.inference.file_to_file import requested_model

    request = read_request(options, input="", output="")
    if request.model is None and request.task is None:
        request = replace(request, task=VERTEBRAE_TASK)
    model = requested_model(request)
    found = bench(model, request.options, Path(request.manifest).parent if request.manifest else None)
    print(f"{model.id} {model.version} on {found.device}, {found.precision}")
    for number, stage in enumerate(found.stages, start=1):
        name = f"stage {number}, " if len(found.stages) > 1 else ""
        print(f"{name}window of {' x '.join(map(str, stage.patch))} voxels: {stage.seconds:.3g} s")
    size = " x ".join(f"{length:.0f}" for length in CHEST_MM)
    print(f"networks for a chest CT of {size} mm, estimated: {found.chest_seconds:.3g} s")
    for warning in found.warnings:
        print(f"warning: {warning}")
    return 0
