"""Several processes train one network: two on the processor stand for two GPUs."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_spine, tiny
from helpers.labelled_images import NNUNET, write_described
from helpers.own_time import PATIENCE
from helpers.warm_child import start_file

from segmamba.training.dataset.plan import write_plan
from segmamba.training.dataset.train import Order, plan_training
from segmamba.training.vertebrae.label_maps import prepare

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the processes are forked")
# What each process does, in one folder after the other; what it saw is kept there by its rank.
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


# And a training on labelled images.
ON_LABELLED = """
import os
from segmamba import networks
from segmamba.training.dataset.source import CaseSource
from segmamba.training.dataset.train import Order, train_on_dataset
folder, seen, batch = Path(sys.argv[2]), [], CaseSource.batch
def noted(self, size):
    found = batch(self, size)
    seen.append(found.image)
    return found
CaseSource.batch = noted
networks.ARCHITECTURES["one_convolution"] = ("helpers.voxel_networks", "OneConvolution")
train_on_dataset(Order(folder / "data", folder / "run", device="cpu"))
torch.save(seen, folder / f"{os.environ['RANK']}.pt")
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of what two processes have done that were started as ``torchrun`` does: `STEPS`, `ON_LABELLED`."""
    steps, labelled = tmp_path_factory.mktemp("steps"), tmp_path_factory.mktemp("labelled")
    prepare(small_spine.write_subjects(steps / "labels"), steps / "maps", variants=1)
    (steps / "config.json").write_text(
        json.dumps(tiny.TRAINING | {"evaluation": "", "patch": [16, 16, 16]}), encoding="utf-8"
    )
    order = Order(write_described(labelled / "data", ["a", "b", "c"], NNUNET), labelled / "run", device="cpu")
    plan = plan_training(order)
    arguments = {"in_channels": 1, "out_channels": 2}
    recipe = replace(
        plan.recipe, architecture="one_convolution", arguments=arguments, batch=1, iterations=3, log_every=1, readers=1
    )
    write_plan(replace(plan, patch=(16, 16, 16), recipe=recipe), labelled / "run" / "plan.json")
    (steps / "both.py").write_text(STEPS + ON_LABELLED, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [
        start_file(steps / "both.py", [str(steps), str(labelled)], group | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    for process in started:
        process.join(PATIENCE)
    assert [process.exitcode for process in started] == [0, 0]
    return steps, labelled


def of_both(folder: Path) -> list[Any]:
    """Return what the first and the second process kept."""
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_see_different_samples_and_keep_the_same_weights(done: tuple[Path, Path]) -> None:
    folder, _labelled = done
    first, second = of_both(folder)
    assert not torch.equal(first["losses"][0], second["losses"][0])
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["going"] == second["going"] == [True, False]
    # A whole run: one log, and one set of weights.
    lines = (folder / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [2, 4]
    assert (folder / "run" / "weights.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_share_labelled_images_and_one_of_them_writes(done: tuple[Path, Path]) -> None:
    _steps, folder = done
    first, second = of_both(folder)
    assert len(first) == len(second) == 3
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    fold = folder / "run" / "fold-0"
    lines = [json.loads(line) for line in (fold / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == [1, 2, 3]
    assert sum("evaluation" in line for line in lines) == 1
    assert (fold / "model" / "model.json").is_file()
