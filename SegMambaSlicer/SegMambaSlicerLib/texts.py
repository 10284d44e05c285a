"""What the panel says, from what the engine knows. Functions that take and give values; no Qt."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segmamba.forecast import Forecast
from segmamba.manifest import Model
from segmamba.memory import gibibytes
from segmamba.report import numbering_doubt
from segmamba.spine.levels import level_name

# Share of a run that a stage takes, about: 512 x 512 x 133 voxels on a processor.
STAGES = {"read": 0.02, "load": 0.05, "preprocess": 0.05, "predict": 0.78, "postprocess": 0.08, "write": 0.02}
STAGE_TITLES = {
    "read": "Reading",
    "load": "Loading the model",
    "preprocess": "Preparing",
    "predict": "Segmenting",
    "postprocess": "Cleaning up",
    "write": "Writing",
}
TASK_TITLES = {"vertebrae": "Vertebrae", "colorectal": "Colorectal cancer"}
# Legible on light and on dark grounds.
PROBLEM_STYLE = "color: #d9480f;"
# Below this mean probability of its voxels a segment is marked, and below this one of its level.
LOW_CONFIDENCE, UNSURE_NUMBER = 0.6, 0.9
# What refinement does to a mask, by its steps.
REFINEMENT_STEPS = {
    "pieces": "loose pieces and holes",
    "split": "cut from its neighbour",
    "remove": "looked like no vertebra",
    "trim": "trimmed to the shape of a vertebra",
    "close": "gaps closed",
    "edit": "tidied after an edit",
}
# What the command line puts before its errors, and the lines that say what it did.
COMMAND_ERROR = re.compile(r"segmamba: error: |FAIL  [^:]+: ")
COMMAND_NEWS = ("Installed: ", "Removed: ", "Note: ")


def taskTitle(task: str) -> str:
    """Return a task's name for people."""
    return TASK_TITLES.get(task, task.capitalize())


def overallFraction(stage: str, fraction: float) -> float:
    """Return how much of a whole run is done, from a stage and the fraction of it that is done."""
    done = 0.0
    for name, share in STAGES.items():
        if name == stage:
            return done + share * fraction
        done += share
    return done


def duration(seconds: float) -> str:
    """Write a time span roughly, for example ``about 20 s`` or ``about 3 min``."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds / 5) * 5:.0f} s"
    return f"about {round(seconds / 60):.0f} min"


def modelSummary(model: Model, origin: str) -> str:
    """Return one line about a model: modality, spacing, accuracy, where its file is from, licence, what is a guess."""
    x, y, z = model.preprocessing.spacing
    spacing = f"{x:.3g} × {y:.3g} × {z:.3g} mm"
    licence = model.entry.get("licence") or "licence not stated"
    estimated = (f"estimate: {model.preprocessing.estimated}",) if model.preprocessing.estimated else ()
    return " · ".join(("/".join(model.modalities), spacing, accuracy(model.entry), origin, licence, *estimated))


def accuracy(entry: Mapping[str, Any]) -> str:
    """Return the span of each measure in a manifest entry, for example ``Dice, whole spine 0.58 to 0.86``."""
    values: dict[str, list[float]] = {}
    for row in entry.get("accuracy", []):
        values.setdefault(row["measure"], []).append(row["value"])
    if not values:
        return "accuracy not measured"
    return "; ".join(f"{name} {_span(numbers)}" for name, numbers in values.items())


def modelDetails(model: Model) -> str:
    """Return several lines about a model: its limits, training data and citation."""
    limits = [*model.entry.get("limits", []), model.preprocessing.estimated]
    parts = [model.title, bulletList([limit for limit in limits if limit])]
    parts += [f"{name}: {model.entry[key]}" for name, key in _DETAILS if model.entry.get(key)]
    return "\n".join(parts)


_DETAILS = (("Training data", "training_data"), ("Citation", "citation"))


def bulletList(sentences: Sequence[str]) -> str:
    """Return sentences one below the other, in lines short enough for a tool tip."""
    return "\n".join(textwrap.fill(sentence, 90, initial_indent="• ", subsequent_indent="  ") for sentence in sentences)


def limitsText(limits: Sequence[str], estimated: str | None = None) -> str:
    """Return what of a model is an estimate, the first of its limits, which is the gravest, and how many there are."""
    lines = [f"Estimate: {estimated}."] if estimated else []
    if limits:
        more = f" ({len(limits) - 1} more: hold the mouse here)" if len(limits) > 1 else ""
        lines.append(f"Know the limits: {limits[0]}{more}")
    return "\n".join(lines)


def missingCheckpoint(model: Model, path: Path) -> str:
    """Say that a model's checkpoint is not there and what to do."""
    note = f" {model.file.note}" if model.file.note else ""
    way = "download" if model.file.urls else "import"
    return f"This model is not installed: {way} it in the section Models below, or put its file at {path}.{note}"


def commandOutcome(lines: Sequence[str], status: int) -> str:
    """Return what a command ``segmamba models`` wrote that is worth showing: its error, or what it did."""
    if status == 0:
        return "\n".join(line for line in lines if line.startswith(COMMAND_NEWS))
    errors = [COMMAND_ERROR.sub("", line, count=1) for line in lines if COMMAND_ERROR.match(line)]
    if errors:
        return errors[-1]
    said = f" ({lines[-1]})" if lines else ""
    return f"The command ended with status {status}{said}: press 'Check installation' in the section Dependencies."


def forecastText(forecast: Forecast, need: int, free: int, secondsPerWindow: float | None) -> str:
    """Return one line about a run to come; ``need`` and ``free`` are bytes of memory, 0 if unknown."""
    x, y, z = forecast.size
    windows = f"{forecast.windows} window{'s' if forecast.windows != 1 else ''}"
    available = f" of {gibibytes(free)} free" if free else ""
    if secondsPerWindow is None:
        time = "time unknown until the first run"
    else:
        time = duration(secondsPerWindow * forecast.windows)
    memory = f", about {gibibytes(need)} memory{available}" if need else ""
    return f"Forecast: grid {x} × {y} × {z}, {windows}{memory}, {time}."


def memoryProblem(need: int, total: int, free: int) -> tuple[str, bool]:
    """Return a sentence where main memory is short (else an empty one), and whether the run cannot work at all."""
    if total and need > total:
        return (
            f"This needs about {gibibytes(need)} of memory and the computer has {gibibytes(total)}: limit the region "
            "with an ROI (Advanced), or use a computer with more memory.",
            True,
        )
    if free and need > free:
        return (
            f"This needs about {gibibytes(need)} of memory and {gibibytes(free)} are free: close other programs, or "
            "limit the region with an ROI (Advanced).",
            False,
        )
    return "", False


def gpuProblem(need: int, free: int) -> str:
    """Return a sentence where a GPU's memory is short, else an empty one."""
    if need <= free:
        return ""
    return (
        f"This needs about {gibibytes(need)} on the GPU and {gibibytes(free)} are free: close other programs, or "
        "choose the processor (Advanced)."
    )


def progressText(stage: str, remaining: float | None) -> str:
    """Return what the progress bar says."""
    text = STAGE_TITLES.get(stage, stage)
    return f"{text}, {duration(remaining)} left" if remaining is not None else text


def remainingSeconds(stage: str, fraction: float, seconds: float) -> float | None:
    """Return the time left of a run, ``seconds`` after its stage began; None while that cannot be told.

    Only the network's windows tell it: they are most of the time, and each takes as long as the one before.
    """
    if stage != "predict" or not 0 < fraction < 1:
        return None
    return seconds / fraction * (1 - fraction)


def segmentFlags(row: Mapping[str, Any], numbering: Mapping[str, Any] | None = None) -> list[str]:
    """Return what is to be looked at in a segment of the report; ``numbering`` is the report's, where it has one."""
    flags = []
    if (numbering or {}).get("levels", {}).get(str(row["value"]), 1.0) < UNSURE_NUMBER:
        flags.append("number unsure")
    if row.get("mean_confidence", 1.0) < LOW_CONFIDENCE:
        flags.append("low confidence")
    if row.get("at_border"):
        flags.append("cut off")
    return flags


def numberingText(report: Mapping[str, Any]) -> str:
    """Return why the vertebrae's numbers are not certain, and what else they could be; empty where they are certain."""
    doubt = numbering_doubt(report)
    if not doubt:
        return ""
    numbering = report["numbering"]
    sentences = [doubt, *numbering["variants"]]
    if numbering["runner_up"]:
        sentences.append(f"Next best ({numbering['runner_up_probability']:.0%}): {_rival(numbering)}.")
    return " ".join([*sentences, "Select a vertebra and renumber if needed."])


def refinementText(changes: Sequence[Mapping[str, Any]], level: str) -> str:
    """Return what refinement did to a level, by the report's list of changes; empty where it did nothing."""
    lines = [
        f"{REFINEMENT_STEPS.get(change['step'], change['step'])}: {changeText(change)}"
        for change in changes
        if change["level"] == level
    ]
    return f"Refinement of {level}\n{bulletList(lines)}" if lines else ""


def changeText(change: Mapping[str, Any]) -> str:
    """Return how much a change of a mask has added and removed."""
    amounts = (("+", change["added_ml"]), ("-", change["removed_ml"]))
    return ", ".join(f"{sign}{amount:.3g} mL" for sign, amount in amounts if amount) or "less than 0.001 mL"


def secondsPerWindow(report: Mapping[str, Any]) -> float:
    """Return how long one window took in a run."""
    run = report["run"]
    return report["timings_s"]["predict"] / (run["windows"] * 2 ** len(run["mirror_axes"]))


def _rival(numbering: Mapping[str, Any]) -> str:
    """Return what the next best numbering calls the vertebrae, and which of them it calls otherwise."""
    now, rival = [level_name(int(value)) for value in numbering["levels"]], numbering["runner_up"]
    # Where it leaves out another one, or none, they cannot be compared one by one.
    if len(now) != len(rival) or now == rival:
        return _ends(rival)
    others = [index for index, (name, other) in enumerate(zip(now, rival, strict=True)) if name != other]
    part = slice(others[0], others[-1] + 1)
    return f"{_ends(rival[part])} instead of {_ends(now[part])}"


def _ends(names: Sequence[str]) -> str:
    return f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]


def _span(numbers: list[float]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
