"""The command ``segmamba train``."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any


def add_command(commands: Any) -> None:
    """Add ``train`` to the command line."""
    parser = commands.add_parser("train", help="train a network by a configuration file")
    parser.set_defaults(run=_run)
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the configuration, a JSON file")
    text = "stop after M minutes; the same command resumes the training"
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="M", help=text)


def _run(options: argparse.Namespace) -> int:
    # torch takes seconds to import, and other commands do without.
    from segmamba.training.loop import train_from_config

    weights = train_from_config(options.config, options.minutes)
    # The log is on standard output, one JSON object a line.
    print(f"Written: {weights}", file=sys.stderr)
    return 0
