"""SegMamba-V2 against its peers on colorectal cancer, all trained alike: train, measure.

``python benchmarks/colorectal.py train CONFIG VARIANT`` trains the network of a configuration, or what it is compared
with. ``measure CONFIG VARIANT --synthetic FOLDER --real CT LABELS`` measures it on synthetic CTs of an anatomy that is
not trained on (``python -m segmamba.training.colorectal.render_scans``), and on real CTs with TotalSegmentator labels;
``--pictures PAGE.png`` draws the scans with the worst tumours and the real CTs where they are most wrong.
``bundled CT LABELS`` measures the bundled model on a real CT as a user gets it.
JSON lines, also to the file that ``--output`` names; ``table RESULTS.jsonl ...`` makes a table of such files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import monai_peer  # noqa: E402
from failure_page import Picture, draw, worst_slice  # noqa: E402

from segmamba.evaluation.metrics import (  # noqa: E402  # noqa: E402
    confusion_matrix,
    dice_foreground,
    dice_from_confusion,
)
from segmamba.inference.context import RunContext  # noqa: E402
from segmamba.inference.device import cpu_precision  # noqa: E402
from segmamba.inference.hysteresis import suppress_below_margin  # noqa: E402
from segmamba.inference.pipeline import segment  # noqa: E402
from segmamba.inference.preprocess import padding_values, resample_to_model  # noqa: E402
from segmamba.inference.sliding_window import predict  # noqa: E402
from segmamba.inference.windows import Windows  # noqa: E402
from segmamba.io.read import read_volume
from segmamba.io.volume import Geometry, Volume, image_geometry, to_image
from segmamba.models.manifest import Preprocessing, load_manifest  # noqa: E402
from segmamba.networks import build_network, parameter_count  # noqa: E402
from segmamba.networks.checkpoint import load_state_dict, load_weights  # noqa: E402
from segmamba.request import Options  # noqa: E402
from segmamba.training.colorectal.labels import COLON_LABEL, LABELS, TUMOUR_LABEL  # noqa: E402
from segmamba.training.colorectal.map_format import field_centre  # noqa: E402
from segmamba.training.colorectal.validation import (  # noqa: E402
    CONTENT_NAMES,
    field_of_view,
    found_in,
    read_regions,
    read_scan,
    tumours_by_part,
    tumours_found,
)
from segmamba.training.colorectal.zones import ZONES  # noqa: E402
from segmamba.training.config import Config, read_config  # noqa: E402
from segmamba.training.loop import train  # noqa: E402
from segmamba.training.synthesis.synthesizer import normalize  # noqa: E402
from segmamba.training.synthesis.tissue_labels import VERTEBRA_CLASSES  # noqa: E402

# What a variant changes in a configuration; the budget stays. The U-Net has as many parameters (14.8 M against 14.9 M).
VARIANTS = {
    "segmamba-v2": ("", {}),
    "one-orientation": ("", {"orientations": 1}),
    "strided": ("", {"hierarchical": False}),
    "monai-unet": ("monai_unet", {"features": [32, 64, 128, 256, 384]}),
}
# TotalSegmentator's colon has the rectum in it.
TOTALSEGMENTATOR_COLON = 20
# The axis along which half of the training's samples are mirrored.
LEFT_RIGHT = 2
# Synthetic CTs on a page of pictures.
WORST = 6


def variant_of(config: Config, name: str) -> Config:
    """Return the configuration of a variant; it has a folder of its own."""
    architecture, changes = VARIANTS[name]
    if architecture:
        channels = {key: config.arguments[key] for key in ("in_channels", "out_channels")}
        return replace(config, architecture=architecture, arguments=channels | changes, folder=name)
    return replace(config, arguments=config.arguments | changes, folder=name)


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network and how it is run."""

    network: nn.Module
    config: Config
    overlap: float
    flip_axes: tuple[int, ...] = ()
    min_margin: float = 0.0

    def labels(self, image: torch.Tensor, pad_values: tuple[float, ...] | None = None) -> np.ndarray:
        """Return the most probable class (z, y, x), uint8, of a network's input (channels, z, y, x)."""
        device = next(self.network.parameters()).device
        dtype = torch.bfloat16 if device.type == "cuda" else getattr(torch, cpu_precision())
        windows = Windows(self.config.patch, self.overlap, self.flip_axes, pad_values)
        answer = predict(self.network, image, windows, RunContext(device, dtype)).values
        suppress_below_margin(answer, TUMOUR_LABEL, self.min_margin)
        return answer.argmax(dim=0).to(torch.uint8).cpu().numpy()


def trained(config: Config, weights: Path | None) -> nn.Module:
    """Return a configuration's trained network, on the GPU if there is one; ``weights`` stand for those of its run."""
    network = build_network(config.architecture, **config.arguments).eval()
    load_weights(network, load_state_dict(weights or config.base / config.folder / "weights.safetensors"))
    return network.to("cuda" if torch.cuda.is_available() else "cpu")


def on_synthetic(subject: Subject, file: Path, field_mm: float = 0.0) -> tuple[dict[str, Any], Picture]:
    """Return the results of one synthetic CT, without other post-processing, and a picture of its worst slice.

    ``field_mm``: side of a square that it is cropped to first, or 0.
    """
    config = subject.config
    intensities, reference = read_scan(file)
    parts, contents, centre = read_regions(file)
    if field_mm:
        index = field_of_view(intensities.shape, centre, field_mm, (config.spacing,) * 2)
        intensities, reference, parts, contents = (array[index] for array in (intensities, reference, parts, contents))
    start = time.monotonic()
    labels = subject.labels(normalize(torch.from_numpy(intensities.astype(np.float32))[None], config.channels))
    table, found = confusion_matrix(labels, reference), tumours_found(labels, reference, config.spacing)
    dices = {
        f"dice {n}": round(dice_from_confusion(table, v, v), 4) for n, v in LABELS.items() if (reference == v).any()
    }
    volume = float((reference == TUMOUR_LABEL).sum()) * config.spacing**3 / 1000
    entry = {"scan": file.stem, "field": field_mm, **dices, "tumour mL": round(volume, 1), **found}
    entry["dice bowel"] = round(dice_foreground(labels, reference), 4)
    entry["found by part"] = found_in(labels, reference, parts, ZONES)
    entry["found by content"] = found_in(labels, reference, contents, CONTENT_NAMES)
    by_part = tumours_by_part(labels, reference, parts, config.spacing)
    entry["tumours by part"] = {ZONES[part - 1]: counts for part, counts in by_part.items() if part}
    tumour = f"tumour Dice {dices['dice tumour']:.2f}" if "dice tumour" in dices else "no tumour"
    title = f"{file.stem}: {tumour}, {found['false_tumours']} false"
    wrong = (labels == TUMOUR_LABEL) != (reference == TUMOUR_LABEL)
    picture = worst_slice(title, intensities, labels, reference, wrong)
    return entry | {"s": round(time.monotonic() - start, 1)}, picture


def of_all(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the results of all synthetic CTs."""
    dices = {name: [e[f"dice {name}"] for e in entries if f"dice {name}" in e] for name in LABELS}
    tumours = sum(e["tumours"] for e in entries)
    return {
        "scans": len(entries),
        "field": entries[0]["field"],
        "mean dice bowel": round(float(np.mean([e["dice bowel"] for e in entries])), 4),
        **{key: means(entries, key) for key in ("found by part", "found by content")},
        "tumours by part": sums(entries),
        **{f"mean dice {name}": round(float(np.mean(values)), 4) for name, values in dices.items() if values},
        "tumours over 1 mL": tumours,
        "detected": round(sum(e["found"] for e in entries) / max(1, tumours), 4),
        "false tumours a scan": round(sum(e["false_tumours"] for e in entries) / max(1, len(entries)), 4),
    }


def means(entries: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    """Return the means over scans of values by name."""
    names = dict.fromkeys(name for entry in entries for name in entry[key])
    return {name: round(float(np.mean([e[key][name] for e in entries if name in e[key]])), 4) for name in names}


def sums(entries: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Return the number of tumours and of those detected in each part of the bowel."""
    table: dict[str, list[int]] = {}
    for entry in entries:
        for part, counts in entry["tumours by part"].items():
            table[part] = [a + b for a, b in zip(table.get(part, [0, 0]), counts, strict=True)]
    return table


def on_real(subject: Subject, image: Path, labels: Path, field_mm: float = 0.0) -> tuple[dict[str, Any], list[Picture]]:
    """Return the results of a real CT of a patient without a tumour, and pictures of its worst slices.

    The input is what the product makes of the CT; nothing else is post-processed. TotalSegmentator's colon has the
    rectum in it, and wall and contents, so our three labels together are compared with it. ``field_mm``: side of a
    square, `IN_FRONT_MM` in front of the vertebrae of the labels, that the CT is cropped to first, with all its slices,
    or 0.
    """
    config, volume = subject.config, read_volume(image)
    if field_mm:
        volume = narrowed(volume, read_volume(labels), field_mm)
    grid_of = Preprocessing("LPS", (config.spacing,) * 3, "linear", -500.0, -1024.0, config.channels)
    model = replace(load_manifest().models[0], preprocessing=grid_of)
    channels, grid = resample_to_model(volume, model)
    start = time.monotonic()
    tensor = torch.from_numpy(channels)
    answer = subject.labels(tensor, padding_values(model, tensor))
    seconds = time.monotonic() - start
    reference = colon_of(labels, grid.geometry)
    entry = real_results(image, answer, reference, config.spacing) | {"field": field_mm}
    entry["part of the bowel found"] = round(float((answer[reference > 0] > 0).mean()), 4) if reference.any() else None
    dice, false = entry["dice colon and rectum"], entry["false tumours over 1 mL"]
    entry["s"] = round(seconds, 1)
    # The widest channel shows the CT; what it is drawn with is HU again.
    wide = max(range(len(config.channels)), key=lambda n: config.channels[n].high - config.channels[n].low)
    channel = config.channels[wide]
    hounsfield = channels[wide] * channel.std + channel.mean
    wrong = {
        f"{image.name}: bowel that is missed (Dice {dice:.2f})": (answer == 0) & (reference > 0),
        "bowel where there is none": (answer > 0) & (reference == 0),
        f"tumour ({false} false ones over 1 mL)": answer == TUMOUR_LABEL,
    }
    theirs_shown = COLON_LABEL * reference
    return entry, [worst_slice(title, hounsfield, answer, theirs_shown, mask) for title, mask in wrong.items()]


def narrowed(volume: Volume, labels: Volume, side_mm: float) -> Volume:
    """Return a CT that is cropped in x and y around a point in front of its vertebrae (TotalSegmentator's labels)."""
    image = sitk.DICOMOrient(to_image(volume.array, volume.geometry), "LPS")
    geometry = image_geometry(image)
    theirs = on_grid(np.isin(labels.array, VERTEBRA_CLASSES).astype(np.uint8), labels.geometry, geometry)
    centre = field_centre(theirs, geometry.spacing[1])
    index = field_of_view(theirs.shape, centre, side_mm, (geometry.spacing[1], geometry.spacing[0]))
    z, y, x = (slice(*part.indices(size)) for part, size in zip(index, theirs.shape, strict=True))
    cropped = image[x, y, z]
    return replace(volume, array=sitk.GetArrayFromImage(cropped), geometry=image_geometry(cropped))


def bundled(image: Path, labels: Path) -> dict[str, Any]:
    """Return the results of the bundled model on a real CT as a user gets them: post-processed, on the CT's grid."""
    volume = read_volume(image)
    answer = segment(volume, load_manifest().default("colorectal"), Options()).labels
    edge = volume.geometry.voxel_volume ** (1 / 3)
    return real_results(image, answer, colon_of(labels, volume.geometry), edge)


def real_results(image: Path, answer: np.ndarray, reference: np.ndarray, edge: float) -> dict[str, Any]:
    """Return the results of labels (z, y, x) on a real CT without a tumour; ``edge`` is that of a voxel in mm."""
    return {
        "real": image.name,
        "dice colon and rectum": round(dice_foreground(answer, reference), 4),
        "false tumours over 1 mL": tumours_found(answer, np.zeros_like(answer), edge)["false_tumours"],
        "tumour mL": round(float((answer == TUMOUR_LABEL).sum()) * edge**3 / 1000, 1),
    }


def colon_of(labels: Path, geometry: Geometry) -> np.ndarray:
    """Return TotalSegmentator's colon on a grid, (z, y, x) of 0 and 1."""
    theirs = read_volume(labels)
    return on_grid((theirs.array == TOTALSEGMENTATOR_COLON).astype(np.uint8), theirs.geometry, geometry)


def on_grid(labels: np.ndarray, geometry: Geometry, target: Geometry) -> np.ndarray:
    """Return a label map (z, y, x) on another grid, by nearest neighbours."""
    resampled = sitk.Resample(
        to_image(labels, geometry),
        target.size,
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        target.origin,
        target.spacing,
        target.direction,
    )
    return sitk.GetArrayFromImage(resampled)


def measure(options: argparse.Namespace, config: Config) -> None:
    """Print the results of all scans and CTs, and draw the worst."""
    flip_axes = (LEFT_RIGHT,) if options.tta else ()
    subject = Subject(trained(config, options.weights), config, options.overlap, flip_axes, options.min_margin)
    start = {"variant": options.variant, "parameters": parameter_count(subject.network)}

    def tell(entry: dict[str, Any]) -> None:
        text = json.dumps(start | entry)
        print(text, flush=True)
        if options.output:
            with options.output.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    files = sorted(options.synthetic.glob("*.npz"))[: options.most] if options.synthetic else []
    pictures = []
    for field in (0.0, *options.fields):
        entries = []
        for path in files:
            entry, picture = on_synthetic(subject, path, field)
            tell(entry)
            entries.append(entry)
            if not field:
                pictures.append((entry.get("dice tumour", 1.0), -entry["false_tumours"], picture))
        if entries:
            tell(of_all(entries))
    pictures.sort(key=lambda item: item[:2])
    page = [picture for *_, picture in pictures[:WORST]]
    for image, labels in options.real:
        for field in (0.0, *options.fields):
            entry, slices = on_real(subject, image, labels, field)
            tell(entry)
            page += [] if field else slices
    if options.pictures:
        draw(page, options.pictures)


def table(files: Sequence[Path]) -> str:
    """Return several results as a table in Markdown: a row for each network, on all scans and CTs."""
    lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    columns = dict.fromkeys(name for line in lines for name in _cells(line))
    rows: dict[str, dict[str, Any]] = {}
    for line in lines:
        rows.setdefault(f"{line['variant']} ({line['parameters'] / 1e6:.1f} M)", {}).update(_cells(line))
    head = f"| network | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}"
    body = [f"| {name} | {' | '.join(str(cells.get(c, '-')) for c in columns)} |" for name, cells in rows.items()]
    return "\n".join([head, *body])


def _cells(line: dict[str, Any]) -> dict[str, Any]:
    """Return the table's columns of a line: none for a single synthetic CT."""
    if "scan" in line:
        return {}
    field = f"{line['field']:g} mm" if line.get("field") else ""
    source = " ".join(filter(None, (line.get("real", ""), field)))
    left_out = ("variant", "parameters", "real", "s", "field")
    return {f"{source} {name}".strip(): value for name, value in line.items() if name not in left_out}


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    product = commands.add_parser("bundled")
    product.add_argument("image", type=Path, metavar="CT")
    product.add_argument("labels", type=Path, help="TotalSegmentator's")
    tabling = commands.add_parser("table")
    tabling.add_argument("results", type=Path, nargs="+", metavar="RESULTS.jsonl")
    for name in ("train", "measure"):
        command = commands.add_parser(name)
        command.add_argument("config", type=Path)
        command.add_argument("variant", choices=VARIANTS)
        if name == "train":
            command.add_argument("--minutes", type=float, default=math.inf)
        else:
            command.add_argument("--synthetic", type=Path, help="folder of synthetic CTs")
            command.add_argument("--real", type=Path, nargs=2, action="append", default=[], metavar=("CT", "LABELS"))
            command.add_argument(
                "--fields", type=float, nargs="*", default=[], metavar="MM", help="of narrow views, too"
            )
            command.add_argument("--weights", type=Path, help="in place of those of the run's folder")
            command.add_argument("--overlap", type=float, default=0.5, help="of the windows (0.25 is half the work)")
            command.add_argument("--tta", action="store_true", help="average over the mirrored scan")
            command.add_argument(
                "--min-margin", type=float, default=0.0, help="of a tumour's logit, as in the manifest (0)"
            )
            command.add_argument("--most", type=int, help="number of synthetic CTs, the first ones")
            command.add_argument("--output", type=Path, help="file that the lines are added to")
            command.add_argument("--pictures", type=Path, metavar="PAGE.png", help="of the worst scans")
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    options = parsed()
    if options.command == "bundled":
        print(json.dumps(bundled(options.image, options.labels)))
        return
    if options.command == "table":
        print(table(options.results))
        return
    monai_peer.register()
    config = variant_of(read_config(options.config), options.variant)
    if options.command == "train":
        train(config, options.minutes)
        return
    measure(options, config)


if __name__ == "__main__":
    main()
