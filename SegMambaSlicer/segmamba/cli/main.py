"""The command line: ``segmamba``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn, TextIO

from segmamba import __version__
from segmamba.cli import batch, bench, compare, doctor, evaluate, models, segment, serve, train
from segmamba.cli.interrupt import stop_at_end_of_input
from segmamba.errors import (
    DEBUG_VARIABLE,
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
from segmamba.reporting import DISCLAIMER
from segmamba.utils.memory import ENVIRONMENT

logger = logging.getLogger(__name__)

USAGE_ERROR = 2
EXIT_CODES = (
    (0, "done"),
    (SegMambaError.exit_code, "unexpected error"),
    (USAGE_ERROR, "wrong arguments"),
    (InputError.exit_code, "the input cannot be read or is not suitable"),
    (ModelError.exit_code, "the model is unknown, not installed or damaged"),
    (DeviceError.exit_code, "the device is not available or has too little memory"),
    (OutputError.exit_code, "the result cannot be written"),
    (WorkerError.exit_code, "the worker process died"),
    (InstallationError.exit_code, "a package is missing or broken"),
    (batch.SOME_FAILED, "some cases of a batch failed; the others are done"),
    (Cancelled.exit_code, "cancelled"),
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"segmamba: error: {message} (see '{self.prog} --help')", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = make_parser().parse_args(arguments)
    # For commands that run networks in this process.
    os.environ.update(ENVIRONMENT | os.environ)
    try:
        if options.stop_at_eof:
            stop_at_end_of_input()
        with _warnings_in_log():
            status: int = options.run(options)
        return status
    except (SegMambaError, ImportError, OSError, KeyboardInterrupt) as error:
        if os.environ.get(DEBUG_VARIABLE) and not isinstance(error, KeyboardInterrupt):
            raise
        sentence, status = _described(error)
        print(f"segmamba: error: {sentence}", file=sys.stderr)
        return status


@contextlib.contextmanager
def _warnings_in_log() -> Iterator[None]:
    """Lead what libraries warn of to the log, unless it is asked for: what a user has to know is in our sentences."""
    with warnings.catch_warnings():
        if not os.environ.get(DEBUG_VARIABLE):
            warnings.showwarning = _log_warning
        yield


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    logger.info("%s:%d: %s: %s", filename, lineno, category.__name__, message)


def _described(error: BaseException) -> tuple[str, int]:
    """Return the sentence about an error, and its exit status."""
    if isinstance(error, SegMambaError):
        return str(error), error.exit_code
    if isinstance(error, ImportError):
        return str(package_problem(error)), InstallationError.exit_code
    if isinstance(error, OSError):
        text = f"Operating system error ({error}): check that the paths exist and that you may write there."
        return text, SegMambaError.exit_code
    return "Interrupted.", Cancelled.exit_code


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; the options that it returns have the chosen command as ``run``."""
    codes = "\n".join(f"  {code:3}  {meaning}" for code, meaning in EXIT_CODES)
    parser = Parser(
        prog="segmamba",
        description=f"Segment vertebrae or colorectal tumours in medical images. {DISCLAIMER}",
        epilog=f"exit status:\n{codes}\n\nWith {DEBUG_VARIABLE}=1 an error shows its traceback.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"segmamba {__version__}")
    text = "take the end of standard input for Ctrl-C: for programs that start this one"
    parser.add_argument("--stop-at-eof", action="store_true", help=text)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (segment, compare, batch, serve, models, evaluate, doctor, bench, train):
        command.add_command(commands)
    return parser
