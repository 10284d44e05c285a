"""The command ``segmamba segment``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segmamba.cli.interrupt import stop_signal
from segmamba.cli.options import add_options, help_of, read_request
from segmamba.cli.progress import ProgressBar
from segmamba.errors import DEBUG_VARIABLE
from segmamba.reporting import DISCLAIMER
from segmamba.request import FILES, SETTINGS, Request
from segmamba.worker.client import WorkerProcess


def add_command(commands: Any) -> None:
    """Add ``segment`` to the command line."""
    text = "Segment a volume. The result lies on the volume's own grid."
    parser = commands.add_parser("segment", help="segment a volume", description=text)
    parser.set_defaults(run=_run)
    parser.add_argument("input", metavar="INPUT", help=help_of("input"))
    parser.add_argument("--output", "-o", required=True, metavar="FILE", help=help_of("output"))
    add_options(parser, (*(name for name in FILES if name not in ("input", "output")), *SETTINGS))
    text = "let a server do it ('segmamba serve'); this computer needs no torch and no model"
    parser.add_argument("--server", metavar="ADDRESS", help=text)
    parser.add_argument("--in-process", action="store_true", help="run without a worker process, for debugging")
    parser.add_argument("--quiet", "-q", action="store_true", help="print errors only")


def _run(options: argparse.Namespace) -> int:
    request = read_request(options)
    with ProgressBar(sys.stderr, shown=not options.quiet) as bar, stop_signal() as stopped:
        if options.in_process:
            # The heavy packages are imported where they are used, so that 'segmamba doctor' works without them.
            from segmamba.inference.file_to_file import segment_file

            report = segment_file(request, bar.update, stopped)
        else:
            log = _print_log if os.environ.get(DEBUG_VARIABLE) else None
            with _worker(options.server, log) as worker:
                report = worker.run(request, bar.update, stopped)
    if not options.quiet:
        _print_result(report, request)
    return 0


def _worker(server: str | None, log: Callable[[str], None] | None) -> WorkerProcess:
    """Return the worker of this computer, or what a server's jobs go through."""
    if server is None:
        return WorkerProcess(log=log)
    from segmamba.remote.servers import known_server
    from segmamba.remote.worker import RemoteWorker

    return RemoteWorker(known_server(server), log=log)


def _print_result(report: Mapping[str, Any], request: Request) -> None:
    run = report["run"]
    print(report["summary"])
    for entry in report.get("look_first", []):
        if entry["text"] not in report["summary"]:
            print(f"Look at: {entry['text']}")
    for sentence in (*run["warnings"], *run["notes"]):
        print(f"Note: {sentence}")
    for sentence in filter(None, (report["model"]["estimated"], report["model"]["caution"])):
        print(f"Note: {sentence}.")
    # What lies beside the output is named as the output is, which may be in few words.
    beside = (*report.get("also", ()), *filter(None, [report.get("isotropic", {}).get("output")]))
    further = [str(Path(request.output).with_name(Path(path).name)) for path in beside]
    tables = (request.report, request.preview, request.measurements, request.page)
    volumes = (request.probabilities, request.uncertainty)
    written = (request.output, *further, *tables, *volumes)
    print(f"Written: {', '.join(path for path in written if path)}")
    devices = " and ".join(dict.fromkeys((run["device"], run.get("fine", run)["device"])))
    print(f"{devices}, {run['precision']}, scan backend {run['scan_backend']}, {report['timings_s']['total']:.1f} s")
    print(DISCLAIMER)


def _print_log(line: str) -> None:
    print(line, file=sys.stderr)
