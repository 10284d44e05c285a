"""SegMamba-V2 against its peers on colorectal cancer, all trained alike: paint scans, train, measure.

``python benchmarks/colorectal.py paint HELD_OUT_MAP OUT_FOLDER`` paints whole scans of an anatomy that is not trained
on. ``train CONFIG VARIANT`` trains the network of a configuration, or what it is compared with. ``measure CONFIG
VARIANT --synthetic FOLDER --real CT LABELS`` measures it on such scans, and on a real CT with TotalSegmentator labels.
JSON lines.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import monai_peer  # noqa: E402

from segmamba.evaluation.metrics import dice_of_all, overlap_table, table_dice  # noqa: E402
from segmamba.labelmap import whole_file  # noqa: E402
from segmamba.manifest import Preprocessing, load_manifest  # noqa: E402
from segmamba.networks import build_network, parameter_count  # noqa: E402
from segmamba.networks.checkpoint import load_state_dict, load_weights  # noqa: E402
from segmamba.preprocess import to_model_grid  # noqa: E402
from segmamba.training.arrays import read_arrays  # noqa: E402
from segmamba.training.canvas import Canvas  # noqa: E402
from segmamba.training.colorectal.atlas import BowelMap, load_bowel_maps  # noqa: E402
from segmamba.training.colorectal.codes import LABELS, TUMOUR_LABEL  # noqa: E402
from segmamba.training.colorectal.evaluate import answered, tumours_found  # noqa: E402
from segmamba.training.colorectal.plan import draw_tumours  # noqa: E402
from segmamba.training.colorectal.samples import scan  # noqa: E402
from segmamba.training.config import Config, read_config  # noqa: E402
from segmamba.training.evaluate import HOUNSFIELD  # noqa: E402
from segmamba.training.loop import train  # noqa: E402
from segmamba.training.tissues import SPACING  # noqa: E402
from segmamba.volume import read_volume, to_image  # noqa: E402

# What a variant changes in a configuration; the budget stays. The U-Net has as many parameters (14.8 M against 14.9 M).
VARIANTS = {
    "segmamba-v2": ("", {}),
    "one-orientation": ("", {"orientations": 1}),
    "strided": ("", {"hierarchical": False}),
    "monai-unet": ("monai_unet", {"features": [32, 64, 128, 256, 384]}),
}
# TotalSegmentator's colon has the rectum in it.
TOTALSEGMENTATOR_COLON = 20
LARGEST_SCAN_MM = (480.0, 340.0, 420.0)


def variant_of(config: Config, name: str) -> Config:
    """Return the configuration of a variant; it has a folder of its own."""
    architecture, changes = VARIANTS[name]
    if architecture:
        channels = {key: config.arguments[key] for key in ("in_channels", "out_channels")}
        return replace(config, architecture=architecture, arguments=channels | changes, folder=name)
    return replace(config, arguments=config.arguments | changes, folder=name)


def paint(maps: Sequence[BowelMap], output: Path, count: int, spacing: float, seed: int) -> None:
    """Write ``count`` whole scans of each map as evaluation cases."""
    output.mkdir(parents=True, exist_ok=True)
    for bowel in maps:
        shape = np.minimum(np.array(bowel.packed.shape) * SPACING, LARGEST_SCAN_MM)
        patch = tuple(int(n) for n in shape / spacing)
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            generator = torch.Generator(bowel.packed.device).manual_seed(seed + number)
            canvas = Canvas((patch[0], patch[1], patch[2]), spacing, bowel.packed.device, rng, generator)
            tumours = draw_tumours(bowel.seeds, rng)
            image, tissues = scan(bowel, tumours, (np.array(bowel.packed.shape) - 1) / 2, canvas, cut=False)
            arrays = {"image": image.cpu().numpy().round().astype(np.int16), "labels": tissues.labels.cpu().numpy()}
            arrays["labels"] = arrays["labels"].astype(np.uint8)
            with whole_file(output / f"{bowel.subject}-{number:02}.npz", (".npz",)) as file:
                np.savez_compressed(file, **arrays)


def trained(config: Config) -> nn.Module:
    """Return a configuration's trained network, on the GPU if there is one."""
    network = build_network(config.architecture, **config.arguments).eval()
    load_weights(network, load_state_dict(config.base / config.folder / "weights.safetensors"))
    return network.to("cuda" if torch.cuda.is_available() else "cpu")


def on_synthetic(network: nn.Module, config: Config, files: Sequence[Path]) -> dict[str, object]:
    """Print a line for each scan and return the figures of all."""
    dices: dict[str, list[float]] = {name: [] for name in LABELS}
    counts = {"tumours": 0, "found": 0, "false_tumours": 0}
    for file in files:
        intensities, reference = read_arrays(file, ["image", "labels"], "'benchmarks/colorectal.py paint'")
        start = time.monotonic()
        labels = answered(network, intensities, config.channels, config.patch, _dtype(network))
        table, found = overlap_table(labels, reference), tumours_found(labels, reference, config.spacing)
        entry = {n: round(table_dice(table, v, v), 4) for n, v in LABELS.items() if (reference == v).any()}
        for name, value in entry.items():
            dices[name].append(value)
        counts = {key: counts[key] + found[key] for key in counts}
        print(json.dumps({"scan": file.stem, **entry, **found, "s": round(time.monotonic() - start, 1)}), flush=True)
    means = {f"mean dice {name}": round(float(np.mean(values)), 4) for name, values in dices.items() if values}
    return {
        "scans": len(files),
        **means,
        "tumours over 1 mL": counts["tumours"],
        "detected": round(counts["found"] / max(1, counts["tumours"]), 4),
        "false tumours a scan": round(counts["false_tumours"] / max(1, len(files)), 4),
    }


def on_real(network: nn.Module, config: Config, image: Path, labels: Path) -> dict[str, object]:
    """Return the Dice of colon, rectum and tumour together against TotalSegmentator's colon, and the tumours found."""
    grid_of = Preprocessing("LPS", (config.spacing,) * 3, "linear", -500.0, -1024.0, (HOUNSFIELD,))
    model = replace(load_manifest().models[0], preprocessing=grid_of)
    intensities, grid = to_model_grid(read_volume(image), model)
    answer = answered(network, intensities[0], config.channels, config.patch, _dtype(network))
    theirs = read_volume(labels)
    on_grid = sitk.Resample(
        to_image((theirs.array == TOTALSEGMENTATOR_COLON).astype(np.uint8), theirs.geometry),
        grid.geometry.size,
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        grid.geometry.origin,
        grid.geometry.spacing,
        grid.geometry.direction,
    )
    reference = sitk.GetArrayFromImage(on_grid)
    nothing = np.zeros_like(answer)
    return {
        "real": image.name,
        "dice colon and rectum": round(dice_of_all(answer, reference), 4),
        "false tumours over 1 mL": tumours_found(answer, nothing, config.spacing)["false_tumours"],
        "tumour mL": round(float((answer == TUMOUR_LABEL).sum()) * config.spacing**3 / 1000, 1),
    }


def _dtype(network: nn.Module) -> torch.dtype:
    return torch.bfloat16 if next(network.parameters()).is_cuda else torch.float32


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    painting = commands.add_parser("paint")
    painting.add_argument("maps", type=Path, nargs="+", help=".npz of held-out subjects")
    painting.add_argument("output", type=Path)
    painting.add_argument("--count", type=int, default=24)
    painting.add_argument("--spacing", type=float, default=1.75)
    painting.add_argument("--seed", type=int, default=0)
    for name in ("train", "measure"):
        command = commands.add_parser(name)
        command.add_argument("config", type=Path)
        command.add_argument("variant", choices=VARIANTS)
        if name == "train":
            command.add_argument("--minutes", type=float, default=math.inf)
        else:
            command.add_argument("--synthetic", type=Path, help="folder of painted scans")
            command.add_argument("--real", type=Path, nargs=2, action="append", default=[], metavar=("CT", "LABELS"))
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    options = parsed()
    if options.command == "paint":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        paint(load_bowel_maps(options.maps, device), options.output, options.count, options.spacing, options.seed)
        return
    monai_peer.register()
    config = variant_of(read_config(options.config), options.variant)
    if options.command == "train":
        train(config, options.minutes)
        return
    network = trained(config)
    start = {"variant": options.variant, "parameters": parameter_count(network)}
    if options.synthetic:
        figures = on_synthetic(network, config, sorted(options.synthetic.glob("*.npz")))
        print(json.dumps(start | figures), flush=True)
    for image, labels in options.real:
        print(json.dumps(start | on_real(network, config, image, labels)), flush=True)


if __name__ == "__main__":
    main()
