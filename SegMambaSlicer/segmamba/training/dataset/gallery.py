"""Which cases of a training are shown: some of the data set, and those on which its network does worst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segmamba.inference.device import choose_device
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights
from segmamba.training.dataset.cache import CachedCase
from segmamba.training.dataset.package import FAILURES, MODEL_FOLDER
from segmamba.training.dataset.pictures import draw_page, picture_of
from segmamba.training.dataset.plan import Plan
from segmamba.training.dataset.regions import written_classes
from segmamba.training.dataset.results import FoldResults
from segmamba.training.dataset.validation import logits_of
from segmamba.utils.words import counted

SHOWN, WORST = 12, 4


def draw_cases(cases: Sequence[CachedCase], plan: Plan, path: Path) -> None:
    """Draw up to `SHOWN` cases, evenly chosen, as the network sees them; a page that is there stays.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    if path.is_file():
        return
    places = np.unique(np.linspace(0, len(cases) - 1, min(SHOWN, len(cases))).round().astype(int))
    chosen = [cases[place] for place in places]
    pictures = [
        picture_of(case.name, case.image[0], np.asarray(case.labels), plan.spacing[::-1], plan.orientation)
        for case in chosen
    ]
    title = (
        f"{plan.dataset}: {len(chosen)} of {counted(len(cases), 'case')} on the network's grid; look for labels beside "
        "their organ"
    )
    draw_page(pictures, plan.class_names, path, title)


def draw_worst(cases: Sequence[CachedCase], plan: Plan, results: FoldResults, weights: Path) -> Path:
    """Draw the held-out cases of the lowest Dice, with the answer and the reference; return the page's path.

    Raises
    ------
    ModelError, DeviceError
        The weights are damaged, or the device is gone.
    OutputError
        The page cannot be written.
    """
    means = {name: float(np.mean(list(scores.values()))) for name, scores in results.scores.items() if scores}
    worst = sorted(means, key=lambda name: means[name])[:WORST]
    network = build_network(plan.recipe.architecture, **plan.recipe.arguments)
    load_weights(network, load_state_dict(weights))
    network.to(choose_device(plan.recipe.device).name).eval()
    pictures = []
    for case in (case for name in worst for case in cases if case.name == name):
        logits = logits_of(network, case, plan.patch)
        if plan.regions:
            written = [1 + plan.values.index(value) for value in plan.labels.values()]
            found = written_classes((logits > 0).cpu().numpy(), written)
        else:
            found = logits.argmax(dim=0).to("cpu").numpy().astype(np.uint8)
        title = f"{case.name}: Dice {means[case.name]:.2f}"
        pictures.append(
            picture_of(title, case.image[0], np.asarray(case.labels), plan.spacing[::-1], plan.orientation, found)
        )
    path = weights.parent / MODEL_FOLDER / FAILURES
    path.parent.mkdir(exist_ok=True)
    if pictures:
        held_out = counted(len(cases), "held-out case")
        draw_page(pictures, plan.class_names, path, f"{plan.dataset}: the worst of {held_out}")
    return path
