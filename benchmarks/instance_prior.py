"""A prior that sees the instance: a small network redraws each vertebra in its own frame, with or without shapes.

``python benchmarks/instance_prior.py make ANATOMIES PATCHES [--part K/N] [--seconds S] [--count C]`` paints samples of
tissue label maps, many of them degraded, runs the bundled fine network over them, and keeps each vertebra in its frame.
``... train PATCHES NETS [--minutes M] [--iterations I] [--seeds 0,1,2] [--arms image shape]`` trains two arms at once,
step by step: "shape" sees the fitted shape and the mean canal, for "image" these channels are zero; else all is the
same. It goes on from where it was stopped.
``... answers CASES ANSWERS [--part K/N]`` keeps what the bundled model finds in the cases of `degraded.py make` and
``paint``; ``... measure CASES ANSWERS --nets NETS --results FOLDER [--part K/N]`` compares it, and what each network
makes of it, with the references on their grids, as `degraded.py measure` does.
``... export NETS/shape-0.pt FILE.safetensors`` writes what `segmamba.inference.redraw` reads.
``... report FOLDER FOLDER`` prints the arms and their paired differences with 95% bootstrap intervals over people.

Cases have to be of people that nothing was trained on. Sizes, weights and rates were set before anything was measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from degraded import chosen, means, on_reference, paired, scores
from instance_patches import SMALLEST_ML, canals, fits_of, inputs_of, refined, vertebrae_in
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from segmamba.evaluation.cases import find_cases, on_grid
from segmamba.evaluation.references import read_reference
from segmamba.inference.context import RunContext
from segmamba.inference.engine import prepare
from segmamba.inference.isotropic import isotropic_labels
from segmamba.inference.prediction import Prediction
from segmamba.inference.preprocess import network_channels
from segmamba.inference.redraw import CANALS
from segmamba.inference.two_stage import label_probabilities, predict_two_stage
from segmamba.io.modality import CT, model_for_modality, resolve_modality
from segmamba.io.read import read_volume
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import Model, load_manifest
from segmamba.models.resources import SHAPES, resource_root
from segmamba.networks.quantization import INT8_ROWS, STORAGE, quantize_int8
from segmamba.networks.spine_mamba import MASK, OFFSET, OFFSET_UNIT_MM
from segmamba.networks.vertebra_refiner import VertebraRefiner
from segmamba.request import Options
from segmamba.spine.decode import SACRUM_CHANNEL
from segmamba.spine.fine import cast_votes
from segmamba.spine.instances import assign
from segmamba.spine.levels import SACRUM, from_top
from segmamba.spine.shape_model import FURTHEST, ShapeModel, load_shapes
from segmamba.spine.vertebra_patch import (
    CHANNELS,
    IMAGE,
    OTHERS,
    OWN,
    SEEN,
    SURE,
    as_modelled,
    canal_patch,
    half_extent,
    in_frame,
    patch_of,
    widths_along,
)
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.training.synthesis import ct, mr
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.elastic import choose_crop, cut_field_of_view, random_deformation
from segmamba.training.synthesis.synthesizer import normalize
from segmamba.training.synthesis.tissue_labels import CORD, VERTEBRAE
from segmamba.training.vertebrae.tissue_maps import Anatomy, load_anatomies

# Samples: voxels and their size as the fine network sees them; parts that are MR, and degraded.
PATCH, SPACING, MR_SHARE, DEGRADED_SHARE = (128, 96, 96), 1.25, 0.2, 0.75
# Known centres of vertebrae are off by so much along each axis: those of the coarse pass are.
CENTRE_MM = 1.5
# Tissue label maps that one process reads: to interpolate them takes longer than to paint.
MAPS = 8
# Patches are stored in 8 bits: steps in one unit of the image, of a logit and of a distance in mm.
STEPS = {"image": 100.0, "logit": 25.0, "mm": 12.0}
PATCHES_A_FILE = 50
# False bone in the canal counts so much more; both arms.
CANAL_WEIGHT = 7.0
# Samples vary while training: affine map and smooth deformation in halves of a patch, error of the fitted shape in mm
# (it was learned from the people painted here, and fits new ones worse), gain and offset of the image.
AFFINE, SHIFT, SMOOTH, COARSE = 0.04, 0.03, 0.03, (4, 5, 5)
FIT_MM, GAIN, LIFT = 0.6, 0.08, 0.04
# Cross-entropy against soft Dice: most points of a patch are easy.
ENTROPY_WEIGHT = 10.0
ARMS = {"image": False, "shape": True}
BATCH, RATE, DECAY, WARMUP = 8, 1e-3, 1e-2, 0.03
SAVE_SECONDS = 60.0
# The likelihood of the reference is measured this near to its surface.
NEAR_MM = 4.0
BASE = "fine network"
LICENCE = "CC-BY-SA-4.0"
TRAINING_DATA = (
    "synthetic CT and MR, painted from label maps of TotalSegmentator s0001, s0004, s0006, s0224, s0327, s0328 "
    "(CC BY 4.0) and VerSe 004, 009, 010, gl003, gl017 (CC BY-SA 4.0)"
)


def main() -> None:
    """Make, train, answer, measure or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    steps = {"make": _make, "train": _train, "answers": _answers, "measure": _measure}
    steps |= {"export": _export, "report": _report}
    for name, run in steps.items():
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("first", type=Path)
        command.add_argument("second", type=Path)
        command.add_argument("--part", default="0/1", help="K/N: every N-th case from the K-th on")
        command.add_argument("--seconds", type=float, default=180.0, help="make patches for so long")
        command.add_argument("--count", type=int, default=10**6, help="patches at most")
        command.add_argument("--minutes", type=float, default=6.0, help="train for so long")
        command.add_argument("--iterations", type=int, default=10**6, help="steps at most")
        command.add_argument("--batch", type=int, default=BATCH)
        command.add_argument("--seeds", default="0,1,2")
        command.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
        command.add_argument("--nets", type=Path, help="folder of trained networks")
        command.add_argument("--results", type=Path, default=Path())
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.run(options)


# ---------------------------------------------------------------- patches


def _make(options: argparse.Namespace) -> None:
    part = int(options.part.split("/")[0])
    device, rng = torch.device(options.device), np.random.default_rng([7, part])
    model, shapes = load_manifest(None).default(VERTEBRAE_TASK), load_shapes(resource_root() / SHAPES)
    network = prepare(model, Options(device=options.device), None, None).network.fine.to(device).eval()
    files = sorted(options.first.glob("*.npz"))
    anatomies = load_anatomies([files[n] for n in rng.permutation(len(files))[:MAPS]], device, SPACING)
    generator = torch.Generator(device).manual_seed(1000 + part)
    context = SamplingContext(PATCH, SPACING, device, rng, generator)
    options.second.mkdir(parents=True, exist_ok=True)
    print(f"part {part}: {len(anatomies)} maps", flush=True)
    start, done, waiting = time.perf_counter(), 0, []
    while time.perf_counter() - start < options.seconds and done + len(waiting) < options.count:
        with torch.no_grad():
            waiting += patches_of_sample(network, anatomies, context, model, shapes)
        if len(waiting) >= PATCHES_A_FILE or done + len(waiting) >= options.count:
            done += _store(waiting, options.second / f"{part:02}-{done:06}.pt")
            waiting = []
    if waiting:
        done += _store(waiting, options.second / f"{part:02}-{done:06}.pt")
    print(f"part {part}: {done} patches in {time.perf_counter() - start:.0f} s", flush=True)


def _store(patches: list[dict[str, Tensor]], path: Path) -> int:
    stacked = {name: torch.stack([patch[name] for patch in patches]) for name in patches[0]}
    temporary = path.with_suffix(".part")
    torch.save(stacked, temporary)
    temporary.rename(path)
    return len(patches)


def patches_of_sample(
    network: torch.nn.Module, anatomies: list[Anatomy], context: SamplingContext, model: Model, shapes: ShapeModel
) -> list[dict[str, Tensor]]:
    """Paint a sample, segment it, and return its vertebrae's patches in 8 bits.

    Each has ``values`` (6, *SIZE): image (2), both logits, distance to the fitted shape, and a code: 1 for bone of this
    vertebra, 2 for canal, 4 for what was seen; ``widths`` (3,) of slices in mm along the frame's axes, and ``level``.
    """
    image, tissues, centres, slices = painted(anatomies, context, model)
    device = context.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        output = network(image[None])[0].float()
    mask, offsets = output[MASK].softmax(dim=0), output[OFFSET] * OFFSET_UNIT_MM
    labels = segmented(mask, offsets, centres, context)
    probabilities, values = label_probabilities(labels, 1 - mask[0])
    truth = tissues.masked_fill(tissues > VERTEBRAE, 0)
    classes = vertebrae_in(values)
    found = []
    for level, fit in fits_of(labels, SPACING, shapes, device).items():
        if int((truth == level).sum()) * SPACING**3 / 1000 < SMALLEST_ML:
            continue
        half = half_extent(level, shapes)
        given, distance = patch_of(image, probabilities, classes[level], fit, half, SPACING)
        places = torch.stack([truth == level, tissues == CORD]).float()
        bone, canal = in_frame(places, fit.frame, half, SPACING) > 0.5
        code = bone.to(torch.int8) + 2 * canal.to(torch.int8) + 4 * (given[SEEN] > 0.5).to(torch.int8)
        parts = [given[:2] * STEPS["image"], given[OWN : OTHERS + 1] * STEPS["logit"]]
        parts.append(distance.clamp(-FURTHEST, FURTHEST)[None] * STEPS["mm"])
        stored = torch.cat([torch.cat(parts).round().clamp(-127, 127).to(torch.int8), code[None]])
        widths = np.sqrt(fit.frame.axes**2 @ np.square(slices))
        found.append(
            {
                "values": stored.cpu(),
                "widths": torch.tensor(widths, dtype=torch.float32),
                "level": torch.tensor(as_modelled(level)),
            }
        )
    return found


def painted(
    anatomies: list[Anatomy], context: SamplingContext, model: Model
) -> tuple[Tensor, Tensor, dict[int, np.ndarray], np.ndarray]:
    """Paint a sample as those are that the fine network was trained on.

    Returns
    -------
    image : Tensor (2, z, y, x)
    tissues : Tensor (z, y, x), uint8
    centres : dict
        By level, (z, y, x) in mm; the sacrum's, too.
    slices : ndarray (3,)
        Width of slices along z, y, x in mm.
    """
    anatomy, centre = choose_crop(anatomies, context)
    tissues, places = random_deformation(anatomy, centre, context)
    tissues = cut_field_of_view(tissues, context)
    is_mr, degraded = (context.rng.random(2) < (MR_SHARE, DEGRADED_SHARE)).tolist()
    slices = np.full(3, context.spacing)
    with overheard(slices):
        if is_mr:
            tissues = mr.cut_to_slab(tissues, context)
            assert model.mr_preprocessing is not None
            image = mr.relative(mr.synthesize(tissues, context, degraded))[None]
            image = normalize(image, model.mr_preprocessing.normalization)
        else:
            image = normalize(ct.synthesize(tissues, context, degraded)[None], model.preprocessing.normalization)
    centres = {level: places[level].cpu().numpy() * context.spacing for level in anatomy.centres}
    return image, tissues, centres, slices


@contextmanager
def overheard(slices: np.ndarray) -> Iterator[None]:
    """Write into ``slices`` (3,) in mm how thick the slices are that the synthesis makes along z, y and x."""
    kept = [(module, name, getattr(module, name)) for module in (ct, mr) for name in OVERHEARD]
    thick = {name: function for _, name, function in kept}
    last = [0.0]

    def random_slices(length: int, thickness: float, context: SamplingContext) -> np.ndarray:
        last[0] = thickness
        return thick["random_slices"](length, thickness, context)

    def profiled_slices(image: Tensor, axis: int, matrix: np.ndarray) -> Tensor:
        slices[axis] = max(slices[axis], last[0])
        return thick["profiled_slices"](image, axis, matrix)

    def thick_slices(image: Tensor, axis: int, factor: int) -> Tensor:
        slices[axis] = max(slices[axis], factor * SPACING)
        return thick["thick_slices"](image, axis, factor)

    for module, name, _ in kept:
        setattr(module, name, {f.__name__: f for f in (random_slices, profiled_slices, thick_slices)}[name])
    try:
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)


OVERHEARD = ("random_slices", "profiled_slices", "thick_slices")


def segmented(mask: Tensor, offsets: Tensor, centres: Mapping[int, np.ndarray], context: SamplingContext) -> np.ndarray:
    """Return the levels (z, y, x), uint8, that inference would give a sample whose coarse pass found all vertebrae."""
    levels = [*from_top(list(centres)), *([SACRUM] if SACRUM in centres else [])]
    places = np.array([centres[level] for level in levels]) + context.rng.normal(0, CENTRE_MM, (len(levels), 3))
    given = [values if values.is_cuda else values.numpy() for values in (mask, offsets)]
    cast = cast_votes(given[0], given[1], context.spacing)
    numbers = assign(cast.mask, cast.votes, np.zeros(3), places)
    labels = np.r_[0, levels].astype(np.uint8)[numbers]
    sacrum = (mask[SACRUM_CHANNEL] == mask.amax(dim=0)).cpu().numpy()
    labels[sacrum & (labels == 0)] = SACRUM
    return labels


# ---------------------------------------------------------------- training


def _train(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    parts = [torch.load(path, map_location=device) for path in sorted(options.first.glob("*.pt"))]
    pool = {name: torch.cat([part.pop(name) for part in parts]) for name in ("values", "widths", "level")}
    pool["canals"] = canal_patches(load_shapes(resource_root() / SHAPES), device)
    count = len(pool["level"])
    print(f"{count} patches, levels {torch.bincount(pool['level'], minlength=26)[1:].tolist()}", flush=True)
    options.second.mkdir(parents=True, exist_ok=True)
    runs = {}
    for seed in map(int, options.seeds.split(",")):
        for arm in options.arms:
            torch.manual_seed(seed)
            network = VertebraRefiner(CHANNELS).to(device)
            optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
            runs[arm, seed] = (network, optimizer)
    state_path = options.second / "state.pt"
    iteration, before = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, map_location=device)
        iteration, before = state["iteration"], state["seconds"]
        for (arm, seed), (network, optimizer) in runs.items():
            network.load_state_dict(state[f"{arm}-{seed}"][0])
            optimizer.load_state_dict(state[f"{arm}-{seed}"][1])
    draws = {seed: torch.Generator().manual_seed(10**6 * seed + iteration) for _, seed in runs}
    shaken = {seed: torch.Generator(device).manual_seed(10**6 * seed + iteration) for seed in draws}
    start, saved, logged = time.perf_counter(), time.perf_counter(), iteration
    sums: dict[tuple[str, int], Tensor] = {key: torch.zeros(4, device=device) for key in runs}
    while True:
        seconds = before + time.perf_counter() - start
        done = max(seconds / (60 * options.minutes), iteration / options.iterations)
        if done >= 1:
            break
        rate = RATE * min(1.0, done / WARMUP) * 0.5 * (1 + np.cos(np.pi * done))
        for seed, draw in draws.items():
            picked = torch.randint(count, (options.batch,), generator=draw)
            mirrored = bool(torch.rand(1, generator=draw) < 0.5)
            batch = varied(batch_of(pool, picked.to(device), mirrored), shaken[seed])
            for arm in options.arms:
                network, optimizer = runs[arm, seed]
                for group in optimizer.param_groups:
                    group["lr"] = rate
                losses = _step(network, batch, ARMS[arm])
                optimizer.zero_grad(set_to_none=True)
                losses[0].backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                sums[arm, seed] += torch.stack([each.detach() for each in losses])
        iteration += 1
        if iteration % 100 == 0 or iteration == 1:
            rows = {f"{arm}-{seed}": (sums[arm, seed] / (iteration - logged)).tolist() for arm, seed in runs}
            logged = iteration
            figures = {name: [round(value, 4) for value in row] for name, row in rows.items()}
            print(json.dumps({"iteration": iteration, "seconds": round(seconds), "rate": rate} | figures), flush=True)
            for total in sums.values():
                total.zero_()
        if time.perf_counter() - saved > SAVE_SECONDS:
            saved = time.perf_counter()
            _save(runs, iteration, before + saved - start, state_path)
    _save(runs, iteration, before + time.perf_counter() - start, state_path)
    print(f"{iteration} iterations of {options.batch} patches", flush=True)


def _save(runs: Mapping[tuple[str, int], Any], iteration: int, seconds: float, path: Path) -> None:
    state: dict[str, Any] = {"iteration": iteration, "seconds": seconds}
    for (arm, seed), (network, optimizer) in runs.items():
        state[f"{arm}-{seed}"] = (network.state_dict(), optimizer.state_dict())
        weights = {name: value.half() for name, value in network.state_dict().items()}
        torch.save(weights, path.with_name(f"{arm}-{seed}.pt"))
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def canal_patches(shapes: ShapeModel, device: torch.device) -> Tensor:
    """Return `canals` at the points of patches: (25, *SIZE)."""
    return torch.stack([canal_patch(each) for each in torch.from_numpy(canals(shapes))]).to(device)


def batch_of(pool: Mapping[str, Tensor], picked: Tensor, mirrored: bool) -> dict[str, Tensor]:
    """Return patches of a pool by their numbers, left and right perhaps exchanged, in natural units."""
    values = pool["values"][picked]
    code, level = values[:, 5], pool["level"][picked]
    seen = ((code & 4) > 0).float()
    image = values[:, :2] / STEPS["image"]
    logits = values[:, 2:4] / STEPS["logit"]
    batch = {
        "given": torch.cat([image, logits, seen[:, None]], dim=1),
        "distance": values[:, 4] / STEPS["mm"],
        "canal": pool["canals"][level - 1],
        "bone": (code & 1).float(),
        # Painted canals are round; between them and the bone is a gap of about a voxel here and there.
        "true canal": functional.max_pool3d(((code & 2) > 0).float(), 3, 1, 1),
        "seen": seen,
    }
    if mirrored:
        batch = {name: value.flip(-1) for name, value in batch.items()}
    return batch | {"widths": pool["widths"][picked]}


def varied(batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Return a batch with other shapes: all of a patch is deformed alike; its fit and its image are changed."""
    given, device = batch["given"], batch["given"].device
    count = len(given)

    def normal(*shape: int) -> Tensor:
        return torch.randn((count, *shape), generator=generator, device=device)

    def smooth(channels: int) -> Tensor:
        return functional.interpolate(
            normal(channels, *COARSE), size=given.shape[2:], mode="trilinear", align_corners=True
        )

    affine = torch.cat([torch.eye(3, device=device) + AFFINE * normal(3, 3), SHIFT * normal(3, 1)], dim=2)
    places = functional.affine_grid(affine, [count, 1, *given.shape[2:]], align_corners=True)
    places = places + SMOOTH * smooth(3).permute(0, 2, 3, 4, 1)
    names = ("distance", "canal", "bone", "true canal", "seen")
    moved = torch.cat([given, *(batch[name][:, None] for name in names)], dim=1)
    moved = functional.grid_sample(moved, places, align_corners=True, padding_mode="border")
    given, rest = moved[:, : given.shape[1]], dict(zip(names, moved[:, given.shape[1] :].unbind(1), strict=True))
    for name in ("bone", "true canal", "seen"):
        rest[name] = (rest[name] > 0.5).float()
    # The mean canal stays where the frame has it.
    rest["canal"], rest["distance"] = batch["canal"], rest["distance"] + FIT_MM * smooth(1)[:, 0]
    image = given[:, IMAGE] * (1 + GAIN * normal(1, 1, 1, 1)) + LIFT * normal(1, 1, 1, 1)
    seen = rest["seen"][:, None]
    given = torch.cat([image * seen, given[:, OWN : OTHERS + 1], seen], dim=1)
    return {"given": given, "widths": batch["widths"]} | rest


def _step(network: torch.nn.Module, batch: Mapping[str, Tensor], with_shape: bool) -> tuple[Tensor, ...]:
    """Return the loss, its two parts, and the part of the bone that is in the canal."""
    inputs = inputs_of(batch["given"], batch["distance"], batch["canal"], batch["widths"], with_shape)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        change = network(inputs)
    logits = batch["given"][:, OWN] + change.float()
    return loss_of(logits, batch["bone"], batch["true canal"], batch["seen"])


def loss_of(logits: Tensor, bone: Tensor, canal: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
    """Return the loss of logits (n, z, y, x), its cross-entropy and its Dice, and false bone in the canal.

    False bone in the canal (a mask, as ``bone``) counts `CANAL_WEIGHT` times more; what was not ``seen`` does not.
    The last figure is a part of the bone.
    """
    free = canal * (1 - bone) * seen
    weight = seen * (1 + CANAL_WEIGHT * free)
    entropy = (functional.binary_cross_entropy_with_logits(logits, bone, reduction="none") * weight).mean()
    probability = logits.sigmoid() * seen
    dims = (1, 2, 3)
    both = (probability * bone).sum(dims)
    dice = (1 - (2 * both + 1) / (probability.sum(dims) + (bone * seen).sum(dims) + 1)).mean()
    blocked = ((logits.detach() > 0) * free).sum() / (bone * seen).sum().clamp(min=1)
    return ENTROPY_WEIGHT * entropy + dice, entropy, dice, blocked


# ---------------------------------------------------------------- measuring


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
        own = model_for_modality(volume, engine.model)
        context = RunContext(torch.device(engine.device.name), engine.device.dtype)
        found = predict_two_stage(engine.network, volume, own, context, None, True, ())
        table = torch.tensor(found.label_values, dtype=torch.uint8)
        labels = table[found.probabilities.argmax(dim=0).cpu()].numpy()
        # The classes are made of these two again: twenty of them on a fine grid are much to keep.
        kept = {"labels": labels, "bone": (1 - found.probabilities[0].float()).half().cpu(), "grid": found.grid}
        torch.save(kept, path)
        print(case.name, labels.shape, round(time.perf_counter() - start, 1), flush=True)


def _measure(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    shapes = load_shapes(resource_root() / SHAPES)
    table = canal_patches(shapes, device)
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


# ---------------------------------------------------------------- the bundled file


def _export(options: argparse.Namespace) -> None:
    weights = {name: value.float() for name, value in torch.load(options.first, map_location="cpu").items()}
    canal = torch.from_numpy(canals(load_shapes(resource_root() / SHAPES)))
    stored = quantize_int8(weights) | {CANALS: (canal * (127 / FURTHEST) + 128).round().to(torch.uint8)}
    save_file(stored, options.second, {STORAGE: INT8_ROWS, "licence": LICENCE, "training_data": TRAINING_DATA})


# ---------------------------------------------------------------- reporting


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
