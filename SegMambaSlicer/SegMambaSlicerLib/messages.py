"""What the panel says, from what the engine knows. Functions that take and give values; no Qt.

Slicer's translators see what stands as it is in ``_(...)``: whole sentences, and names for what is put into them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from segmamba.inference.forecast import FINE_TIME, Forecast
from segmamba.models.manifest import Model
from segmamba.reporting.report import level_variants, numbering_doubt
from segmamba.spine.levels import level_name
from segmamba.utils.child import how_it_ended
from segmamba.utils.memory import gibibytes

# Share of a run that a stage takes, about: 512 x 512 x 133 voxels on a processor.
STAGES = {
    # Of a run on a server only.
    **{"send": 0.0, "queue": 0.0},
    **{"read": 0.02, "load": 0.05, "preprocess": 0.05, "predict": 0.78, "postprocess": 0.08, "write": 0.02},
    "fetch": 0.0,
}
STAGE_TITLES = {
    "send": _("Sending"),
    "queue": _("Waiting for the server"),
    "read": _("Reading"),
    "load": _("Loading the model"),
    "preprocess": _("Preparing"),
    "predict": _("Segmenting"),
    "postprocess": _("Cleaning up"),
    "write": _("Writing"),
    "fetch": _("Receiving"),
}
TASK_TITLES = {
    "vertebrae": _("Vertebrae"),
    "colorectal": _("Colorectal cancer (experimental)"),
    "brain-tumour": _("Brain tumour"),
}
# Legible on light and on dark grounds.
WARNING_STYLE = "color: #d9480f;"
# Below this mean probability of its voxels a segment is marked, and below this one of its level.
LOW_CONFIDENCE, UNSURE_NUMBER = 0.6, 0.9
# How the engine's summary of a single volume begins.
FOUND = re.compile(r"\d+ structures? found: ")
# More structures than this are not named above the table that lists them.
NAMED = 4
# What refinement does to a mask, by its steps.
REFINEMENT_STEPS = {
    "pieces": _("loose components and holes removed"),
    "split": _("separated from its neighbour"),
    "atlas": _("separated from the skull, and C1 from C2"),
    "remove": _("removed: not shaped like a vertebra"),
    "trim": _("trimmed to the shape of a vertebra"),
    "close": _("gaps closed"),
    "redraw": _("drawn again by the shapes of vertebrae"),
    "edit": _("cleaned after an edit"),
}
# What the command line puts before its errors, and the lines that say what it did.
COMMAND_ERROR = re.compile(r"segmamba: error: |FAIL  [^:]+: ")
COMMAND_NEWS = ("Installed: ", "Removed: ", "Note: ")
# Options of the command line in the engine's sentences, and what the panel has instead.
CONTROLS = (
    (re.compile(r"\(--modality (CT|MR)\)"), _("(Advanced, Modality: {choice})")),
    (re.compile(r"\(--roi\)"), _("(Advanced, Region)")),
    (re.compile(r"--device (?:auto or )?(cpu)"), _("another device (Advanced)")),
    (re.compile(r"with --as\b"), _("(Import as)")),
)


def inPanel(sentence: str) -> str:
    """Return a sentence of the engine with the panel's controls in the place of the command line's options.

    Examples
    --------
    >>> inPanel("If it is MR, say so (--modality MR).")
    'If it is MR, say so (Advanced, Modality: MR).'
    """
    for option, control in CONTROLS:
        sentence = option.sub(lambda found, control=control: control.format(choice="".join(found.groups())), sentence)
    return sentence


def taskTitle(task: str, otherwise: str | None = None) -> str:
    """Return a task's name for people; ``otherwise`` that of a model of the user's own, whose task it is."""
    return TASK_TITLES.get(task, otherwise or task.capitalize())


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
        return _("a few seconds")
    if seconds < 90:
        return _("about {number} s").format(number=round(seconds / 5) * 5)
    return _("about {number} min").format(number=round(seconds / 60))


def modelSummary(model: Model, origin: str) -> str:
    """Return one line about a model: modality, spacing, accuracy, where its file is from, licence, what to know."""
    x, y, z = model.preprocessing.spacing
    spacing = f"{x:.3g} × {y:.3g} × {z:.3g} mm"
    licence = model.entry.get("licence") or _("licence not stated")
    measured = accuracy(model.entry)
    first = measured[0] if measured else _("accuracy not measured")
    if measured[1:]:
        first = _("{first} (hover for {number} more)").format(first=first, number=len(measured) - 1)
    volumes = ", ".join(channel.name for channel in model.input_channels)
    takes = "/".join(model.modalities) + (f" ({volumes})" if volumes else "")
    said = [takes, spacing, first, origin, licence]
    if model.preprocessing.estimated:
        said.append(model.preprocessing.estimated)
    if model.caution:
        said.append(model.caution)
    return " · ".join(said)


def accuracy(entry: Mapping[str, Any]) -> list[str]:
    """Return the span of each measure in a manifest entry, for example ``Dice, whole spine 0.58 to 0.86``."""
    values: dict[str, list[float]] = {}
    for row in entry.get("accuracy", []):
        values.setdefault(row["measure"], []).append(row["value"])
    return [f"{name} {_span(numbers)}" for name, numbers in values.items()]


def modelDetails(model: Model) -> str:
    """Return several lines about a model: its accuracy, limits, training data and citation."""
    limits = [*model.entry.get("limits", []), model.preprocessing.estimated]
    parts = [model.title, bulletList([limit for limit in [*accuracy(model.entry), *limits] if limit])]
    parts += [f"{name}: {model.entry[key]}" for name, key in _DETAILS if model.entry.get(key)]
    return "\n".join(parts)


_DETAILS = ((_("Training data"), "training_data"), (_("Citation"), "citation"))


def bulletList(sentences: Sequence[str]) -> str:
    """Return sentences one below the other, in lines short enough for a tool tip."""
    return "\n".join(textwrap.fill(sentence, 90, initial_indent="• ", subsequent_indent="  ") for sentence in sentences)


def limitsText(limits: Sequence[str], estimated: str | None = None) -> str:
    """Return what of a model is an estimate, the first of its limits, which is the gravest, and how many there are."""
    lines = [_("Note: {what}.").format(what=estimated)] if estimated else []
    if len(limits) > 1:
        text = _("Limitations: {first} (hover for {number} more)")
        lines.append(text.format(first=limits[0], number=len(limits) - 1))
    elif limits:
        lines.append(_("Limitations: {first}").format(first=limits[0]))
    return "\n".join(lines)


def outcomeText(report: Mapping[str, Any]) -> str:
    """Return what a run found, and its warnings; what the table below lists, or says of the levels, is not repeated."""
    found = [row["name"] for row in report.get("segments", [])]
    said = report["summary"]
    # That of a sequence is about its items.
    if found and FOUND.match(said):
        if len(found) == 1:
            said = _("1 structure found: {name}.").format(name=found[0])
        elif len(found) <= NAMED:
            said = _("{number} structures found: {names}.").format(number=len(found), names=", ".join(found))
        else:
            said = _("{number} structures found.").format(number=len(found))
    return " ".join([said, *report["run"]["warnings"], *report["run"].get("notes", [])])


def missingCheckpoint(model: Model, path: Path) -> str:
    """Say that a model's checkpoint is not there and what to do."""
    if model.file.urls:
        said = _("This model is not installed: download it in the section Models below, or put its file at {path}.")
    else:
        said = _("This model is not installed: import it in the section Models below, or put its file at {path}.")
    return " ".join(filter(None, (said.format(path=path), model.file.note)))


def commandOutcome(lines: Sequence[str], status: int) -> str:
    """Return what a command ``segmamba models`` wrote that is worth showing: its error, or what it did."""
    if status == 0:
        return "\n".join(line for line in lines if line.startswith(COMMAND_NEWS))
    errors = [COMMAND_ERROR.sub("", line, count=1) for line in lines if COMMAND_ERROR.match(line)]
    if errors:
        return errors[-1]
    end = how_it_ended(status, lines)
    if end.killed:
        return _("The command was killed, most likely because memory ran out: close other programs and try again.")
    if end.crash:
        text = _("The command crashed ({crash}): press 'Check installation' in the section Dependencies.")
        return text.format(crash=end.crash)
    if not lines:
        text = _("The command ended with status {status}: press 'Check installation' in the section Dependencies.")
        return text.format(status=status)
    text = _("The command ended with status {status} ({line}): press 'Check installation' in the section Dependencies.")
    return text.format(status=status, line=lines[-1])


def forecastText(
    forecast: Forecast, need: int, free: int, secondsPerWindow: float | None, server: str | None = None
) -> str:
    """Return one line about a run to come; ``need`` and ``free`` are bytes of memory, 0 if unknown.

    ``server`` is where it will be, None for this computer.
    """
    grid = _("grid {size}").format(size=" × ".join(map(str, forecast.size)))
    said = [grid, _("1 window") if forecast.windows == 1 else _("{number} windows").format(number=forecast.windows)]
    if need and free:
        said.append(_("about {need} of {free} free memory").format(need=gibibytes(need), free=gibibytes(free)))
    elif need:
        said.append(_("about {need} of memory").format(need=gibibytes(need)))
    if server is not None:
        said.append(_("on the server {address}").format(address=server))
    elif secondsPerWindow is None:
        said.append(_("time unknown until the first run"))
    else:
        said.append(duration(secondsPerWindow * forecast.work))
    return _("Forecast: {what}.").format(what=", ".join(said))


def memoryProblem(need: int, total: int, free: int) -> tuple[str, bool]:
    """Return a sentence where main memory is short (else an empty one), and whether the run cannot work at all."""
    if total and need > total:
        text = _(
            "This needs about {need} of memory and the computer has {total}: limit the region with an ROI (Advanced), "
            "or use a computer with more memory."
        )
        return text.format(need=gibibytes(need), total=gibibytes(total)), True
    if free and need > free:
        text = _(
            "This needs about {need} of memory and {free} are free: close other programs, or limit the region with an "
            "ROI (Advanced)."
        )
        return text.format(need=gibibytes(need), free=gibibytes(free)), False
    return "", False


def gpuProblem(window: int, need: int, free: int) -> str:
    """Return a sentence where a GPU's memory is short, else an empty one.

    ``window`` is what it cannot do without, and ``need`` what it takes to keep the whole answer there.
    """
    if window > free:
        text = _(
            "This needs about {need} on the GPU and {free} are free: close other programs, or choose the CPU "
            "(Advanced)."
        )
        return text.format(need=gibibytes(window), free=gibibytes(free))
    if need > free:
        text = _(
            "The result needs about {need} on the GPU and {free} are free: it will be assembled in main memory, which "
            "is slower."
        )
        return text.format(need=gibibytes(need), free=gibibytes(free))
    return ""


def progressText(stage: str, remaining: float | None) -> str:
    """Return what the progress bar says."""
    text = STAGE_TITLES.get(stage, stage)
    if remaining is None:
        return text
    return _("{stage}, {time} left").format(stage=text, time=duration(remaining))


def remainingSeconds(stage: str, fraction: float, seconds: float) -> float | None:
    """Return the time left of a run, ``seconds`` after its stage began; None while that cannot be told.

    Only the network's windows tell it: they are most of the time, and each takes as long as the one before.
    """
    if stage != "predict" or not 0 < fraction < 1:
        return None
    return seconds / fraction * (1 - fraction)


def segmentFlags(
    row: Mapping[str, Any], numbering: Mapping[str, Any] | None = None, earlier: bool = False
) -> list[str]:
    """Return what is to be looked at in a segment of the report; ``numbering`` is the report's, where it has one."""
    flags = [_("earlier run")] if earlier else []
    if (numbering or {}).get("levels", {}).get(str(row["value"]), 1.0) < UNSURE_NUMBER:
        flags.append(_("level uncertain"))
    set_here = [anchor["set_by"] for anchor in (numbering or {}).get("anchors", []) if _isOf(anchor, row)]
    if set_here:
        flags.append(_("level set by you") if "person" in set_here else _("level from another segmentation"))
    if row.get("mean_confidence", 1.0) < LOW_CONFIDENCE:
        flags.append(_("low confidence"))
    if row.get("at_border"):
        flags.append(_("cut off"))
    return flags


def _isOf(anchor: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Say whether an anchor has set the level of a row's segment."""
    return bool(anchor["used"]) and row["name"].split()[0] == anchor["level"]


def anchorsText(levels: Sequence[str]) -> str:
    """Return what the panel says of the levels that a person has set in a volume; empty where there are none."""
    if not levels:
        return ""
    if len(levels) == 1:
        return _("{level} was set by you: this holds when you segment again.").format(level=levels[0])
    text = _("{levels} were set by you: this holds when you segment again.")
    return text.format(levels=_("{first} and {last}").format(first=", ".join(levels[:-1]), last=levels[-1]))


def numberingText(report: Mapping[str, Any]) -> str:
    """Return why the vertebral levels are uncertain, what is unusual in them and what else they could be.

    Empty where the levels are certain and as usual.
    """
    doubt, variants = numbering_doubt(report), level_variants(report)
    if not doubt and not variants:
        return ""
    numbering = report["numbering"]
    sentences = [doubt, *variants] if doubt else [*variants]
    if doubt and numbering["runner_up"]:
        text = _("Second most likely ({probability}): {numbers}.")
        probability = f"{numbering['runner_up_probability']:.0%}"
        sentences.append(text.format(probability=probability, numbers=_rival(numbering)))
    return " ".join([*sentences, _("Select a vertebra and renumber it if needed.")])


def refinementText(changes: Sequence[Mapping[str, Any]], level: str) -> str:
    """Return what refinement did to a level, by the report's list of changes; empty where it did nothing."""
    lines = [f"{_stepText(change)}: {changeText(change)}" for change in changes if change["level"] == level]
    title = _("Refinement of {level}").format(level=level)
    return f"{title}\n{bulletList(lines)}" if lines else ""


def _stepText(change: Mapping[str, Any]) -> str:
    """Return what a step of the refinement does, and why it was done where the report says so."""
    step = REFINEMENT_STEPS.get(change["step"], change["step"])
    return f"{step} ({change['reason']})" if "reason" in change else step


def changeText(change: Mapping[str, Any]) -> str:
    """Return how much a change of a mask has added and removed."""
    amounts = (("+", change["added_ml"]), ("-", change["removed_ml"]))
    return ", ".join(f"{sign}{amount:.3g} mL" for sign, amount in amounts if amount) or _("less than 0.001 mL")


def secondsPerWindow(report: Mapping[str, Any]) -> float:
    """Return how long one window of the first stage took in a run; see `segmamba.inference.forecast.Forecast.work`."""
    run = report["run"]
    windows = run.get("work", run["windows"]) * 2 ** len(run["tta_axes"])
    return report["timings_s"]["predict"] / (windows + FINE_TIME * run.get("fine", {}).get("work", 0))


def _rival(numbering: Mapping[str, Any]) -> str:
    """Return what the next best numbering calls the vertebrae, and which of them it calls otherwise."""
    now, rival = [level_name(int(value)) for value in numbering["levels"]], numbering["runner_up"]
    # Where it leaves out another one, or none, they cannot be compared one by one.
    if len(now) != len(rival) or now == rival:
        return _ends(rival)
    others = [index for index, (name, other) in enumerate(zip(now, rival, strict=True)) if name != other]
    part = slice(others[0], others[-1] + 1)
    return _("{rival} instead of {now}").format(rival=_ends(rival[part]), now=_ends(now[part]))


def _ends(names: Sequence[str]) -> str:
    return _("{first} to {last}").format(first=names[0], last=names[-1]) if len(names) > 1 else names[0]


def _span(numbers: list[float]) -> str:
    low, high = f"{min(numbers):.2f}", f"{max(numbers):.2f}"
    return low if low == high else _("{first} to {last}").format(first=low, last=high)
