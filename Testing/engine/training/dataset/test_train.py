"""``segmamba train DATASET``, from a folder to weights."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from helpers.labelled_images import NNUNET, cached, image_of, write_described

from segmamba import networks
from segmamba.cli.main import main
from segmamba.errors import InputError
from segmamba.models.manifest import IntensityNormalization
from segmamba.networks.checkpoint import load_state_dict
from segmamba.training import loop
from segmamba.training.dataset.plan import Plan, Recipe
from segmamba.training.dataset.task import DatasetTask
from segmamba.training.dataset.train import Order, plan_training
from segmamba.training.loop import Run

TINY = {"in_channels": 1, "out_channels": 2, "features": [4, 8, 8, 16, 16], "depths": [1, 1], "shape_prior": False}
RECIPE = Recipe(
    architecture="one_convolution",
    arguments={"in_channels": 1, "out_channels": 2},
    iterations=8,
    warmup=2,
    learning_rate=0.02,
    ema=0.5,
    log_every=2,
    device="cpu",
    readers=1,
)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setitem(networks.ARCHITECTURES, "one_convolution", ("helpers.voxel_networks", "OneConvolution"))
    channel = IntensityNormalization("percentile", 0.5, 99.5)
    recipe = replace(RECIPE, folder=str(tmp_path / "run"))
    return Plan("cubes", ("MR",), {"cube": 1}, None, "LPS", (1.0,) * 3, False, (channel,), (8, 8, 8), (2,), recipe)


class KilledAfter(DatasetTask):
    iterations = 4

    def is_over(self, run: Run) -> bool:
        return run.iteration >= self.iterations


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_a_training_that_was_ended_goes_on_to_the_same_loss_and_weights(plan: Plan, tmp_path: Path) -> None:
    cases = [cached(*image_of(seed), name=str(seed)) for seed in range(3)]
    whole = loop.train(plan.recipe, task=DatasetTask(plan, cases))
    parts = replace(plan, recipe=replace(plan.recipe, folder=str(tmp_path / "parts")))
    loop.train(parts.recipe, task=KilledAfter(parts, cases))
    resumed = loop.train(parts.recipe, task=DatasetTask(parts, cases))
    assert losses(tmp_path / "run") == losses(tmp_path / "parts")
    expected, found = load_state_dict(whole), load_state_dict(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_minutes_that_are_spent_end_a_run_and_stay_spent(plan: Plan) -> None:
    recipe = replace(plan.recipe, minutes=1e-6, iterations=1000)
    spent = replace(plan, recipe=recipe)
    for _ in range(2):
        loop.train(recipe, task=DatasetTask(spent, [cached(*image_of(0))]))
        state = torch.load(Path(recipe.folder) / "state.pt", weights_only=True)
        assert state["iteration"] == 1


def test_the_rate_falls_to_nothing_over_the_iterations(plan: Plan) -> None:
    task = DatasetTask(plan, [cached(*image_of(0))])
    run = Run(plan.recipe, torch.device("cpu"), task=task)
    rates = []
    for run.iteration in range(9):
        rates.append(task.learning_rate(run))
    assert rates[0] == pytest.approx(0.01) and rates[8] == 0
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_the_best_validation_is_kept_beside_the_last(plan: Plan) -> None:
    cases = [cached(*image_of(seed), name=str(seed)) for seed in range(2)]
    weights = loop.train(plan.recipe, task=DatasetTask(plan, cases[:1], cases[1:]))
    assert (weights.parent / "best.safetensors").is_file()
    last = json.loads((weights.parent / "log.jsonl").read_text().splitlines()[-1])
    assert set(last["evaluation"]) == {"1"} and 0 <= last["mean_dice"] <= 1


def test_a_plan_is_made_once_and_then_followed(tmp_path: Path) -> None:
    data = write_described(tmp_path / "data", ["a", "b"], NNUNET)
    order = Order(data, tmp_path / "run", "spinemamba", device="cpu")
    plan = plan_training(order)
    path = order.output / "plan.json"
    path.write_text(path.read_text().replace('"batch": 2', '"batch": 1'))
    assert plan.recipe.batch == 2
    assert plan_training(replace(order, architecture=None)).recipe.batch == 1
    with pytest.raises(InputError, match=r"plan\.json is for another architecture"):
        plan_training(replace(order, architecture="segmamba-v2"))


def test_several_processes_need_a_plan_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--plan-only"):
        plan_training(Order(tmp_path, tmp_path / "run"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{data}"], "give --output RUN"),
        (["{data}", "-o", "{run}", "--minutes", "0"], "--minutes must be more than 0"),
        (["{data}", "-o", "{run}", "--architecture", "u-net"], "There is no architecture 'u-net'"),
        (["{data}", "-o", "{run}", "--fold", "2"], "error: There is no fold 2: choose 0 to 1, or all"),
        (["{missing}", "-o", "{run}"], "missing does not exist: give the folder of a data set, or a configuration"),
        (["{data}/dataset.json", "-o", "{run}"], "--output is for data sets, and {data}/dataset.json is no folder"),
    ],
)
def test_wrong_options_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    data = write_described(tmp_path / "data", ["a", "b"], NNUNET)
    places = {"data": data, "run": tmp_path / "run", "missing": tmp_path / "missing"}
    assert main(["train", *(text.format(**places) for text in arguments)]) > 0
    said = capsys.readouterr().err
    # Nothing was planned: the images were not read.
    assert expected.format(**places) in said and "Plan:" not in said


@pytest.mark.slow
def test_a_data_set_becomes_a_model_that_finds_its_cubes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "store"))
    data = write_described(tmp_path / "data", ["a", "b", "c", "d"], NNUNET, size=24)
    command = ["train", str(data), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*command, "--architecture", "spinemamba", "--plan-only"]) == 0
    path = tmp_path / "run" / "plan.json"
    plan = json.loads(path.read_text())
    assert plan["patch"] == [32, 32, 32]
    changes = {"arguments": TINY, "iterations": 16, "warmup": 2, "learning_rate": 0.01, "ema": 0.8, "batch": 1}
    plan["patch"] = [24, 24, 24]
    plan["recipe"] |= changes | {"log_every": 8}
    path.write_text(json.dumps(plan))
    assert main([*command, "--fold", "1"]) == 0
    assert main([*command, "--fold", "9"]) > 0
    assert "There is no fold 9: choose 0 to 3, or all." in capsys.readouterr().err
    log = [json.loads(line) for line in (tmp_path / "run" / "fold-1" / "log.jsonl").read_text().splitlines()]
    assert len(log[-1]["evaluation"]) == 1
    assert log[-1]["mean_dice"] > 0.8
    fold = tmp_path / "run" / "fold-1"
    assert {path.name for path in (fold / "model").iterdir()} == {
        "model.json",
        "weights.safetensors",
        "card.md",
        "worst.png",
    }
    assert (fold / "curves.png").is_file()
    assert (tmp_path / "run" / "cases.png").is_file()
    row = re.search(r"\| cube \| 1 \| ([01]\.\d+)", (fold / "model" / "card.md").read_text())
    assert row is not None and float(row[1]) > 0.5
    assert main(["models", "import", str(tmp_path / "run"), "--as", "cubes"]) == 0
    image, output = data / "imagesTr" / "a_0000.nii", tmp_path / "found.nii"
    assert main(["segment", str(image), "--task", "cubes", "-o", str(output), "--device", "cpu", "--in-process"]) == 0
    found, expected = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == 1 for path in (output, data / "labelsTr/a.nii")
    )
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.8
