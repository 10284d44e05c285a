"""The command line: ``segmamba``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from segmamba import __version__
from segmamba.cli import batch as cli_batch
from segmamba.cli import evaluate as cli_evaluate
from segmamba.cli import models as cli_models
from segmamba.cli.interrupt import stop_signal
from segmamba.cli.options import add_options, help_of, read_options, read_request
from segmamba.cli.progress import ProgressBar
from segmamba.errors import (
    Cancelled,
    DeviceError,
    InputError,
    InstallationError,
    ModelError,
    OutputError,
    SegMambaError,
    WorkerError,
    package_problem,
)
from segmamba.reporting.disclaimer import NOTICE
from segmamba.request import SETTINGS
from segmamba.worker.client import Worker

DEBUG_VARIABLE = "SEGMAMBA_DEBUG"
USAGE_ERROR = 2
EXIT_CODES = (
    (0, "done"),
    (SegMambaError.exit_code, "unexpected error"),
    (USAGE_ERROR, "wrong arguments"),
    (InputError.exit_code, "the input cannot be read or does not suit"),
    (ModelError.exit_code, "the model is unknown, not installed or damaged"),
    (DeviceError.exit_code, "the device is not there or has too little memory"),
    (OutputError.exit_code, "the result cannot be written"),
    (WorkerError.exit_code, "the worker process died"),
    (InstallationError.exit_code, "a package is missing or does not work"),
    (cli_batch.SOME_FAILED, "some cases of a batch failed, the others are done"),
    (Cancelled.exit_code, "cancelled"),
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"segmamba: error: {message} (see '{self.prog} --help')", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except SegMambaError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"segmamba: error: {error}", file=sys.stderr)
        return error.exit_code
    except ImportError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"segmamba: error: {package_problem(error)}", file=sys.stderr)
        return InstallationError.exit_code
    except OSError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"segmamba: error: The system refuses ({error}): check the folder and the paths.", file=sys.stderr)
        return SegMambaError.exit_code
    except KeyboardInterrupt:
        print("segmamba: error: Interrupted.", file=sys.stderr)
        return Cancelled.exit_code


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code:3}  {meaning}" for code, meaning in EXIT_CODES)
    parser = Parser(
        prog="segmamba",
        description=f"Segment vertebrae or colorectal tumours in medical images. {NOTICE}",
        epilog=f"exit status:\n{codes}\n\nWith {DEBUG_VARIABLE}=1 an error shows its traceback.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"segmamba {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_segment(commands)
    cli_batch.add_command(commands)
    cli_models.add_commands(commands)
    cli_evaluate.add_command(commands)
    doctor = commands.add_parser("doctor", help="check this installation and say what to do")
    add_options(doctor, ("device",))
    doctor.set_defaults(run=_doctor)
    train = commands.add_parser("train", help="train a network as a configuration file says")
    train.add_argument("config", metavar="CONFIG", type=Path, help="the configuration, a JSON file")
    train.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="stop after M minutes; go on later")
    train.set_defaults(run=_train)
    return parser


def _add_segment(commands: Any) -> None:
    parser = commands.add_parser(
        "segment", help="segment a volume", description="Segment a volume. The result lies on the volume's own grid."
    )
    parser.set_defaults(run=_segment)
    parser.add_argument("input", metavar="INPUT", help=help_of("input"))
    parser.add_argument("--output", "-o", required=True, metavar="FILE", help=help_of("output"))
    add_options(parser, ("report", "preview", "measurements", *SETTINGS))
    parser.add_argument("--in-process", action="store_true", help="run without a worker process, for debugging")
    parser.add_argument("--quiet", "-q", action="store_true", help="print errors only")


def _segment(options: argparse.Namespace) -> int:
    request = read_request(options)
    with ProgressBar(sys.stderr, shown=not options.quiet) as bar, stop_signal() as stopped:
        if options.in_process:
            # The heavy packages are imported where they are used, so that 'segmamba doctor' works without them.
            from segmamba.inference.file_to_file import segment_file

            report = segment_file(request, bar.update, stopped)
        else:
            log = print_log if os.environ.get(DEBUG_VARIABLE) else None
            with Worker(log=log) as worker:
                report = worker.run(request, bar.update, stopped)
    if not options.quiet:
        run = report["run"]
        print(report["summary"])
        for sentence in run["fallbacks"]:
            print(f"Note: {sentence}")
        for sentence in filter(None, (report["model"]["estimated"], report["model"]["caution"])):
            print(f"Note: {sentence}.")
        written = (request.output, request.report, request.preview, request.measurements)
        print(f"Written: {', '.join(path for path in written if path)}")
        devices = " and ".join(dict.fromkeys((run["device"], run.get("fine", run)["device"])))
        print(f"{devices}, {run['precision']}, scan {run['scan_backend']}, {report['timings_s']['total']:.1f} s")
        print(NOTICE)
    return 0


def print_log(line: str) -> None:
    """Show a line of the worker's log."""
    print(line, file=sys.stderr)


def _doctor(options: argparse.Namespace) -> int:
    from segmamba.cli.doctor import FAIL, examine

    failed = False
    for finding in examine(read_options(options).device):
        print(finding)
        failed = failed or finding.state == FAIL
    return InstallationError.exit_code if failed else 0


def _train(options: argparse.Namespace) -> int:
    from segmamba.training.loop import train_from_config

    weights = train_from_config(options.config, options.minutes)
    # The log is on standard output, one JSON object a line.
    print(f"Written: {weights}", file=sys.stderr)
    return 0
