"""Several processes train one network: two on the processor stand for two GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import small_spine, tiny
from helpers.labelled_images import NNUNET, write_described

from segmamba.training.dataset.plan import write_plan
from segmamba.training.dataset.train import Order, plan_training
from segmamba.training.vertebrae.label_maps import prepare
from segmamba.worker.client import worker_environment

# What each process does, with its rank and the folder.
STEPS = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from segmamba.training import distributed, loop, sample_source
folder = Path(sys.argv[1])
config = replace(loop.read_config(folder / "config.json"), evaluation="", folder="steps")
group, device = distributed.join_process_group(torch.device("cpu"))
run = loop.Run(config, device, group)
source = sample_source.synthesizer_factory(config, device)(group.rank)
gradients = loop.make_gradients(run)
losses = [loop.step(run, gradients, source) for _ in range(2)]
going = [group.agree_to_continue(group.rank == 0, step, device) for step in (1, 10)]
loop.train(replace(config, folder="run"))
torch.save({"losses": losses, "weights": run.network.state_dict(), "going": going}, folder / f"{group.rank}.pt")
"""


def torchrun(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    subprocess.run(command, check=True, env=worker_environment(), timeout=900)


@pytest.mark.slow
def test_two_processes_see_different_samples_and_keep_the_same_weights(tmp_path: Path) -> None:
    prepare(small_spine.write_subjects(tmp_path / "labels"), tmp_path / "maps", variants=1)
    (tmp_path / "config.json").write_text(json.dumps(tiny.TRAINING | {"evaluation": ""}), encoding="utf-8")
    (tmp_path / "steps.py").write_text(STEPS, encoding="utf-8")
    torchrun(str(tmp_path / "steps.py"), str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert not torch.equal(first["losses"][0], second["losses"][0])
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["going"] == second["going"] == [True, False]
    # A whole run: one log, and one set of weights.
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [2, 4]
    assert (tmp_path / "run" / "weights.safetensors").is_file()


# What each process of a training on labelled images does; the samples that it saw are kept.
ON_LABELLED = """
import os, sys, torch
from pathlib import Path
from segmamba.training.dataset.source import CaseSource
from segmamba.training.dataset.train import Order, train_on_dataset
folder, seen, batch = Path(sys.argv[1]), [], CaseSource.batch
def noted(self, size):
    found = batch(self, size)
    seen.append(found.image)
    return found
CaseSource.batch = noted
train_on_dataset(Order(folder / "data", folder / "run", device="cpu"))
torch.save(seen, folder / f"{os.environ['RANK']}.pt")
"""


@pytest.mark.slow
def test_two_processes_share_labelled_images_and_one_of_them_writes(tmp_path: Path) -> None:
    order = Order(write_described(tmp_path / "data", ["a", "b", "c"], NNUNET), tmp_path / "run", device="cpu")
    plan = plan_training(order)
    recipe = replace(plan.recipe, arguments=tiny.ARGUMENTS | {"out_channels": 2}, architecture="spine_mamba", batch=1)
    recipe = replace(recipe, iterations=3, log_every=1, readers=1)
    write_plan(replace(plan, patch=(16, 16, 16), recipe=recipe), tmp_path / "run" / "plan.json")
    (tmp_path / "steps.py").write_text(ON_LABELLED, encoding="utf-8")
    torchrun(str(tmp_path / "steps.py"), str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len(first) == len(second) == 3
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    fold = tmp_path / "run" / "fold-0"
    lines = [json.loads(line) for line in (fold / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == [1, 2, 3]
    assert sum("evaluation" in line for line in lines) == 1
    assert (fold / "model" / "model.json").is_file()
