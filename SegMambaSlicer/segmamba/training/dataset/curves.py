"""The curves of a training as a picture: loss, learning rate and the Dice of the validations, from its log.

A picture that is redrawn at each validation needs no server and no further package, as TensorBoard would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segmamba.utils.atomic import atomic_write

CURVES = "curves.png"


def draw_curves(folder: Path) -> None:
    """Draw ``log.jsonl`` of a folder into `CURVES` beside it; without a log nothing is drawn.

    Raises
    ------
    OutputError
        The picture cannot be written.
    """
    entries = read_log(folder / "log.jsonl")
    losses = [(entry["iteration"], entry["loss"], entry["lr"]) for entry in entries if "loss" in entry]
    scores = [(entry["iteration"], entry["mean_dice"]) for entry in entries if "mean_dice" in entry]
    if not losses:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    iterations, values, rates = zip(*losses, strict=True)
    top.plot(iterations, values, color="tab:blue", label="loss (training)")
    top.set_ylabel("loss")
    if scores:
        right = top.twinx()
        right.plot(*zip(*scores, strict=True), color="tab:orange", marker="o", label="mean Dice (held-out cases)")
        right.set_ylabel("Dice")
        right.set_ylim(0, 1)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    bottom.plot(iterations, rates, color="0.4")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("iteration")
    with atomic_write(folder / CURVES, (".png",)) as file:
        figure.savefig(file, format="png")


def read_log(path: Path) -> list[Mapping[str, Any]]:
    """Return the entries of a log in their order; a line that a killed process left in part is passed over."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries
