"""The command ``segmamba evaluate``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmamba.cli.options import add_options, read_options, read_request
from segmamba.errors import InputError, OutputError
from segmamba.evaluation.names import (
    BODIES,
    CASES,
    IDS,
    OWN_IDS,
    PARTS,
    PERTURBATIONS,
    PLAIN,
    RESAMPLES,
    TEST,
    WHOLE,
)
from segmamba.models.manifest import Model
from segmamba.request import SETTINGS, Request
from segmamba.tasks import VERTEBRAE_TASK

if TYPE_CHECKING:
    from segmamba.evaluation.run import Predictor

# Options that are not for many cases, that would tell the answer, or that change nothing of what is evaluated.
GIVEN = ("structures", "roi", "anchor", "levels_from", "output_spacing")
REPORT, TABLE, PICTURES = "evaluation.json", "evaluation.md", "pictures"
DESCRIPTION = """
Segment images, compare the results with references, and write metrics, a table and pictures; or compare two such
evaluations. A folder of PAIRS holds NAME_ct.nii.gz, NAME_mr.nii.gz or NAME_image.nii.gz with NAME_TASK.nii.gz, for
example NAME_vertebrae.nii.gz. For a model that takes several volumes it holds NAME_0000.nii.gz, NAME_0001.nii.gz, ...,
or NAME-CHANNEL.nii.gz, with NAME_TASK.nii.gz or NAME.nii.gz.
"""


def add_command(commands: Any) -> None:
    """Add ``evaluate`` to the command line."""
    text = "evaluate a model, or label maps from any tool, against references"
    parser = commands.add_parser("evaluate", help=text, description=DESCRIPTION)
    parser.set_defaults(run=_run)
    parser.add_argument("pairs", metavar="PAIRS", type=Path, nargs="*", help="folders of images and references")
    add_options(parser, (name for name in SETTINGS if name not in GIVEN))
    parser.add_argument(
        "--predictions",
        metavar="FOLDER",
        type=Path,
        help="evaluate the label maps NAME.nii.gz in this folder instead of running a model",
    )
    parser.add_argument("--bodies", action="store_true", help="compare with NAME_bodies.nii.gz: vertebral bodies only")
    ids = f"label values of the references: {' or '.join(IDS)} (default {OWN_IDS}); A,B for one per folder"
    parser.add_argument("--reference-ids", metavar="IDS", default=OWN_IDS, help=ids)
    text = f"which exams of a folder with a split.csv: {TEST}, or those that models were trained on (default {TEST})"
    parser.add_argument("--part", choices=PARTS, default=TEST, help=text)
    parser.add_argument(
        "--perturbations", metavar="A,B", help=f"also evaluate perturbed versions: {', '.join(PERTURBATIONS)}"
    )
    parser.add_argument(
        "--resample", choices=RESAMPLES, default=CASES, help=f"what the confidence intervals resample (default {CASES})"
    )
    parser.add_argument(
        "--output", "-o", metavar="FOLDER", type=Path, help="folder for the results; required with PAIRS"
    )
    text = "print the differences B minus A of two evaluations"
    parser.add_argument("--compare", metavar=("A.json", "B.json"), type=Path, nargs=2, help=text)


def _run(options: argparse.Namespace) -> int:
    if options.compare and options.pairs:
        raise InputError("PAIRS and --compare are both given: evaluate first, then compare the two results.")
    if options.compare:
        return _compare(options.compare[0], options.compare[1], options.resample, read_options(options).seed)
    if not options.pairs or options.output is None:
        raise InputError("PAIRS or --output is missing: give the folder of pairs, and one for the results.")
    return _evaluate(options)


def _evaluate(options: argparse.Namespace) -> int:
    from segmamba.evaluation.cases import check_volumes, find_cases
    from segmamba.evaluation.run import evaluate_case, evaluation, read_predictions
    from segmamba.evaluation.scores import ScoringConfig
    from segmamba.inference.file_to_file import requested_model

    kinds = _kinds(options)
    request = read_request(options, input="", output="")
    model = requested_model(request)
    kind = PLAIN if model.task != VERTEBRAE_TASK else BODIES if options.bodies else WHOLE
    regions = dict(zip(model.channel_values, model.regions.items(), strict=False))
    config = ScoringConfig(kind, {label.value: label.name for label in model.labels}, regions)
    structure = "bodies" if options.bodies else model.task
    ids = options.reference_ids.split(",")
    cases = find_cases(options.pairs, structure, ids, options.part, model.input_channels)
    if options.predictions:
        # Where they lie is all that is needed of the images.
        cases = [replace(case, channels=()) for case in cases]
    else:
        check_volumes(cases, model)
    folder = _prepared(options.output, request.overwrite)
    predict = read_predictions(options.predictions) if options.predictions else _run_model(model, request)
    subject: dict[str, Any] = {}
    if options.predictions:
        subject = {"id": str(options.predictions)}
        # Only names and colours are the model's.
        model = replace(model, title=f"Label maps of {options.predictions}", version="unknown")
    results: list[dict[str, Any]] = []
    for number, case in enumerate(cases, start=1):
        for result in evaluate_case(case, kinds, predict, model, config, folder / PICTURES, request.options):
            subject = subject or result["model"]
            result.pop("model", None)
            results.append(result)
            print(f"{number}/{len(cases)} {_line(result)}", flush=True)
        # After each case, so that an interrupted run has measured something.
        _write(evaluation(results, config, subject, options.resample, request.options.seed), folder)
    print(f"Written: {folder / REPORT}, {folder / TABLE}, {folder / PICTURES}")
    return 0


def _run_model(model: Model, request: Request) -> Predictor:
    from segmamba.evaluation.run import run_model

    checkpoint = Path(request.checkpoint) if request.checkpoint else None
    root = Path(request.manifest).parent if request.manifest else None
    return run_model(model, request.options, checkpoint, root)


def _kinds(options: argparse.Namespace) -> list[str]:
    kinds = options.perturbations.split(",") if options.perturbations else []
    unknown = [kind for kind in kinds if kind not in PERTURBATIONS]
    if unknown:
        raise InputError(f"There is no perturbation '{', '.join(unknown)}': choose from {', '.join(PERTURBATIONS)}.")
    if kinds and options.predictions:
        raise InputError(
            "--predictions has no labels for perturbed images: leave out --predictions or --perturbations."
        )
    return kinds


def _prepared(folder: Path, overwrite: bool) -> Path:
    """Make the folder for the results, before any work is done."""
    if (folder / REPORT).exists() and not overwrite:
        raise OutputError(f"{folder} already holds an evaluation: choose another folder, or give --overwrite.")
    try:
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be created: choose another one.") from error
    return folder


def _line(result: Mapping[str, Any]) -> str:
    from segmamba.evaluation.tables import number

    dice = f"mean Dice {number(result['dice_mean'])}, foreground {number(result['dice_foreground'])}"
    identified = f", identified {result['identified']} of {result['of']}" if "numbering" in result else ""
    return f"{result['case']}, {result['perturbation']}: {dice}{identified}"


def _write(result: Mapping[str, Any], folder: Path) -> None:
    from segmamba.evaluation.certainty import draw_reliability
    from segmamba.evaluation.tables import RELIABILITY, to_markdown
    from segmamba.reporting.report import write_report
    from segmamba.utils.atomic import atomic_write

    write_report(folder / REPORT, result)
    if result.get("calibration"):
        draw_reliability(result["calibration"], folder / RELIABILITY)
    with atomic_write(folder / TABLE, (".md",)) as temporary:
        temporary.write_text(to_markdown(result, PICTURES), encoding="utf-8")


def _compare(first: Path, second: Path, resample: str, seed: int) -> int:
    from segmamba.evaluation.statistics import compare
    from segmamba.evaluation.tables import comparison_to_markdown

    differences = compare(_read(first), _read(second), resample, seed)
    print(comparison_to_markdown(differences, str(first), str(second)))
    return 0


def _read(path: Path) -> dict[str, Any]:
    from segmamba.evaluation.run import EVALUATION_VERSION

    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["evaluation_version"] == EVALUATION_VERSION:
            return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not an evaluation: give the {REPORT} of 'segmamba evaluate'.") from error
    raise InputError(f"{path} is from another version of this software: evaluate again.")
