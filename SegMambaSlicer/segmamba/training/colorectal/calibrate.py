"""How sure a network must be before it says tumour: ``python -m segmamba.training.colorectal.calibrate``.

Trained on crops of which most hold a tumour, a network sees too many in whole scans. Painted scans of the training's
own anatomies (`benchmarks/colorectal.py paint`) tell which logit margin a component of tumour must reach somewhere
(`segmamba.inference.hysteresis`): the one with the best F0.5, in which precision weighs twice as much as sensitivity,
for a false tumour is the worse error of a demonstration. A model's manifest entry has that margin.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segmamba.errors import InputError, SegMambaError
from segmamba.inference.device import choose_device
from segmamba.inference.hysteresis import label_components_with_peak, logit_margin
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights
from segmamba.training.colorectal.labels import TUMOUR_LABEL
from segmamba.training.colorectal.validation import answered_logits, tumours_found
from segmamba.training.config import Config, read_config
from segmamba.training.synthesis.npz import read_arrays
from segmamba.utils.arrays import bounding_box

MARGINS = tuple(map(float, range(16)))
BETA = 0.5


def calibrate(config: Config, weights: Path, scans: Sequence[Path]) -> list[dict]:
    """Return for each of `MARGINS` the tumours that are found where components must reach it, and the false ones.

    Parameters
    ----------
    config : Config
        Of the training.
    weights : Path
        Its result.
    scans : sequence of Path
        Painted scans, ``.npz``, none of a held-out subject.

    Returns
    -------
    list of dict
        For each margin ``margin``, ``tumours``, ``found`` and ``false_tumours`` of all scans, as `tumours_found` counts
        them, ``f`` (see `f_score`), and whether it is ``taken``: the smallest with the best one.

    Raises
    ------
    InputError
        There are no scans, or one is damaged.
    ModelError
        The weights do not fit the configuration.
    """
    if not scans:
        raise InputError("There are no painted scans to calibrate with: paint some (Docs/colorectal.md).")
    network = build_network(config.architecture, **config.arguments).eval()
    load_weights(network, load_state_dict(weights))
    device = choose_device(config.device)
    network.to(device.name)
    counts: dict[float, dict[str, int]] = {high: {} for high in MARGINS}
    for file in scans:
        image, reference = read_arrays(file, ["image", "labels"], "'benchmarks/colorectal.py paint'")
        logits = answered_logits(network, image, config.channels, config.patch, device.dtype)
        margin = logit_margin(logits.softmax(dim=0), TUMOUR_LABEL).cpu().numpy()
        box = bounding_box((margin > 0) | (reference == TUMOUR_LABEL)) or (slice(0, 0),) * 3
        components, peaks = label_components_with_peak(margin[box])
        for high in MARGINS:
            ours = np.where((peaks >= high)[components], TUMOUR_LABEL, 0)
            for name, count in tumours_found(ours, reference[box], config.spacing).items():
                counts[high][name] = counts[high].get(name, 0) + count
    scores = {high: f_score(**row) for high, row in counts.items()}
    taken = max(scores, key=lambda high: scores[high])
    return [
        {"margin": high, **row, "f": round(scores[high], 3), "taken": high == taken} for high, row in counts.items()
    ]


def f_score(tumours: int, found: int, false_tumours: int) -> float:
    """Return F0.5 of the detection (van Rijsbergen, Information Retrieval, 1979), from 0, where none is found, to 1."""
    return (1 + BETA**2) * found / (BETA**2 * tumours + found + false_tumours) if found else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m segmamba.training.colorectal.calibrate", description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the training's configuration")
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="the training's result")
    parser.add_argument("scans", type=Path, metavar="SCANS", help="folder of painted scans, none of a held-out subject")
    options = parser.parse_args(arguments)
    try:
        scans = sorted(options.scans.glob("*.npz"))
        rows = calibrate(read_config(options.config), options.weights, scans)
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for row in rows:
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
