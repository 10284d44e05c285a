"""The command ``segmamba batch``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from segmamba.cli.interrupt import stop_signal
from segmamba.cli.options import add_options, read_request
from segmamba.cli.progress import CaseProgress
from segmamba.errors import InputError
from segmamba.reporting import DISCLAIMER
from segmamba.request import SETTINGS

# Exit status of a run that went through, but not for every case.
SOME_FAILED = 9
DESCRIPTION = """
Segment many volumes. OUT gets a folder for each case, with the segmentation, report.json and preview.png, and
table.csv, table.parquet and overview.html for all cases together. The same command resumes an interrupted run:
finished cases are skipped unless their input, the model or the settings have changed. See Docs/batches.md.
"""


def add_command(commands: Any) -> None:
    """Add ``batch`` to the command line."""
    parser = commands.add_parser(
        "batch", help="segment many volumes, on one computer or a cluster", description=DESCRIPTION
    )
    parser.set_defaults(run=_run)
    text = "folders (searched recursively), files, or patterns in quotes: NIfTI, NRRD, MetaImage, DICOM series"
    parser.add_argument("inputs", metavar="IN", nargs="+", help=text)
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the results")
    parser.add_argument(
        "--format",
        default="seg.nrrd",
        help="format of the segmentations: seg.nrrd (default), nii.gz, dcm (DICOM SEG), labelmap.dcm (SEG as one map "
        "of labels) or rtstruct.dcm (RTSTRUCT)",
    )
    add_options(parser, SETTINGS)
    text = "address or file of a Dask scheduler whose workers segment the cases (default: this computer)"
    parser.add_argument("--scheduler", metavar="ADDRESS|FILE", help=text)
    parser.add_argument(
        "--workers", type=int, metavar="N", help="number of local workers (default: one per GPU, or one without a GPU)"
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=3,
        metavar="N",
        help="how often to retry a case after a crash or lack of memory (default 3)",
    )
    text = "run only while FILE exists; removing it stops the run as Ctrl-C does"
    parser.add_argument("--while", dest="while_file", type=Path, metavar="FILE", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON line per case on standard output")
    parser.add_argument("--quiet", "-q", action="store_true", help="print errors only")


def _run(options: argparse.Namespace) -> int:
    # Imported here, because other commands do without.
    from segmamba.batch.layout import OVERVIEW, TABLE
    from segmamba.batch.outcome import FAILED
    from segmamba.batch.run import BatchSettings, run_batch

    if options.retries < 0:
        raise InputError(f"--retries is {options.retries}: give 0 or more.")

    def log(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    def make_progress(total: int) -> CaseProgress:
        return CaseProgress(total, options.json, options.quiet)

    def stopped() -> bool:
        return interrupted() or (options.while_file is not None and not options.while_file.exists())

    with stop_signal() as interrupted:
        progress = run_batch(
            options.inputs,
            options.output,
            read_request(options, input="", output=""),
            BatchSettings(options.format, options.scheduler, options.workers, options.retries),
            stopped,
            log,
            make_progress,
        )
    overview, table = options.output / OVERVIEW, options.output / TABLE
    log(f"{progress.summary()}. Overview: {overview}, table: {table}")
    log(DISCLAIMER)
    return SOME_FAILED if progress.counts[FAILED] else 0
