"""Training that begins from a model of the list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny
from helpers.labelled_images import NNUNET, cached, image_of, write_described

from segmamba.errors import InputError, ModelError
from segmamba.models.manifest import load_manifest
from segmamba.networks.checkpoint import load_state_dict
from segmamba.networks.identify import expected_shapes
from segmamba.training.dataset import start as starting
from segmamba.training.dataset.plan import Plan, read_plan
from segmamba.training.dataset.start import Start, class_axes, class_map, dice_before, transferred
from segmamba.training.dataset.train import Order, plan_training


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A tiny model with L1, L2 and L3 that is in the list."""
    model = load_manifest(tiny.write_model(tmp_path)).default("vertebrae")
    found = Start(model, tmp_path / "tiny.safetensors")
    monkeypatch.setattr(starting, "find_start", lambda model_id: found)
    monkeypatch.setattr("segmamba.training.dataset.train.find_start", lambda model_id: found)
    return found


def planned(tmp_path: Path, labels: dict[str, int]) -> Plan:
    description = NNUNET | {"channel_names": {"0": "CT"}, "labels": {"background": 0, **labels}}
    data = write_described(tmp_path / "data", ["a", "b"], description)
    return plan_training(Order(data, tmp_path / "run", device="cpu", base_model=tiny.MODEL_ID))


def test_axes_of_classes_are_those_that_a_class_more_makes_longer() -> None:
    shapes = expected_shapes("spine_mamba", tiny.ARGUMENTS)
    axes = class_axes("spine_mamba", tiny.ARGUMENTS)
    assert axes["out.conv.conv.bias"] == (0,)
    assert axes["shape_prior.self_update.0.relation"] == (1, 2)
    assert all(shapes[name][axis] == 4 for name, found in axes.items() for axis in found)


def test_known_structures_keep_their_weights_and_others_get_new_ones() -> None:
    old = {"body": torch.ones(2, 2), "head": torch.arange(4.0)[:, None], "pairs": torch.arange(16.0).view(1, 4, 4)}
    new = {"body": torch.zeros(2, 2), "head": torch.full((3, 1), -1.0), "pairs": torch.full((1, 3, 3), -1.0)}
    state = transferred(new, old, {"head": (0,), "pairs": (1, 2)}, {0: 0, 2: 3})
    assert torch.equal(state["body"], torch.ones(2, 2))
    assert state["head"].flatten().tolist() == [0.0, -1.0, 3.0]
    assert state["pairs"][0].tolist() == [[0.0, -1.0, 3.0], [-1.0, -1.0, -1.0], [12.0, -1.0, 15.0]]


def test_a_network_of_another_size_is_refused() -> None:
    with pytest.raises(ModelError, match="'body' do not fit"):
        transferred({"body": torch.zeros(2, 2)}, {"body": torch.zeros(3, 2)}, {}, {})


def test_the_plan_follows_the_model_that_it_begins_from(start: Start, tmp_path: Path) -> None:
    plan = planned(tmp_path, {"L2 vertebra": 1, "disc": 2})
    assert (plan.spacing, plan.patch, plan.base_model) == ((4.0, 4.0, 4.0), (32, 32, 32), tiny.MODEL_ID)
    assert plan.recipe.arguments["out_channels"] == 3
    assert class_map(plan, start) == {0: 0, 1: 2}
    assert read_plan(tmp_path / "run" / "plan.json") == plan
    old, new = load_state_dict(start.weights), load_state_dict(tmp_path / "run" / "start.safetensors")
    bias = "out.conv.conv.bias"
    assert torch.equal(new[bias][:2].float(), old[bias][[0, 2]].half().float())
    axes = class_axes("spine_mamba", plan.recipe.arguments)
    body = next(name for name, value in new.items() if name not in axes and value.ndim > 1)
    assert torch.equal(new[body].float(), old[body].half().float())


def test_the_model_is_measured_before_only_where_it_knows_all_structures(start: Start, tmp_path: Path) -> None:
    plan = planned(tmp_path, {"L2 vertebra": 1, "disc": 2})
    case = cached(*image_of(0))
    assert dice_before(plan, [case], tmp_path) is None
    recipe = replace(plan.recipe, start_from=str(start.weights), arguments=tiny.ARGUMENTS, device="cpu")
    whole = replace(plan, labels={"L1 vertebra": 1, "L2 vertebra": 2, "L3 vertebra": 3}, recipe=recipe)
    found = dice_before(whole, [case], tmp_path)
    assert found is not None
    assert 0 <= found < 1
    assert (tmp_path / "before.json").is_file()


def test_two_stages_and_an_own_architecture_are_refused(tmp_path: Path) -> None:
    data = write_described(tmp_path / "data", ["a", "b"], NNUNET)
    with pytest.raises(ModelError, match="has two stages"):
        plan_training(Order(data, tmp_path / "run", base_model="spinemamba", device="cpu"))
    with pytest.raises(InputError, match="leave out --architecture"):
        plan_training(Order(data, tmp_path / "run", "spinemamba", base_model="segmamba-v2-colorectal"))
