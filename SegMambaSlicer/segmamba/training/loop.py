"""The training loop: ``segmamba train CONFIG``.

A run stops when its time or its iterations are up, and goes on from its checkpoint when called again, so that
training can be cut into pieces. Everything it reports is one JSON object a line in ``log.jsonl``.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segmamba.errors import InputError
from segmamba.manifest import Channel
from segmamba.networks import build_network
from segmamba.networks.checkpoint import save_safetensors
from segmamba.training.evaluate import evaluate, normalised
from segmamba.training.losses import dice_cross_entropy
from segmamba.training.synthesis import Painter, load_anatomies


@dataclass(frozen=True)
class Config:
    """A training run. Relative paths are relative to the configuration file's folder.

    Attributes
    ----------
    architecture, arguments
        For `segmamba.networks.build_network`.
    channels : tuple of Channel
        How the network's input is made from HU.
    anatomies : str
        Glob of the ``.npz`` files of `segmamba.training.anatomy.prepare`.
    evaluation : str
        Glob of evaluation cases, or empty.
    patch, spacing
        Voxels along z, y, x, and their size in mm.
    batch, iterations, warmup, learning_rate, weight_decay, ema : numbers
        AdamW with a linear warm-up and a cosine decay over ``iterations``; weights are averaged with decay ``ema``.
    compile : bool
        Compile the network (pays on long runs on a GPU).
    """

    architecture: str
    arguments: dict[str, Any]
    channels: tuple[Channel, ...]
    anatomies: str
    patch: tuple[int, int, int]
    spacing: float
    folder: str
    evaluation: str = ""
    batch: int = 2
    iterations: int = 30000
    warmup: int = 500
    learning_rate: float = 6e-4
    weight_decay: float = 1e-2
    ema: float = 0.999
    log_every: int = 100
    checkpoint_every: int = 1000
    evaluate_every: int = 5000
    seed: int = 0
    device: str = "auto"
    compile: bool = False
    base: Path = field(default=Path("."))


def read_config(path: Path) -> Config:
    """Read a JSON configuration.

    Raises
    ------
    InputError
        The file is missing, is not JSON, or has unknown or missing keys.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["channels"] = tuple(Channel(**channel) for channel in content["channels"])
        content["patch"] = tuple(content["patch"])
        return Config(**content, base=path.resolve().parent)
    except OSError as error:
        raise InputError(f"The training configuration {path} cannot be read: check the path.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"The training configuration {path} is not valid ({error}): see Docs/training.md.") from error


class Run:
    """The state of a training run: network, averaged network, optimizer, iteration."""

    def __init__(self, config: Config, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.folder = config.base / config.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.network = build_network(config.architecture, **config.arguments).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        kept = [p for p in self.network.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}],
            lr=config.learning_rate,
            fused=device.type == "cuda",
        )
        self.iteration = 0
        if self.state_path.is_file():
            state = torch.load(self.state_path, map_location=device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.iteration = state["iteration"]

    @property
    def state_path(self) -> Path:
        return self.folder / "state.pt"

    def save(self) -> None:
        """Write the state and the averaged weights; each file replaces the old one only when it is complete."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
        }
        partial = self.state_path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.state_path)
        save_safetensors(self.average, self.folder / "weights.safetensors", metadata={"iteration": str(self.iteration)})

    def log(self, **entry: Any) -> None:
        line = json.dumps({"iteration": self.iteration, **entry})
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def learning_rate(self) -> float:
        config = self.config
        if self.iteration < config.warmup:
            return config.learning_rate * (self.iteration + 1) / config.warmup
        done = (self.iteration - config.warmup) / max(1, config.iterations - config.warmup)
        return config.learning_rate * max(0.005, 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            ours, theirs = list(self.average.parameters()), list(self.network.parameters())
            torch._foreach_lerp_(ours, theirs, 1 - decay)


def train(config: Config, minutes: float = math.inf) -> Path:
    """Train until ``config.iterations`` or for ``minutes``; return the path of the averaged weights.

    Raises
    ------
    InputError
        There is nothing to train on.
    """
    started = time.monotonic()
    name = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    run = Run(config, device)
    # A resumed run must not draw again what it has drawn.
    painter = Painter(
        load_anatomies(sorted(config.base.glob(config.anatomies)), device),
        config.patch,
        config.spacing,
        seed=config.seed + run.iteration,
    )
    network = torch.compile(run.network, dynamic=False) if config.compile else run.network
    losses: list[Tensor] = []
    last = time.monotonic()
    while run.iteration < config.iterations and time.monotonic() - started < 60 * minutes:
        losses.append(_step(run, network, painter, device))
        run.iteration += 1
        if run.iteration % config.log_every == 0:
            loss = float(torch.stack(losses).mean())
            now = time.monotonic()
            run.log(loss=round(loss, 4), lr=run.learning_rate(), per_second=round(len(losses) / (now - last), 2))
            if not math.isfinite(loss):
                raise InputError("The loss is no longer finite: lower learning_rate and go on from the checkpoint.")
            losses, last = [], now
        if run.iteration % config.checkpoint_every == 0:
            run.save()
        if config.evaluation and run.iteration % config.evaluate_every == 0:
            _evaluate(run, device)
            last = time.monotonic()
    run.save()
    if config.evaluation:
        _evaluate(run, device)
    return run.folder / "weights.safetensors"


def _step(run: Run, network: nn.Module, painter: Painter, device: torch.device) -> Tensor:
    with torch.no_grad():
        image, labels = painter.batch(run.config.batch)
        image = normalised(image, run.config.channels)
    for group in run.optimizer.param_groups:
        group["lr"] = run.learning_rate()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = network(image)
    loss = dice_cross_entropy(logits, labels)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
    for parameter in run.network.parameters():
        # One overflow in half precision makes the norm, and so every gradient, NaN: such a step changes nothing.
        if parameter.grad is not None:
            torch.nan_to_num(parameter.grad, 0.0, 0.0, 0.0, out=parameter.grad)
    run.optimizer.step()
    run.update_average()
    return loss.detach()


def _evaluate(run: Run, device: torch.device) -> None:
    config = run.config
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    run.average.eval()
    cases = evaluate(run.average, sorted(config.base.glob(config.evaluation)), config.channels, config.patch, dtype)
    run.log(evaluation={name: {k: round(v, 4) for k, v in case.items()} for name, case in cases.items()})


def train_from_config(path: Path, minutes: float = math.inf) -> Path:
    """Train as a configuration file says; see `Config` and `train`."""
    return train(read_config(path), minutes)
