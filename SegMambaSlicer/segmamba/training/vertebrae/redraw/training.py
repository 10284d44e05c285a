"""Train the network, and write the file that `segmamba.inference.redraw` reads."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from segmamba.errors import InputError
from segmamba.inference.redraw import CANALS
from segmamba.networks.quantization import INT8_ROWS, STORAGE, quantize_int8
from segmamba.networks.vertebra_refiner import VertebraRefiner
from segmamba.spine.shape_model import FURTHEST, ShapeModel
from segmamba.spine.vertebra_patch import CHANNELS, IMAGE, OTHERS, OWN, SEEN, SHAPE, canal_patch, channels
from segmamba.training.vertebrae.redraw.canals import canals
from segmamba.training.vertebrae.redraw.samples import BONE, CANAL, IN_IMAGE, STEPS
from segmamba.utils.atomic import atomic_write

# Samples vary while training: affine map and smooth deformation in halves of a patch, error of the fitted shape in mm
# (it was learned from the people painted here, and fits new ones worse), gain and offset of the image.
AFFINE, SHIFT, SMOOTH, COARSE = 0.04, 0.03, 0.03, (4, 5, 5)
FIT_MM, GAIN, LIFT = 0.6, 0.08, 0.04
# False bone in the canal counts so much more.
CANAL_WEIGHT = 7.0
# Cross-entropy against soft Dice: most points of a patch are easy.
ENTROPY_WEIGHT = 10.0
BATCH, RATE, DECAY, WARMUP = 8, 1e-3, 1e-2, 0.03
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Run:
    """How long and how to train: minutes and steps at most, patches a step, seed; with or without shapes."""

    minutes: float = 12.0
    steps: int = 10**6
    batch: int = BATCH
    seed: int = 0
    with_shapes: bool = True


def train(patches: Path, path: Path, shapes: ShapeModel, run: Run, device: torch.device) -> None:
    """Train on a folder of patches and write the weights, float16, to a file; the log is printed as JSON lines.

    It goes on from where it was stopped: the state is kept beside the file.

    Raises
    ------
    InputError
        There are no patches.
    """
    pool = load_pool(patches, shapes, device)
    torch.manual_seed(run.seed)
    network = VertebraRefiner(CHANNELS).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    state_path, step, before = path.with_suffix(".state"), 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        step, before = state["step"], state["seconds"]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(10**6 * run.seed + step)
    shaken = torch.Generator(device).manual_seed(10**6 * run.seed + step)
    start = saved = time.perf_counter()
    sums, logged = torch.zeros(4, device=device), step
    while True:
        now = time.perf_counter()
        seconds = before + now - start
        done = max(seconds / (60 * run.minutes), step / run.steps)
        if done >= 1 or now - saved > SAVE_SECONDS:
            saved = now
            _save(network, optimizer, {"step": step, "seconds": seconds}, path)
        if done >= 1:
            break
        picked = torch.randint(len(pool["level"]), (run.batch,), generator=draw)
        mirrored = bool(torch.rand(1, generator=draw) < 0.5)
        batch = varied(batch_of(pool, picked.to(device), mirrored), shaken)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, done / WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
        losses = _losses(network, batch, run.with_shapes)
        optimizer.zero_grad(set_to_none=True)
        losses[0].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        sums += torch.stack([each.detach() for each in losses])
        step += 1
        if step % 100 == 0 or step == 1:
            figures = [round(value, 4) for value in (sums / (step - logged)).tolist()]
            print(json.dumps({"step": step, "seconds": round(seconds), "losses": figures}), flush=True)
            sums.zero_()
            logged = step
    print(f"{step} steps of {run.batch} of {len(pool['level'])} patches", flush=True)


def _save(network: VertebraRefiner, optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    torch.save({name: value.half() for name, value in network.state_dict().items()}, path)
    state |= {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.rename(path.with_suffix(".state"))


def load_pool(folder: Path, shapes: ShapeModel, device: torch.device) -> dict[str, Tensor]:
    """Return all patches of a folder as they are stored, and the canals ``(25, *SIZE)`` of the levels."""
    parts = [torch.load(path, map_location=device, weights_only=True) for path in sorted(folder.glob("*.pt"))]
    if not parts:
        raise InputError(f"There are no patches in {folder}: make some first.")
    pool = {name: torch.cat([part.pop(name) for part in parts]) for name in ("values", "widths", "level")}
    pool["canals"] = torch.stack([canal_patch(each) for each in torch.from_numpy(canals(shapes))]).to(device)
    return pool


def batch_of(pool: Mapping[str, Tensor], picked: Tensor, mirrored: bool) -> dict[str, Tensor]:
    """Return patches of a pool by their numbers, left and right perhaps exchanged, in natural units."""
    values = pool["values"][picked]
    code, level = values[:, 5], pool["level"][picked]
    seen = ((code & IN_IMAGE) > 0).float()
    image = values[:, :2] / STEPS["image"]
    logits = values[:, 2:4] / STEPS["logit"]
    batch = {
        "given": torch.cat([image, logits, seen[:, None]], dim=1),
        "distance": values[:, 4] / STEPS["mm"],
        "canal": pool["canals"][level - 1],
        "bone": (code & BONE).float(),
        # Painted canals are round; between them and the bone is a gap of about a voxel here and there.
        "true canal": functional.max_pool3d(((code & CANAL) > 0).float(), 3, 1, 1),
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

    def smooth(parts: int) -> Tensor:
        coarse, size = normal(parts, *COARSE), given.shape[2:]
        return functional.interpolate(coarse, size=size, mode="trilinear", align_corners=True)

    affine = torch.cat([torch.eye(3, device=device) + AFFINE * normal(3, 3), SHIFT * normal(3, 1)], dim=2)
    places = functional.affine_grid(affine, [count, 1, *given.shape[2:]], align_corners=True)
    places = places + SMOOTH * smooth(3).permute(0, 2, 3, 4, 1)
    names = ("distance", "bone", "true canal", "seen")
    moved = torch.cat([given, *(batch[name][:, None] for name in names)], dim=1)
    moved = functional.grid_sample(moved, places, align_corners=True, padding_mode="border")
    given, rest = moved[:, : given.shape[1]], dict(zip(names, moved[:, given.shape[1] :].unbind(1), strict=True))
    for name in ("bone", "true canal", "seen"):
        rest[name] = (rest[name] > 0.5).float()
    rest["distance"] = rest["distance"] + FIT_MM * smooth(1)[:, 0]
    image = given[:, IMAGE] * (1 + GAIN * normal(1, 1, 1, 1)) + LIFT * normal(1, 1, 1, 1)
    seen = rest["seen"][:, None]
    given = torch.cat([image * seen, given[:, OWN : OTHERS + 1], seen], dim=1)
    # The mean canal stays where the frame has it.
    return {"given": given, "widths": batch["widths"], "canal": batch["canal"]} | rest


def inputs_of(given: Tensor, distance: Tensor, canal: Tensor, widths: Tensor, with_shapes: bool) -> Tensor:
    """Return `channels`, those of the shape model set to zero without it."""
    made = channels(given, distance, canal, widths)
    if not with_shapes:
        made[:, SHAPE] = 0
    return made


def _losses(network: VertebraRefiner, batch: Mapping[str, Tensor], with_shapes: bool) -> tuple[Tensor, ...]:
    inputs = inputs_of(batch["given"], batch["distance"], batch["canal"], batch["widths"], with_shapes)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        change = network(inputs)
    logits = batch["given"][:, OWN] + change.float()
    return loss_of(logits, batch["bone"], batch["true canal"], batch["given"][:, SEEN])


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


def export(weights: Path, path: str | os.PathLike[str], shapes: ShapeModel, licence: str, training_data: str) -> None:
    """Write what `segmamba.inference.redraw.load_redrawing` reads: weights in 8 bits, and the canals."""
    state = {name: value.float() for name, value in torch.load(weights, map_location="cpu", weights_only=True).items()}
    canal = torch.from_numpy(canals(shapes))
    stored = quantize_int8(state) | {CANALS: (canal * (127 / FURTHEST) + 128).round().to(torch.uint8)}
    metadata = {STORAGE: INT8_ROWS, "licence": licence, "training_data": training_data}
    with atomic_write(path, (".safetensors",)) as temporary:
        temporary.write_bytes(save(stored, metadata))
