"""The training loop: ``segmamba train CONFIG``.

A run stops when its time or its iterations are used up, and resumes from its state when called again, so that training
can be divided into sessions. Its log is ``log.jsonl``, one JSON object per line.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segmamba import scan
from segmamba.errors import InputError, OutputError
from segmamba.inference.device import choose_device
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights, save_safetensors
from segmamba.training.config import Config, read_config
from segmamba.training.cuda_graph import CudaGraphStep, Objective, gradients_of
from segmamba.training.distributed import AGREE_EVERY, SINGLE, ProcessGroup, join_process_group
from segmamba.training.run_config import RunConfig
from segmamba.training.sample_source import Source
from segmamba.training.tasks import SyntheticTask, Task
from segmamba.utils.atomic import atomic_write

LARGEST_GRADIENT_NORM = 1.0


class Run:
    """The state of a training run: network, averaged network, optimizer, iteration; equal in all processes of a group.

    ``seconds`` is the time spent on steps so far, as the group agrees on it; ``best`` the best evaluation.

    Raises
    ------
    InputError
        The folder's state is damaged or belongs to another network.
    ModelError
        The architecture, its arguments or ``start_from`` do not fit.
    OutputError
        The folder cannot be made.
    """

    def __init__(
        self, config: RunConfig, device: torch.device, group: ProcessGroup = SINGLE, task: Task | None = None
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.task = task or _synthetic(config)
        self.device = device
        self.group = group
        self.folder = config.base / config.folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"The folder {self.folder} cannot be created: choose another one.") from error
        self.network = build_network(config.architecture, **config.arguments).to(device)
        resumed = self.state_path.is_file()
        if config.start_from and not resumed:
            load_weights(self.network, load_state_dict(config.base / config.start_from))
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        kept = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
        self.optimizer = self.task.optimizer(groups, config.learning_rate)
        self.iteration = 0
        self.seconds = 0.0
        self.best: float | None = None
        if resumed:
            self._load()

    @property
    def compiles(self) -> bool:
        """Whether network and loss are compiled; the scan for the processor cannot be."""
        return self.config.compile and self.device.type == "cuda"

    @property
    def state_path(self) -> Path:
        """The state that the run resumes from."""
        return self.folder / "state.pt"

    @property
    def weights_path(self) -> Path:
        """The averaged weights in half precision."""
        return self.folder / "weights.safetensors"

    @property
    def best_path(self) -> Path:
        """Those of the best evaluation, where the task has a figure to choose by."""
        return self.folder / "best.safetensors"

    def _load(self) -> None:
        try:
            state = torch.load(self.state_path, map_location=self.device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.iteration = state["iteration"]
            self.seconds = state.get("seconds", 0.0)
            self.best = state.get("best")
        except Exception as error:  # a damaged file may raise anything
            problem = f"{self.state_path} is damaged or belongs to another network"
            raise InputError(f"{problem}: choose another folder in the configuration.") from error

    def save(self) -> None:
        """Write the state and the averaged weights; each file replaces the old one only when it is complete."""
        if not self.group.is_main_process:
            return
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "best": self.best,
        }
        with atomic_write(self.state_path, (".pt",)) as file:
            torch.save(state, file)
        self._save_weights(self.weights_path)

    def _save_weights(self, path: Path) -> None:
        with atomic_write(path, (".safetensors",)) as file:
            save_safetensors(self.average, file, metadata={"iteration": str(self.iteration)})

    def evaluate(self) -> None:
        """Let the main process measure the averaged network, and keep its weights if they are the best so far."""
        if not self.group.is_main_process:
            return
        figure = self.task.evaluate(self)
        if figure is not None and (self.best is None or figure > self.best):
            self.best = figure
            self._save_weights(self.best_path)

    def log(self, **entry: Any) -> None:
        """Print one JSON object and append it to the log; OutputError where that cannot be written."""
        if not self.group.is_main_process:
            return
        line = json.dumps({"iteration": self.iteration, **entry})
        path = self.folder / "log.jsonl"
        try:
            with path.open("ab+") as file:
                # A process that was killed may have left a part of a line.
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read() == b"\n" else f"\n{line}"
                file.write(f"{line}\n".encode())
        except OSError as error:
            raise OutputError(f"{path} cannot be written: check the folder's permissions and free space.") from error
        print(line.strip(), flush=True)

    def learning_rate(self) -> float:
        """Return the rate of the next step."""
        return self.task.learning_rate(self)

    def update_average(self) -> None:
        """Move the averaged weights towards the network's, faster at the beginning."""
        decay = min(self.config.ema, (1 + self.iteration) / (10 + self.iteration))
        averaged: list[Tensor] = list(self.average.parameters())
        current: list[Tensor] = list(self.network.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(averaged, current, 1 - decay)


def train(config: RunConfig, minutes: float = math.inf, task: Task | None = None) -> Path:
    """Train until ``config.iterations`` or for ``minutes``; return the path of the averaged weights.

    Without a task, synthetic images are trained on as ``config``, a `Config`, says.

    Raises
    ------
    InputError
        There is nothing to train on or to evaluate with, or the loss is no longer finite.
    SegMambaError
        See `Run`, and `segmamba.inference.device.choose_device`.
    """
    end = time.monotonic() + 60 * minutes
    group, device = join_process_group(_device(config.device))
    task = task or _synthetic(config)
    task.prepare(device)
    run = Run(config, device, group, task)
    source = task.source(run)
    gradients = make_gradients(run)
    losses: list[Tensor] = []
    last = began = time.monotonic()
    spent = run.seconds
    while run.iteration < config.iterations and group.agree_to_continue(
        time.monotonic() < end and not task.is_over(run), run.iteration, device
    ):
        losses.append(step(run, gradients, source))
        run.iteration += 1
        if group.size == 1 or run.iteration % AGREE_EVERY == 0:
            run.seconds = group.mean(spent + time.monotonic() - began, device)
        if run.iteration % config.log_every == 0:
            _log_progress(run, losses, last)
            losses, last = [], time.monotonic()
        if run.iteration % config.checkpoint_every == 0:
            run.save()
        if task.evaluates and run.iteration % config.evaluate_every == 0 and run.iteration < config.iterations:
            spent += time.monotonic() - began
            run.evaluate()
            last = began = time.monotonic()
    run.save()
    group.wait(device)
    if task.evaluates:
        run.evaluate()
    return run.weights_path


def _synthetic(config: RunConfig) -> Task:
    assert isinstance(config, Config)
    return SyntheticTask(config)


def train_from_config(path: Path, minutes: float = math.inf) -> Path:
    """Train as a configuration file says; see `Config` and `train`."""
    return train(read_config(path), minutes)


def step(run: Run, gradients: Objective, source: Source) -> Tensor:
    """Take one optimizer step on new samples and return its loss, a scalar on the device.

    ``gradients`` is from `make_gradients`. Nothing is read back from the device, so that the processor can prepare the
    next step meanwhile.
    """
    with torch.no_grad():
        batch = source.batch(run.config.batch)
    for group in run.optimizer.param_groups:
        group["lr"] = run.learning_rate()
    loss = gradients(*vars(batch).values())
    run.group.average([p.grad for p in run.network.parameters() if p.grad is not None])
    norm = nn.utils.clip_grad_norm_(run.network.parameters(), LARGEST_GRADIENT_NORM)
    # Half precision may overflow: such a step changes nothing. The fused optimizer looks at this flag on the device.
    run.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
    run.optimizer.step()
    run.update_average()
    return loss


def _device(name: str) -> torch.device:
    device = torch.device(choose_device("cpu" if name == "auto" and not torch.cuda.is_available() else name).name)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return device


def make_objective(run: Run) -> Objective:
    """Return the function from images and targets to the loss, compiled where wanted and possible."""
    scan.allow_compiling()
    network = run.network
    loss = run.task.loss

    def objective(image: Tensor, *targets: Tensor) -> Tensor:
        return loss(network(image), *targets)

    return torch.compile(objective, fullgraph=True, dynamic=False) if run.compiles else objective


def make_gradients(run: Run) -> Objective:
    """Return the function from a batch to its loss that leaves the gradients; a CUDA graph if it is compiled."""
    compute = gradients_of(make_objective(run), run.network, run.device)
    return CudaGraphStep(compute) if run.compiles or (run.task.records and run.device.type == "cuda") else compute


def _log_progress(run: Run, losses: Sequence[Tensor], since: float) -> None:
    loss = float(torch.stack(list(losses)).mean())
    if not math.isfinite(loss):
        raise InputError("The loss is no longer finite: lower learning_rate and resume from the last state.")
    speed = len(losses) / (time.monotonic() - since)
    done = run.task.part_done(run)
    left = run.seconds * (1 - done) / done / 60 if done else None
    run.log(
        loss=round(loss, 4),
        lr=run.learning_rate(),
        per_second=round(speed, 2),
        minutes_left=None if left is None else round(left, 1),
    )
