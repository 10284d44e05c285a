"""The command ``segmamba compare``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmamba.errors import OutputError
from segmamba.reporting import DISCLAIMER
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.utils.atomic import check_output

if TYPE_CHECKING:
    from segmamba.measurements.exam_files import ExamFile

DESCRIPTION = """
Compare two exams of one spine: which vertebra is which, by shape, and which changes of heights, density and volume are
more than the error of measurement. An exam is the report (.json) of 'segmamba segment --report', the folder of a case
of a batch, or a segmentation, to which --images names the images.
"""


def add_command(commands: Any) -> None:
    """Add ``compare`` to the command line."""
    text = "compare two exams of one spine: what changed, beyond the error of measurement"
    parser = commands.add_parser("compare", help=text, description=DESCRIPTION)
    parser.set_defaults(run=_run)
    for name in ("first", "second"):
        text = f"the {name} exam: a report (.json), a case's folder of a batch, or a segmentation"
        parser.add_argument(name, metavar=name.upper(), type=Path, help=text)
    text = "measure both segmentations again, on these images"
    parser.add_argument("--images", metavar=("FIRST", "SECOND"), type=Path, nargs=2, help=text)
    parser.add_argument("--output", "-o", metavar="FILE", type=Path, help="write everything as JSON")
    parser.add_argument("--table", metavar="FILE", type=Path, help="write a row for each vertebra as CSV")
    parser.add_argument("--page", metavar="FILE", type=Path, help="write one HTML page with pictures and tables")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")


def _run(options: argparse.Namespace) -> int:
    # Reading and measuring need packages that 'segmamba doctor' does without.
    from segmamba.measurements.comparison import compare, shapes_of, write_changes
    from segmamba.measurements.exam_files import find_exam, read_exam
    from segmamba.measurements.shape_matching import match
    from segmamba.models.library import load_models
    from segmamba.reporting.comparison_page import comparison_page, comparison_result
    from segmamba.reporting.page import check_page, write_page
    from segmamba.reporting.report import write_report

    files = find_exam(options.first), find_exam(options.second)
    _check_outputs(options, [file.segmentation for file in files])
    if options.page:
        check_page()
    images = options.images or (None, None)
    structures = load_models(None).choose(VERTEBRAE_TASK, None).labels
    read = [read_exam(file, image, structures) for file, image in zip(files, images, strict=True)]
    first, second = (each.exam for each in read)
    found = match(shapes_of(first), shapes_of(second))
    comparison = compare(first, second, found)
    described = _described(files[0], images[0]), _described(files[1], images[1])
    result = comparison_result(comparison, described, [each.note for each in read if each.note])
    if options.page:
        text = comparison_page(result, (first, second), (read[0].image, read[1].image))
        write_page(options.page, text)
    if options.table:
        write_changes(options.table, comparison)
    if options.output:
        write_report(options.output, result)
    for sentence in result["summary"]:
        print(sentence)
    written = [str(path) for path in (options.output, options.table, options.page) if path]
    if written:
        print(f"Written: {', '.join(written)}")
    print(DISCLAIMER)
    return 0


def _described(file: ExamFile, image: Path | None) -> Mapping[str, Any]:
    """Return what a reader has to know of an exam, without folders: they may tell who the patient is."""
    from segmamba.models.store import sha256

    model = (file.report or {}).get("model", {})
    return {
        "exam": file.name,
        "segmentation": file.segmentation.name,
        "segmentation_sha256": sha256(file.segmentation),
        "image": None if image is None else image.name,
        "model": " ".join(model[name] for name in ("id", "version")) if model else None,
    }


def _check_outputs(options: argparse.Namespace, segmentations: list[Path]) -> None:
    """Find out before any work whether the results can be written."""
    inputs = [path.resolve() for path in (options.first, options.second, *(options.images or ()), *segmentations)]
    for path, extension in ((options.output, ".json"), (options.table, ".csv"), (options.page, ".html")):
        if path is None:
            continue
        check_output(path, (extension,))
        if path.resolve() in inputs:
            raise OutputError(f"{path} is an input: choose another name for the result.")
        if path.exists() and not options.overwrite:
            raise OutputError(f"{path} already exists: choose another name, or give --overwrite.")
