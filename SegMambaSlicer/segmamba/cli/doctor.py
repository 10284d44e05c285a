"""The command ``segmamba doctor``."""

from __future__ import annotations

import argparse
from typing import Any

from segmamba.cli.options import add_options, read_options
from segmamba.errors import InstallationError


def add_command(commands: Any) -> None:
    """Add ``doctor`` to the command line."""
    parser = commands.add_parser("doctor", help="check this installation and say how to fix it")
    parser.set_defaults(run=_run)
    add_options(parser, ("device",))


def _run(options: argparse.Namespace) -> int:
    # Imports packages that may be missing, which is what this command is to find out.
    from segmamba.cli.examination import FAIL, examine

    failed = False
    for finding in examine(read_options(options).device):
        print(finding)
        failed = failed or finding.state == FAIL
    return InstallationError.exit_code if failed else 0
