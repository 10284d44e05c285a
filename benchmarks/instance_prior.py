"""Measure how near to the truth a network comes that draws each vertebra again in its own frame.

Networks are trained by `segmamba.training.vertebrae.redraw`, into files ARM-SEED.pt of one folder: "shape" sees the
fitted shape and the mean canal, "image" was trained without (``--without-shapes``).

``python benchmarks/instance_prior.py answers CASES ANSWERS [--part K/N]`` keeps what the bundled model finds in the
cases of `degraded.py make` and ``paint``; ``... measure CASES ANSWERS --nets NETS --results FOLDER [--part K/N]``
compares it, and what each network makes of all vertebrae, with the references, as `degraded.py measure` does.
``... report FOLDER FOLDER`` prints the arms and their paired differences with 95% bootstrap intervals over people.

Cases have to be of people that nothing was trained on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from degraded import chosen, means, on_reference, paired, scores
from scipy import ndimage
from torch import Tensor

from segmamba.evaluation.cases import find_cases, on_grid
from segmamba.evaluation.references import read_reference
from segmamba.inference.context import RunContext
from segmamba.inference.engine import prepare
from segmamba.inference.isotropic import isotropic_labels
from segmamba.inference.prediction import Prediction
from segmamba.inference.preprocess import network_channels
from segmamba.inference.redraw import REDRAW
from segmamba.inference.two_stage import label_probabilities, predict_two_stage
from segmamba.io.modality import CT, model_for_modality, resolve_modality
from segmamba.io.read import read_volume
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import Model, load_manifest
from segmamba.models.resources import SHAPES, resource_root
from segmamba.networks.vertebra_refiner import VertebraRefiner
from segmamba.request import Options
from segmamba.spine.shape_model import Fit, ShapeModel, load_shapes
from segmamba.spine.vertebra_patch import (
    CHANNELS,
    SURE,
    as_modelled,
    canal_patch,
    changed,
    half_extent,
    patch_of,
    share,
    widths_along,
)
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.training.vertebrae.redraw.canals import canals
from segmamba.training.vertebrae.redraw.samples import fits_of, vertebrae_in
from segmamba.training.vertebrae.redraw.training import inputs_of

ARMS = {"image": False, "shape": True}
# Patches that a network gets at a time.
BATCH = 8
# The likelihood of the reference is measured this near to its surface.
NEAR_MM = 4.0
BASE = "fine network"


def main() -> None:
    """Answer, measure or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, run in {"answers": _answers, "measure": _measure, "report": _report}.items():
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("first", type=Path)
        command.add_argument("second", type=Path)
        command.add_argument("--part", default="0/1", help="K/N: every N-th case from the K-th on")
        command.add_argument("--nets", type=Path, help="folder of trained networks")
        command.add_argument("--results", type=Path, default=Path())
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.run(options)


def _answers(options: argparse.Namespace) -> None:
    options.second.mkdir(parents=True, exist_ok=True)
    model = load_manifest(None).default(VERTEBRAE_TASK)
    for case in chosen(find_cases([options.first], VERTEBRAE_TASK), options.part):
        path = options.second / f"{case.name}.pt"
        if path.exists():
            continue
        start = time.perf_counter()
        volume = resolve_modality(read_volume(case.image), case.modality or "auto")
        engine = prepare(model, Options(device=options.device), None, None)
        own = without_redrawing(model_for_modality(volume, engine.model))
        context = RunContext(torch.device(engine.device.name), engine.device.dtype)
        found = predict_two_stage(engine.network, volume, own, context, None, True, ())
        table = torch.tensor(found.label_values, dtype=torch.uint8)
        labels = table[found.probabilities.argmax(dim=0).cpu()].numpy()
        # The classes are made of these two again: twenty of them on a fine grid are much to keep.
        kept = {"labels": labels, "bone": (1 - found.probabilities[0].float()).half().cpu(), "grid": found.grid}
        torch.save(kept, path)
        print(case.name, labels.shape, round(time.perf_counter() - start, 1), flush=True)


def without_redrawing(model: Model) -> Model:
    """Return a model whose refinement draws no vertebra again."""
    assert model.fine is not None
    steps = tuple(step for step in model.fine.refine if step != REDRAW)
    return replace(model, fine=replace(model.fine, refine=steps))


def _measure(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    shapes = load_shapes(resource_root() / SHAPES)
    table = torch.stack([canal_patch(each) for each in torch.from_numpy(canals(shapes))]).to(device)
    nets = networks(options.nets, device) if options.nets else {}
    model = load_manifest(None).default(VERTEBRAE_TASK)
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{options.first.name}-{options.part.replace('/', '-of-')}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for case in chosen(find_cases([options.first], VERTEBRAE_TASK), options.part):
        wanted = [
            name for name in (BASE, *nets) if not any(r["case"] == case.name and r["variant"] == name for r in rows)
        ]
        answer = options.second / f"{case.name}.pt"
        if not wanted or not answer.exists():
            continue
        start = time.perf_counter()
        volume = resolve_modality(read_volume(case.image), case.modality or CT)
        own = model_for_modality(volume, model)
        base = _prediction(torch.load(answer, weights_only=False), device)
        reference = read_reference(case.reference, case.ids)
        truth = near_surface(reference, base.grid.geometry)
        some = {name: nets[name] for name in wanted if name != BASE}
        made = [(BASE, base)] if BASE in wanted else []
        if some:
            made += _refined(base, volume, own, shapes, table, some)
        for name, prediction in made:
            figures = measured(prediction, own, reference, truth, device)
            rows.append({"case": case.name, "set": options.first.name, "variant": name} | figures)
            print(case.name, name, figures["nll"], json.dumps(means(figures["levels"].values())), flush=True)
        path.write_text(json.dumps(rows))
        print(case.name, round(time.perf_counter() - start, 1), "s", flush=True)


def networks(folder: Path, device: torch.device) -> dict[str, tuple[VertebraRefiner, bool]]:
    """Return the networks of a folder, ARM-SEED.pt, and whether each sees the shape model."""
    found = {}
    for path in sorted(folder.glob("*-*.pt")):
        network = VertebraRefiner(CHANNELS).to(device).eval()
        network.load_state_dict({name: value.float() for name, value in torch.load(path, map_location=device).items()})
        found[path.stem] = (network, ARMS[path.stem.split("-")[0]])
    return found


def _prediction(kept: Mapping[str, Any], device: torch.device) -> Prediction:
    probabilities, values = label_probabilities(kept["labels"], kept["bone"].float().to(device))
    return Prediction(probabilities, values, kept["grid"], ())


@torch.no_grad()
def _refined(
    base: Prediction,
    volume: Volume,
    model: Model,
    shapes: ShapeModel,
    table: Tensor,
    nets: Mapping[str, tuple[VertebraRefiner, bool]],
) -> list[tuple[str, Prediction]]:
    """Return what each network makes of a prediction."""
    device, geometry = base.probabilities.device, base.grid.geometry
    spacing = geometry.spacing[0]
    labels = np.array(base.label_values, np.uint8)[base.probabilities.argmax(dim=0).cpu().numpy()]
    classes = vertebrae_in(base.label_values)
    values = torch.from_numpy(volume.array.astype(np.float32)).to(device)
    image = torch.stack(network_channels(values, volume.geometry, model.preprocessing, geometry))
    # By its smallest part a vertebra may have lost its class.
    fits = {level: fit for level, fit in fits_of(labels, spacing, shapes, device).items() if level in classes}
    if not fits:
        return [(name, base) for name in nets]
    halves = {level: half_extent(level, shapes) for level in fits}
    parts = [
        patch_of(image, base.probabilities, classes[level], fit, halves[level], spacing) for level, fit in fits.items()
    ]
    given, distance = (torch.stack(some) for some in zip(*parts, strict=True))
    grid = (volume.geometry.spacing, volume.geometry.direction)
    canal = table[[as_modelled(level) - 1 for level in fits]]
    widths = torch.from_numpy(np.stack([widths_along(fit.frame, *grid) for fit in fits.values()])).float()
    found = []
    for name, (network, with_shape) in nets.items():
        inputs = inputs_of(given, distance, canal, widths.to(device), with_shape)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            change = torch.cat([network(some) for some in inputs.split(BATCH)]).float()
        changes = [(classes[level], fits[level], halves[level], change[n]) for n, level in enumerate(fits)]
        found.append((name, replace(base, probabilities=refined(base.probabilities, changes, spacing))))
    return found


def refined(probabilities: Tensor, changes: Sequence[tuple[int, Fit, np.ndarray, Tensor]], spacing_mm: float) -> Tensor:
    """Return class probabilities (classes, z, y, x) after changes of vertebrae's logits.

    Of each vertebra its class, its fit, half the extent of its patch and the change of its logit (*SIZE).
    """
    found = probabilities.clone()
    for number, fit, half, change in changes:
        found[number][fit.box] = changed(probabilities, number, change, fit, half, spacing_mm)
    for _, fit, _, _ in changes:
        share(found, fit.box, range(len(found)))
    return found


def near_surface(reference: Volume, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels (z, y, x) of a grid that are near the surface of a reference, and its bone in these (n,)."""
    bone = on_grid(reference, geometry)[0].array > 0
    apart = np.where(bone, ndimage.distance_transform_edt(bone), ndimage.distance_transform_edt(~bone))
    near = apart * geometry.spacing[0] <= NEAR_MM
    return near, bone[near]


def measured(
    prediction: Prediction, model: Model, reference: Volume, truth: tuple[np.ndarray, np.ndarray], device: torch.device
) -> dict[str, Any]:
    """Return `degraded.scores` of a prediction, and the mean negative log-likelihood of bone near its true surface.

    ``truth`` is what `near_surface` gives for the prediction's grid.
    """
    fine = isotropic_labels(prediction, model, max(0.5, min(reference.geometry.spacing)), device)
    labels = on_reference(Volume(fine.labels, fine.geometry), reference)
    near, bone = truth
    # What is changed is clipped here, too.
    surest = 1 / (1 + np.exp(-SURE))
    given = np.clip(1 - prediction.probabilities[0].float().cpu().numpy()[near], 1 - surest, surest)
    nll = float(-np.log(np.where(bone, given, 1 - given)).mean())
    return {"levels": scores(labels, reference), "nll": round(nll, 4)}


def _report(options: argparse.Namespace) -> None:
    rows = [row for file in sorted(options.first.glob("*.json")) for row in json.loads(file.read_text())]
    print(
        "| set, kind | people | measure | fine network | image | shape | shape - image | image - fine | shape - fine |"
    )
    print("|" + " --- |" * 9)
    for line in table_of(rows):
        print(line)


def table_of(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Give the lines of a table: means over vertebrae, then seeds, then people; differences with their intervals.

    "degraded" is the mean of a person's degraded kinds. An arm that was not trained has no figures.
    """
    by: dict[tuple[str, str], dict[str, dict[str, list[dict[str, float]]]]] = {}
    for row in rows:
        if not row["levels"]:
            continue
        person, kind = row["case"].rsplit("-", 1)
        figures = means(row["levels"].values()) | {"nll": row["nll"]}
        arm = row["variant"].split("-")[0]
        for each in (kind, *(() if kind == "clean" else ("degraded",))):
            by.setdefault((row["set"], each), {}).setdefault(person, {}).setdefault(arm, []).append(figures)
    trained = [arm for arm in ARMS if any(arm in arms for people in by.values() for arms in people.values())]
    for (name, kind), people in sorted(by.items()):
        whole = [arms for arms in people.values() if {BASE, *trained} <= set(arms)]
        if not whole:
            continue
        for measure in ("dice", "matched_assd_mm", "canal", "nll"):
            values = {
                arm: [float(np.mean([one[measure] for one in arms[arm]])) for arms in whole] for arm in (BASE, *trained)
            }
            cells = [f"{np.mean(values[arm]):.4f}" if arm in values else "" for arm in (BASE, *ARMS)]
            for first, second in (("image", "shape"), (BASE, "image"), (BASE, "shape")):
                if first not in values or second not in values:
                    cells.append("")
                    continue
                row = paired(list(zip(values[first], values[second], strict=True)))
                low, high = row["interval"]
                cells.append(f"{row['difference']:+.4f} ({low:+.4f} to {high:+.4f})")
            yield f"| {name}, {kind} | {len(whole)} | {measure} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
