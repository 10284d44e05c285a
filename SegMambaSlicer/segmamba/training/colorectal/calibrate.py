"""How sure a network must be before it says tumour: ``python -m segmamba.training.colorectal.calibrate``.

Trained on crops of which most hold a tumour, a network sees too many in whole scans. Painted scans of the training's
own anatomies (`benchmarks/colorectal.py paint`) tell by how much its logit of a tumour has to be lowered until there
are few false ones; the amount is taken off the bias of its last layer, so that whoever runs it need not know.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from segmamba.device import choose_device
from segmamba.errors import InputError, SegMambaError
from segmamba.labelmap import bounding_box, check_output, whole_file
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights, save_safetensors
from segmamba.training.arrays import read_arrays
from segmamba.training.colorectal.codes import TUMOUR_LABEL
from segmamba.training.colorectal.evaluate import answered_logits, tumours_found
from segmamba.training.config import Config, read_config

AMOUNTS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
LAST_BIAS = "out.conv.conv.bias"


def calibrate(config: Config, weights: Path, scans: Sequence[Path], most_false: float) -> tuple[nn.Module, list[dict]]:
    """Return the network with the smallest of `AMOUNTS` off its tumours' bias that is enough, and the figures of all.

    Parameters
    ----------
    config : Config
        Of the training.
    weights : Path
        Its result.
    scans : sequence of Path
        Painted scans, ``.npz``, none of a held-out subject.
    most_false : float
        False tumours over 1 mL a scan that are allowed. Where no amount is enough, the largest is taken.

    Returns
    -------
    network : Module
    rows : list of dict
        For each amount ``lowered``, ``tumours``, ``found`` and ``false_tumours`` of all scans, as `tumours_found`
        counts them, and whether it was ``taken``.

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
    counts: dict[float, dict[str, int]] = {amount: {} for amount in AMOUNTS}
    for file in scans:
        image, reference = read_arrays(file, ["image", "labels"], "'benchmarks/colorectal.py paint'")
        logits = answered_logits(network, image, config.channels, config.patch, device.dtype)
        lead = tumour_lead(logits).cpu().numpy()
        box = bounding_box((lead > 0) | (reference == TUMOUR_LABEL)) or (slice(0, 0),) * 3
        for amount in AMOUNTS:
            ours = TUMOUR_LABEL * (lead[box] > amount)
            for name, count in tumours_found(ours, reference[box], config.spacing).items():
                counts[amount][name] = counts[amount].get(name, 0) + count
    allowed = most_false * len(scans)
    taken = next((amount for amount in AMOUNTS if counts[amount]["false_tumours"] <= allowed), AMOUNTS[-1])
    network.get_parameter(LAST_BIAS).data[TUMOUR_LABEL] -= taken
    return network, [{"lowered": amount, **row, "taken": amount == taken} for amount, row in counts.items()]


def tumour_lead(logits: torch.Tensor) -> torch.Tensor:
    """Return by how much the logit of a tumour leads those of all other classes, (z, y, x) of (classes, z, y, x)."""
    others = torch.cat([logits[:TUMOUR_LABEL], logits[TUMOUR_LABEL + 1 :]]).amax(dim=0)
    return logits[TUMOUR_LABEL] - others


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m segmamba.training.colorectal.calibrate", description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the training's configuration")
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="the training's result")
    parser.add_argument("scans", type=Path, metavar="SCANS", help="folder of painted scans, none of a held-out subject")
    parser.add_argument("output", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--most-false", type=float, default=0.5, help="false tumours over 1 mL a scan (0.5)")
    options = parser.parse_args(arguments)
    try:
        check_output(options.output, (".safetensors",))
        scans = sorted(options.scans.glob("*.npz"))
        network, rows = calibrate(read_config(options.config), options.weights, scans, options.most_false)
        with whole_file(options.output, (".safetensors",)) as file:
            save_safetensors(network.cpu(), file)
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for row in rows:
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
