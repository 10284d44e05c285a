"""What is wrong with a training configuration is said in one sentence, and the recipes that come with it are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_spine, tiny
from helpers.repository import REPOSITORY

from segmamba.cli.main import main
from segmamba.errors import InputError
from segmamba.models.manifest import load_manifest
from segmamba.networks import build_network
from segmamba.networks.spine_mamba import OFFSET, RIB, STRIDE
from segmamba.training.config import read_config
from segmamba.training.vertebrae.label_maps import prepare

RECIPES = REPOSITORY / "Resources" / "Training"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps of tissues, and an evaluation case that nothing here gets to read."""
    folder = tmp_path_factory.mktemp("config")
    prepare(small_spine.write_subjects(folder / "labels"), folder / "maps", variants=1)
    (folder / "cases").mkdir()
    (folder / "cases" / "phantom.npz").touch()
    return folder


Change = Callable[[dict[str, Any]], object]
BAD_CONFIGURATIONS: dict[str, tuple[Change, str]] = {
    "missing key": (lambda c: c.pop("patch"), "the key 'patch' is missing"),
    "unknown key": (lambda c: c.update(epochs=3), "no key 'epochs'"),
    "unknown field of a channel": (lambda c: c["channels"][0].update(width=3), "width"),
    "wrong type": (lambda c: c.update(batch="two"), "batch must be"),
    "text for a number": (lambda c: c.update(learning_rate="fast"), "not supported"),
    "two axes": (lambda c: c.update(patch=[32, 32]), "patch must be"),
    "classes": (lambda c: c["arguments"].update(out_channels=27), "out_channels must be 33, or 6 without levels"),
    "no classes": (lambda c: c["arguments"].pop("out_channels"), "out_channels must be 33"),
    "channels": (lambda c: c["arguments"].update(in_channels=2), "in_channels must be"),
    "scheme of a channel": (lambda c: c["channels"][0].update(scheme="relative"), "channels must be of scheme clip"),
    "scheme of an MR channel": (
        lambda c: c["mr_channels"][0].update(scheme="clip"),
        "mr_channels must be of scheme rel",
    ),
    "MR without channels": (lambda c: c.pop("mr_channels"), "mr_channels must be as many as channels"),
    "more MR channels": (lambda c: c["mr_channels"].append(c["mr_channels"][0]), "mr_channels must be as many"),
    "field of an MR channel": (lambda c: c["mr_channels"][0].pop("high"), "high"),
    "negative share": (lambda c: c.update(mr_share=-0.1), "mr_share must be from 0 to 1"),
    "share above one": (lambda c: c.update(mr_share=1.5), "mr_share must be from 0 to 1"),
    "exams without a share": (lambda c: c.update(exams="exams/*.npz"), "exams and exam_share, from 0 to 1"),
    "a share of no exams": (lambda c: c.update(exam_share=0.5), "exams and exam_share, from 0 to 1"),
    "share in words": (lambda c: c.update(mr_share="half"), "not supported"),
    "architecture": (lambda c: c.update(architecture="unet"), "no architecture 'unet'"),
    "nothing to train on": (lambda c: c.update(anatomies="none/*.npz"), "no tissue label map to train on"),
    "no exam": (lambda c: c.update(exams="none/*.npz", exam_share=0.5), "No exam matches 'none/*.npz'"),
    "nothing to evaluate": (lambda c: c.update(evaluation="none/*.npz"), "No evaluation case"),
    "device": (lambda c: c.update(device="tpu"), "no device 'tpu'"),
    "start": (lambda c: c.update(folder="other", start_from="none.safetensors"), "no checkpoint file"),
}


@pytest.mark.parametrize("name", BAD_CONFIGURATIONS)
def test_a_bad_configuration_is_one_sentence(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = BAD_CONFIGURATIONS[name]
    content = json.loads(json.dumps(tiny.TRAINING))
    change(content)
    path = folder / "bad.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert main(["train", str(path)]) not in (0, 1)
    printed = capsys.readouterr()
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_file_that_is_no_configuration_is_one_sentence(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="training configuration"):
        read_config(path)


def test_channels_for_mr_are_needed_only_with_a_share_of_mr(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(tiny.TRAINING), encoding="utf-8")
    config = read_config(path)
    assert replace(config, mr_channels=(), mr_share=0.0).mr_channels == ()
    assert replace(config, mr_share=0.0).mr_channels == config.mr_channels


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_a_recipe_is_that_of_a_stage_of_the_bundled_model(stage: str) -> None:
    recipe, model = read_config(RECIPES / f"spinemamba-{stage}.json"), load_manifest().model("spinemamba")
    assert model.fine is not None
    assert model.mr_preprocessing is not None
    grid = model if stage == "coarse" else model.fine
    spacing = model.preprocessing.spacing if stage == "coarse" else model.fine.spacing
    assert recipe.arguments == dict(model.arguments[stage])
    assert recipe.channels == model.preprocessing.normalization
    assert recipe.mr_channels == model.mr_preprocessing.normalization
    assert recipe.patch == grid.patch
    assert (recipe.spacing,) * 3 == spacing


@pytest.mark.parametrize(("stage", "channels"), [("coarse", RIB.stop), ("fine", OFFSET.stop)])
def test_a_recipe_makes_the_network_of_its_stage(stage: str, channels: int) -> None:
    recipe = read_config(RECIPES / f"spinemamba-{stage}.json")
    with torch.device("meta"):
        network = build_network(recipe.architecture, **recipe.arguments)
    assert network.state_dict()["out.conv.conv.weight"].shape[0] == channels
    assert all(n % STRIDE == 0 for n in recipe.patch)
    assert 0 < recipe.mr_share < 1
