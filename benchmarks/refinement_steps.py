"""Measure what each step of the refinement gains on real images.

``python benchmarks/refinement_steps.py PAIRS [PAIRS ...] --reference-ids own,totalsegmentator --answers FOLDER``

The task's network runs once on each image, its answers are kept in FOLDER; then the masks are refined by no step, by
each alone, and by several, and measured as `segmamba evaluate` does. Prints a Markdown table of the paired differences
to no refinement, with 95% bootstrap intervals over cases and over vertebrae.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kept_answers import keep_answers

from segmamba.evaluation.cases import EvaluationCase, find_cases
from segmamba.evaluation.names import BODIES, OWN_IDS, WHOLE
from segmamba.evaluation.run import evaluate_case, evaluation, run_model
from segmamba.evaluation.scores import ScoringConfig
from segmamba.evaluation.statistics import compare
from segmamba.models.manifest import Model, load_manifest
from segmamba.request import Options
from segmamba.spine.refine import ON, STEPS
from segmamba.tasks import VERTEBRAE_TASK

CHOICES = ((), *((step,) for step in STEPS), ON, STEPS)
MEASURES = {"dice": "Dice", "dice_foreground": "foreground Dice", "assd_mm": "surface distance, mm"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path, nargs="+")
    parser.add_argument("--reference-ids", default=OWN_IDS)
    parser.add_argument("--bodies", action="store_true", help="compare with NAME_bodies.nii.gz")
    parser.add_argument("--answers", type=Path, required=True, help="folder where the network's answers are kept")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    keep_answers(options.answers)
    model = load_manifest().default(VERTEBRAE_TASK)
    structure, kind = ("bodies", BODIES) if options.bodies else (VERTEBRAE_TASK, WHOLE)
    config = ScoringConfig(kind, {label.value: label.name for label in model.labels})
    cases = find_cases(options.pairs, structure, options.reference_ids.split(","))
    plain = measured(cases, model, (), config, options.device)
    names = [name for measure in MEASURES.values() for name in (measure, "gain", "over cases", "over vertebrae")]
    print(f"| steps | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}", flush=True)
    for steps in CHOICES:
        found = measured(cases, model, steps, config, options.device) if steps else plain
        print(f"| {', '.join(steps) or 'none'} | {' | '.join(cells(plain, found))} |", flush=True)


def measured(
    cases: Sequence[EvaluationCase], model: Model, steps: tuple[str, ...], config: ScoringConfig, device: str
) -> dict[str, Any]:
    """Return the evaluation of a model that refines by these steps."""
    assert model.fine is not None
    model = replace(model, fine=replace(model.fine, refine=steps))
    predict = run_model(model, Options(device=device, refine=bool(steps)))
    return evaluation(
        [result for case in cases for result in evaluate_case(case, (), predict, model, config)], config, {}
    )


def cells(plain: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return a row of the table: for each measure the mean, its gain and the gain's two intervals."""
    by_case, by_structure = (compare(plain, found, resample)["native"] for resample in ("cases", "structures"))
    row = []
    for measure in MEASURES:
        one = by_case[measure]
        low_high = (each[measure]["interval"] for each in (by_case, by_structure))
        intervals = [f"{part[0]:.5f} to {part[1]:.5f}" if part else "-" for part in low_high]
        row += [f"{one['second']:.4f}", f"{one['mean']:+.5f}", *intervals]
    return row


if __name__ == "__main__":
    main()
