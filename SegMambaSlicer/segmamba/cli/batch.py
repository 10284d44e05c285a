"""The command ``segmamba batch``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmamba.cli.interrupt import stop_signal
from segmamba.cli.options import add_options, read_request
from segmamba.cli.progress import CaseProgress
from segmamba.errors import InputError
from segmamba.reporting import DISCLAIMER
from segmamba.request import SETTINGS, Request

if TYPE_CHECKING:
    from segmamba.batch.run import Source

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
    text = (
        "folders (searched recursively), files, or patterns in quotes: NIfTI, NRRD, MetaImage, DICOM series; or a PACS "
        "as dicomweb://HOST/PATH"
    )
    parser.add_argument("inputs", metavar="IN", nargs="+", help=text)
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the results")
    parser.add_argument(
        "--format",
        help="format of the segmentations: seg.nrrd (default; of a PACS dcm), nii.gz, dcm (DICOM SEG), labelmap.dcm "
        "(SEG as one map of labels), rtstruct.dcm (RTSTRUCT) or sr.dcm (SR with the measurements)",
    )
    add_options(parser, SETTINGS)
    text = "address or file of a Dask scheduler whose workers segment the cases (default: this computer)"
    parser.add_argument("--scheduler", metavar="ADDRESS|FILE", help=text)
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of local workers (default: two per GPU where there is room, else one; one without a GPU)",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=3,
        metavar="N",
        help="how often to retry a case after a crash or lack of memory (default 3)",
    )
    pacs = parser.add_argument_group("of a PACS (dicomweb://HOST/PATH); its results are stored there")
    text = "series to segment, by the keyword of a DICOM attribute, such as Modality=CT or StudyDate=20260101-; several"
    pacs.add_argument("--query", nargs="+", default=[], metavar="NAME=VALUE", help=text)
    text = (
        "private file with a JSON object of token, or user and password (default: the environment variables "
        "SEGMAMBA_PACS_TOKEN, or SEGMAMBA_PACS_USER and SEGMAMBA_PACS_PASSWORD)"
    )
    pacs.add_argument("--credentials", type=Path, metavar="FILE", help=text)
    pacs.add_argument("--ca", type=Path, metavar="FILE", help="certificates of an authority to trust (PEM)")
    text = "the most that the images of a series may have on disk (%(default)s)"
    pacs.add_argument("--disk-limit", type=float, default=8, metavar="GIB", help=text)
    text = "run only while FILE exists; removing it stops the run as Ctrl-C does"
    parser.add_argument("--while", dest="while_file", type=Path, metavar="FILE", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON line per case on standard output")
    parser.add_argument("--quiet", "-q", action="store_true", help="print errors only")


def _run(options: argparse.Namespace) -> int:
    # Imported here, because other commands do without.
    from segmamba.batch.layout import OVERVIEW, TABLE
    from segmamba.batch.outcome import FAILED
    from segmamba.batch.run import BatchSettings, run_batch
    from segmamba.pacs.archive import is_pacs

    if options.retries < 0:
        raise InputError(f"--retries is {options.retries}: give 0 or more.")

    def log(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    def make_progress(total: int) -> CaseProgress:
        return CaseProgress(total, options.json, options.quiet)

    def stopped() -> bool:
        return interrupted() or (options.while_file is not None and not options.while_file.exists())

    request, output_format = read_request(options, input="", output=""), options.format or "seg.nrrd"
    source: Source | list[str] = options.inputs
    if any(map(is_pacs, options.inputs)):
        source = _pacs(options, stopped)
        output_format, request = _results_for_pacs(options.format, request)
    elif options.query:
        raise InputError("--query is for a PACS: give dicomweb://HOST/PATH as input, or leave it out.")

    with stop_signal() as interrupted:
        progress = run_batch(
            source,
            options.output,
            request,
            BatchSettings(output_format, options.scheduler, options.workers, options.retries),
            stopped,
            log,
            make_progress,
        )
    overview, table = options.output / OVERVIEW, options.output / TABLE
    log(f"{progress.summary()}. Overview: {overview}, table: {table}")
    log(DISCLAIMER)
    return SOME_FAILED if progress.counts[FAILED] else 0


def _pacs(options: argparse.Namespace, stopped: Callable[[], bool]) -> Source:
    """Return the PACS that is named as the only input."""
    from segmamba.pacs.archive import Archive, access_of, parse_query, web_address
    from segmamba.pacs.source import PacsSource

    if len(options.inputs) > 1:
        raise InputError("A PACS is the only input of a batch: give the others in a batch of their own.")
    if options.disk_limit <= 0:
        raise InputError(f"--disk-limit is {options.disk_limit:g}: give more than 0.")
    archive = Archive(web_address(options.inputs[0]), access_of(options.credentials, options.ca))
    return PacsSource(archive, parse_query(options.query), int(options.disk_limit * 2**30), stopped)


def _results_for_pacs(chosen: str | None, request: Request) -> tuple[str, Request]:
    """Return what is made for a PACS: by default a binary SEG, and all results that are no SEG."""
    from segmamba.io.dicom_results import KINDS, kind_of

    if chosen is None:
        others = tuple(ending.removeprefix(".") for ending, kind in KINDS.items() if kind.name != "SEG")
        return "dcm", request if request.also else replace(request, also=others)
    if kind_of(f".{chosen}") is None and not request.also:
        raise InputError(f"A PACS takes DICOM, not {chosen}: choose another --format, or add --also dcm.")
    return chosen, request
