"""Choose the logit margin of tumours: ``python -m segmamba.training.colorectal.calibrate``.

A network that is trained on crops of which most have a tumour predicts too many in whole scans. The margin by which a
tumour's logit must exceed all others somewhere in a component (`segmamba.inference.hysteresis`) is that with the best
F0.5 of detection on synthetic CTs of the training's own anatomies (`segmamba.training.colorectal.render_scans`). F0.5
weights precision twice as much as sensitivity, because a false tumour is the worse error of a demonstration. The
margin is in the model's entry in the manifest.
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
from segmamba.training.colorectal.validation import predicted_logits, read_scan, tumours_found
from segmamba.training.config import Config, read_config
from segmamba.utils.arrays import bounding_box

MARGINS = tuple(map(float, range(16)))
BETA = 0.5


def calibrate(config: Config, weights: Path, scans: Sequence[Path]) -> list[dict]:
    """Return, for each of `MARGINS`, the detected and the false tumours of components that reach it.

    Parameters
    ----------
    config : Config
        Of the training run.
    weights : Path
        Its result.
    scans : sequence of Path
        Synthetic CTs, ``.npz``, none of a held-out subject.

    Returns
    -------
    list of dict
        For each ``margin``: ``tumours``, ``found`` and ``false_tumours`` of all scans (see `tumours_found`), ``f`` (see
        `f_score`), and ``chosen``: whether it is the smallest one with the best score.

    Raises
    ------
    InputError
        There are no scans, or one is damaged.
    ModelError
        The weights do not fit the configuration.
    """
    if not scans:
        raise InputError("There are no synthetic CTs to calibrate with: render some (Docs/colorectal.md).")
    network = build_network(config.architecture, **config.arguments).eval()
    load_weights(network, load_state_dict(weights))
    device = choose_device(config.device)
    network.to(device.name)
    counts: dict[float, dict[str, int]] = {margin: {} for margin in MARGINS}
    for file in scans:
        image, reference = read_scan(file)
        logits = predicted_logits(network, image, config.channels, config.patch, device.dtype)
        margins = logit_margin(logits.softmax(dim=0), TUMOUR_LABEL).cpu().numpy()
        box = bounding_box((margins > 0) | (reference == TUMOUR_LABEL)) or (slice(0, 0),) * 3
        components, peaks = label_components_with_peak(margins[box])
        for margin in MARGINS:
            predicted = np.where((peaks >= margin)[components], TUMOUR_LABEL, 0)
            for name, count in tumours_found(predicted, reference[box], config.spacing).items():
                counts[margin][name] = counts[margin].get(name, 0) + count
    scores = {margin: f_score(**row) for margin, row in counts.items()}
    chosen = max(scores, key=lambda margin: scores[margin])
    return [
        {"margin": margin, **row, "f": round(scores[margin], 3), "chosen": margin == chosen}
        for margin, row in counts.items()
    ]


def f_score(tumours: int, found: int, false_tumours: int) -> float:
    """Return F0.5 of the detection (van Rijsbergen, Information Retrieval, 1979), 0 to 1."""
    return (1 + BETA**2) * found / (BETA**2 * tumours + found + false_tumours) if found else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m segmamba.training.colorectal.calibrate", description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the training's configuration")
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="the training's result")
    parser.add_argument("scans", type=Path, metavar="SCANS", help="folder of synthetic CTs, none of a held-out subject")
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
