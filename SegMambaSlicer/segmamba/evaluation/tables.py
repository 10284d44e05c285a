"""An evaluation as Markdown: the summary, the worst cases first, all structures of all cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segmamba.evaluation.names import CROPS, NATIVE, PLAIN
from segmamba.evaluation.statistics import eligible
from segmamba.reporting import DISCLAIMER
from segmamba.utils.words import counted

MEASURE_TITLES = {
    "dice": "Dice, mean over structures",
    "assd_mm": "average surface distance, mm",
    "hd95_mm": "95% Hausdorff distance, mm",
    "identified": "identified",
    "dice_foreground": "foreground Dice",
}
KIND_TITLES = {
    NATIVE: "as it is",
    "thick": "5 mm slices",
    "sagittal": "4.5 mm sagittal slices",
    "noise": "noise, sigma 60 HU",
    **{kind: f"cropped to {count} vertebrae" for kind, count in CROPS.items()},
    "storage": "axes permuted and flipped",
    "oblique": "on an oblique grid",
}
OUTCOMES = ("crops", "right", "wrong", "abstained_right", "abstained_wrong")
NONE = "-"
# Name of the reliability diagram beside the table.
RELIABILITY = "reliability.png"


def to_markdown(evaluation: Mapping[str, Any], pictures: str) -> str:
    """Return what `segmamba.evaluation.run.evaluation` gave as Markdown; ``pictures`` is their folder, relative."""
    subject = evaluation["subject"]
    parts = [
        "# Evaluation",
        f"{subject.get('title') or subject['id']}, {evaluation['compared']}. {DISCLAIMER}",
        "Means are over the eligible structures; [brackets] contain the 95% confidence interval of a mean "
        f"(bootstrap over {evaluation['resample']}; {NONE} where there is only one).",
        _summary(evaluation["summary"], evaluation["compared"] != PLAIN),
    ]
    if "certainty" in evaluation:
        parts += ["## Levels: right and certain", _certainty(evaluation["certainty"])]
        parts += _calibration(evaluation["calibration"])
    if evaluation["losses"]:
        parts += ["## Robustness", _losses(evaluation["losses"])]
    if "crops" in evaluation:
        parts += ["### Crops: abstention where levels cannot be known", _crops(evaluation["crops"])]
    title = "## Structures" if evaluation["compared"] == PLAIN else "## Levels"
    parts += [title, _levels([case for case in evaluation["cases"] if case["kind"] == NATIVE])]
    parts += ["## Cases, the worst first", _overview(evaluation["cases"])]
    parts += [_case(case, pictures) for case in worst_first(evaluation["cases"])]
    return "\n\n".join(parts) + "\n"


def comparison_to_markdown(comparison: Mapping[str, Any], first: str, second: str) -> str:
    """Return what `segmamba.evaluation.statistics.compare` gave as a Markdown table."""
    rows = []
    for kind, measures in comparison.items():
        for measure, entry in measures.items():
            figures = [number(entry[key]) for key in ("first", "second")]
            rows.append(
                [_kind(kind), MEASURE_TITLES[measure], str(entry["values"]), *figures, with_interval(entry, True)]
            )
    return table(["perturbation", "measure", "pairs", first, second, "difference"], rows)


def worst_first(cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return cases by mean Dice, or by foreground Dice where no structure is eligible, the worst first."""
    return sorted(
        cases, key=lambda case: case["dice_mean"] if case["dice_mean"] is not None else case["dice_foreground"]
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, signed: bool = False) -> str:
    """Return a figure with three digits after the point."""
    return NONE if value is None else f"{value:{'+' if signed else ''}.3f}"


def with_interval(entry: Mapping[str, Any], signed: bool = False) -> str:
    """Return a mean and its interval."""
    if entry["interval"] is None:
        return f"{number(entry['mean'], signed)} [{NONE}]"
    low, high = entry["interval"]
    return f"{number(entry['mean'], signed)} [{number(low, signed)}, {number(high, signed)}]"


def _kind(kind: str) -> str:
    return KIND_TITLES.get(kind, kind)


def _summary(summary: Mapping[str, Any], vertebrae: bool) -> str:
    measures = [measure for measure in MEASURE_TITLES if vertebrae or measure != "identified"]
    rows = []
    for kind, entry in summary.items():
        count = f"{entry['dice']['values']} in {counted(entry['cases'], 'case')}, {entry['missed']} missed"
        rows.append([_kind(kind), count, *(with_interval(entry[measure]) for measure in measures)])
    return table(["perturbation", "structures", *(MEASURE_TITLES[measure] for measure in measures)], rows)


def _losses(losses: Mapping[str, Any]) -> str:
    rows = [
        [
            _kind(kind),
            str(entry["values"]),
            number(entry["native"]),
            number(entry["changed"]),
            with_interval(entry, True),
            str(entry["abstained"]),
        ]
        for kind, entry in losses.items()
    ]
    return table(["perturbation", "pairs", "Dice as it is", "Dice perturbed", "lost", "abstentions"], rows)


def _certainty(certainty: Mapping[str, Mapping[str, Any]]) -> str:
    keys = ("right_certain", "right_uncertain", "wrong_certain", "wrong_uncertain", "right_unsaid", "wrong_unsaid")
    rows = []
    for kind, entry in certainty.items():
        right = sum(entry[key] for key in keys if key.startswith("right"))
        every = sum(entry[key] for key in keys)
        named = "; ".join(entry["wrong_and_certain"]) or NONE
        counts = [str(entry[key]) for key in (*keys[:4], "runner_up_right")]
        rows.append([_kind(kind), f"{right} of {every}", *counts, named])
    head = ["perturbation", "right", "right, certain", "right, not certain", "wrong, certain", "wrong, not certain"]
    return table([*head, "of these the runner-up is right", "wrong and certain"], rows)


def _calibration(calibration: Mapping[str, Any] | None) -> list[str]:
    if calibration is None:
        return []
    error = number(calibration["expected_calibration_error"])
    rows = [[str(one["vertebrae"]), number(one["probability"]), number(one["right"])] for one in calibration["bins"]]
    vertebrae = counted(calibration["vertebrae"], "vertebra", "vertebrae")
    return [
        f"Expected calibration error of the levels' probabilities: {error} ({vertebrae}).",
        f"![Reliability]({RELIABILITY})",
        table(["vertebrae", "mean probability", "right"], rows),
    ]


def _crops(crops: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    titles = {"landmark": "C1, C2 or sacrum in view", "no_landmark": "none of these"}
    rows = [
        [_kind(kind), title, *(str(entry[key][outcome]) for outcome in OUTCOMES), number(entry[key]["abstention_rate"])]
        for kind, entry in crops.items()
        for key, title in titles.items()
    ]
    head = ["perturbation", "crops with", "crops", "right", "wrong", "abstained, right", "abstained, wrong"]
    return table([*head, "abstention rate"], rows)


def _levels(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = [row for case in cases for row in eligible(case)]
    lines = []
    for value in sorted({row["value"] for row in rows}):
        level = [row for row in rows if row["value"] == value]
        found = [row for row in level if row["assd_mm"] is not None]
        means = [sum(row["dice"] for row in level) / len(level)]
        distances = [sum(row[key] for row in found) / len(found) if found else None for key in ("assd_mm", "hd95_mm")]
        lines.append([level[0]["name"], str(len(level)), *map(number, [*means, *distances]), _identified(level)])
    return table(["structure", "cases", "Dice", "surface distance, mm", "95% Hausdorff, mm", "identified"], lines)


def _identified(rows: Sequence[Mapping[str, Any]]) -> str:
    known = [row["identified"] for row in rows if row["identified"] is not None]
    return f"{sum(known)} of {len(known)}" if known else NONE


def _overview(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for case in worst_first(cases):
        keys = ("dice_foreground", "dice_vertebrae", "dice_mean", "assd_mean_mm", "hd95_mean_mm")
        figures = [number(case[key]) for key in keys]
        seconds = NONE if case["seconds"] is None else f"{case['seconds']:.0f}"
        rows.append(
            [case["case"], case["perturbation"], *figures, _identified(eligible(case)), _numbers(case), seconds]
        )
    head = ["case", "perturbation", "foreground Dice", "without the sacrum", "mean Dice"]
    return table([*head, "surface distance, mm", "95% Hausdorff, mm", "identified", "levels", "seconds"], rows)


def _numbers(case: Mapping[str, Any]) -> str:
    numbering = case.get("numbering")
    if numbering is None or numbering["dice_mean_shifted"] is None:
        return NONE
    state = "abstained, " if numbering["certain"] is False else ""
    if numbering["best_shift"] == 0:
        return f"{state}{numbering['wrong']} wrong"
    shifted = number(numbering["dice_mean_shifted"])
    return f"{state}{numbering['wrong']} wrong, Dice {shifted} shifted by {numbering['best_shift']:+d}"


def _case(case: Mapping[str, Any], pictures: str) -> str:
    names = {row["value"]: row["name"] for row in case["structures"] + case["extra"]}
    rows = []
    for row in case["structures"]:
        figures = [number(row[key]) for key in ("dice", "assd_mm", "hd95_mm", "centroid_distance_mm")]
        volumes = [f"{row[key]:.1f}" for key in ("volume_ml", "reference_volume_ml")]
        covered = names.get(row["covered_by"], str(row["covered_by"])) if row["covered_by"] else "background"
        known = NONE if row["identified"] is None else "yes" if row["identified"] else "no"
        rows.append([row["name"], *figures, *volumes, covered, known, row["ineligible"] or "yes"])
    head = ["structure", "Dice", "surface distance, mm", "95% Hausdorff, mm", "centroids apart, mm", "mL"]
    text = f"### {case['case']}, {_kind(case['kind'])}"
    if case["perturbation"] != case["kind"]:
        text += f" ({case['perturbation']})"
    if case["picture"]:
        text += f"\n\n![{case['case']}]({pictures}/{case['picture']})"
    text += "\n\n" + table([*head, "reference, mL", "mostly covered by", "identified", "eligible"], rows)
    if case["extra"]:
        text += "\n\nNot in the reference: " + ", ".join(row["name"] for row in case["extra"]) + "."
    return text
