"""Training at toy size: runs, resumes, exports, evaluates, and says what is wrong with a configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import small_spine
import tiny
import torch
from phantoms import phantom, true_labels

from segmamba import cli
from segmamba.errors import InputError, ModelError
from segmamba.manifest import load_manifest
from segmamba.networks.checkpoint import load_state_dict
from segmamba.training import evaluate as evaluation
from segmamba.training import loop
from segmamba.training.anatomy import prepare
from segmamba.training.config import Config, read_config
from segmamba.training.losses import dice_cross_entropy
from segmamba.training.synthesis import Painter, load_anatomies
from segmamba.volume import Volume, to_image

CPU = torch.device("cpu")
RECIPE = Path(__file__).parents[2] / "Resources" / "Training" / "spinemamba-ct.json"
CONTENT: dict[str, Any] = {
    "architecture": "spine_mamba",
    "arguments": tiny.ARGUMENTS | {"out_channels": 27},
    "channels": [{"kind": "clip", "low": -1000.0, "high": 1000.0, "mean": 0.0, "std": 500.0}],
    "anatomies": "maps/*.npz",
    "evaluation": "cases/*.npz",
    "patch": [32, 32, 32],
    "spacing": 3.0,
    "folder": "run",
    "batch": 1,
    "iterations": 4,
    "warmup": 2,
    "log_every": 2,
    "checkpoint_every": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps of tissues, an evaluation case, and a configuration that was run once."""
    folder = tmp_path_factory.mktemp("training")
    prepare(small_spine.write_subjects(folder / "labels"), folder / "maps", variants=1)
    volume = phantom()
    labels = true_labels(volume.geometry)
    sitk.WriteImage(to_image(volume.array, volume.geometry), str(folder / "ct.nii.gz"))
    sitk.WriteImage(to_image(labels, volume.geometry), str(folder / "labels.nii.gz"))
    (folder / "cases").mkdir()
    arguments = [str(folder / "ct.nii.gz"), str(folder / "labels.nii.gz"), "spinemamba-ct"]
    assert evaluation.main([*arguments, str(folder / "cases" / "phantom.npz")]) == 0
    (folder / "config.json").write_text(json.dumps(CONTENT), encoding="utf-8")
    assert cli.main(["train", str(folder / "config.json")]) == 0
    return folder


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Config:
    """The configuration with a folder of its own and nothing to evaluate."""
    return replace(read_config(folder / "config.json"), folder=str(tmp_path / "own"), evaluation="")


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights_of(run: loop.Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.network.state_dict().items()}


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


def test_a_run_logs_finite_losses_and_an_evaluation_as_json_lines(folder: Path) -> None:
    log = log_of(folder / "run")
    losses = [entry for entry in log if "loss" in entry]
    assert [entry["iteration"] for entry in losses] == [2, 4]
    assert all(math.isfinite(entry["loss"]) and entry["per_second"] > 0 for entry in losses)
    assert losses[0]["lr"] > losses[1]["lr"] > 0
    (entry,) = (entry["evaluation"] for entry in log if "evaluation" in entry)
    assert set(entry) == {"phantom"}
    assert 0 <= entry["phantom"]["dice_mean"] <= entry["phantom"]["dice_all"] <= 1


def test_trained_weights_segment_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    arguments = CONTENT["arguments"]
    manifest = tiny.write_model(tmp_path, arguments=arguments, channel_values=list(range(27)))
    result = tmp_path / "out.nii.gz"
    options = ["--task", "vertebrae", "--in-process", "--device", "cpu", "--no-postprocess", "--quiet"]
    checkpoint = ["--checkpoint", str(folder / "run" / "weights.safetensors"), "--manifest", str(manifest)]
    assert cli.main(["segment", str(folder / "ct.nii.gz"), "--output", str(result), *options, *checkpoint]) == 0
    assert sitk.ReadImage(str(result)).GetSize() == phantom().geometry.size


def test_a_run_goes_on_where_it_stopped_with_other_samples(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def painter(*arguments: Any, seed: int) -> Painter:
        seeds.append(seed)
        return Painter(*arguments, seed=seed)

    monkeypatch.setattr(loop, "Painter", painter)
    loop.train(replace(config, iterations=2, seed=7))
    loop.train(replace(config, iterations=4, seed=7))
    assert [entry["iteration"] for entry in log_of(Path(config.folder))] == [2, 4]
    assert seeds == [7, 9]
    run = loop.Run(config, CPU)
    assert run.iteration == 4
    averaged = load_state_dict(run.weights_path)
    assert torch.equal(averaged["out.conv.conv.weight"], run.average.state_dict()["out.conv.conv.weight"].half())
    assert differing(weights_of(run), run.average.state_dict())


def test_a_run_stops_when_its_time_is_up(config: Config) -> None:
    weights = loop.train(config, minutes=0)
    assert weights.is_file()
    assert loop.Run(config, CPU).iteration == 0


def test_a_run_without_a_state_starts_from_given_weights(folder: Path, config: Config) -> None:
    weights = folder / "run" / "weights.safetensors"
    given = load_state_dict(weights)
    run = loop.Run(replace(config, start_from=str(weights)), CPU)
    assert not differing({name: value.half() for name, value in weights_of(run).items()}, given)
    assert not differing(weights_of(run), run.average.state_dict())
    assert differing(weights_of(loop.Run(replace(config, seed=1), CPU)), weights_of(run))


def test_a_state_goes_before_given_weights(folder: Path) -> None:
    config = read_config(folder / "config.json")
    expected = loop.Run(config, CPU)
    run = loop.Run(replace(config, start_from="run/weights.safetensors"), CPU)
    assert run.iteration == 4
    assert not differing(weights_of(run), weights_of(expected))


def test_given_weights_of_another_network_are_refused(folder: Path, config: Config) -> None:
    arguments = config.arguments | {"depths": [2, 1]}
    weights = str(folder / "run" / "weights.safetensors")
    with pytest.raises(ModelError, match="has no weight"):
        loop.Run(replace(config, arguments=arguments, start_from=weights), CPU)


def test_a_damaged_state_is_one_sentence(config: Config) -> None:
    loop.train(config, minutes=0)
    state = Path(config.folder) / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="choose another folder"):
        loop.Run(config, CPU)


@pytest.fixture
def a_step(config: Config) -> tuple[loop.Run, Painter]:
    config = replace(config, warmup=0, learning_rate=3e-3)
    painter = Painter(load_anatomies(config.files(config.anatomies), CPU), config.patch, config.spacing, seed=1)
    return loop.Run(config, CPU), painter


def test_repeating_one_sample_lowers_its_loss(a_step: tuple[loop.Run, Painter]) -> None:
    run, painter = a_step
    sample = painter.batch(1)
    painter.batch = lambda size: sample  # type: ignore[method-assign]
    losses = [float(loop.step(run, loop.make_objective(run), painter)) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_without_finite_gradients_changes_nothing(a_step: tuple[loop.Run, Painter], factor: float) -> None:
    run, painter = a_step
    objective = loop.make_objective(run)
    loop.step(run, objective, painter)
    before, states = weights_of(run), [value["exp_avg"].clone() for value in run.optimizer.state.values()]
    loop.step(run, lambda image, labels: factor * objective(image, labels), painter)
    assert not differing(before, weights_of(run))
    after = [value["exp_avg"] for value in run.optimizer.state.values()]
    assert all(torch.equal(first, second) for first, second in zip(states, after, strict=True))
    loop.step(run, objective, painter)
    assert differing(before, weights_of(run))


def test_a_loss_that_is_no_number_ends_the_run_with_advice(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return math.nan * dice_cross_entropy(logits, labels)

    monkeypatch.setattr(loop, "dice_cross_entropy", broken)
    with pytest.raises(InputError, match="lower learning_rate"):
        loop.train(config)
    assert not (Path(config.folder) / "log.jsonl").exists()


def test_the_rate_warms_up_and_decays(config: Config) -> None:
    run = loop.Run(replace(config, warmup=10, iterations=110, learning_rate=1.0), CPU)
    rates = []
    for run.iteration in (0, 9, 10, 60, 110, 200):
        rates.append(run.learning_rate())
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.005, 0.005])


Change = Callable[[dict[str, Any]], object]
BAD_CONFIGURATIONS: dict[str, tuple[Change, str]] = {
    "missing key": (lambda c: c.pop("patch"), "the key 'patch' is missing"),
    "unknown key": (lambda c: c.update(epochs=3), "no key 'epochs'"),
    "unknown field of a channel": (lambda c: c["channels"][0].update(width=3), "width"),
    "wrong type": (lambda c: c.update(batch="two"), "batch must be"),
    "text for a number": (lambda c: c.update(learning_rate="fast"), "not supported"),
    "two axes": (lambda c: c.update(patch=[32, 32]), "patch must be"),
    "classes": (lambda c: c["arguments"].update(out_channels=4), "out_channels must be 27"),
    "channels": (lambda c: c["arguments"].update(in_channels=2), "in_channels must be"),
    "architecture": (lambda c: c.update(architecture="unet"), "no architecture 'unet'"),
    "nothing to train on": (lambda c: c.update(anatomies="none/*.npz"), "no anatomy to train on"),
    "nothing to evaluate": (lambda c: c.update(evaluation="none/*.npz"), "No evaluation case"),
    "device": (lambda c: c.update(device="tpu"), "no device 'tpu'"),
    "start": (lambda c: c.update(folder="other", start_from="none.safetensors"), "no checkpoint file"),
}


@pytest.mark.parametrize("name", BAD_CONFIGURATIONS)
def test_a_bad_configuration_is_one_sentence(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = BAD_CONFIGURATIONS[name]
    content = json.loads(json.dumps(CONTENT))
    change(content)
    path = folder / "bad.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert cli.main(["train", str(path)]) not in (0, 1)
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


def test_the_bundled_recipe_is_that_of_the_bundled_model() -> None:
    recipe, model = read_config(RECIPE), load_manifest().model("spinemamba-ct")
    assert recipe.architecture == model.architecture
    assert recipe.arguments == dict(model.arguments)
    assert recipe.channels == model.preprocessing.channels
    assert recipe.patch == model.patch
    assert (recipe.spacing,) * 3 == model.preprocessing.spacing


def test_an_evaluation_case_lies_on_the_models_grid_in_hounsfield_units(folder: Path) -> None:
    with np.load(folder / "cases" / "phantom.npz") as case:
        image, labels = case["image"], case["labels"]
    assert image.shape == labels.shape
    assert (image.dtype, labels.dtype) == (np.int16, np.uint8)
    assert np.median(image[labels > 0]) == 500
    voxels = {20: 28.0 * 21.0 * 13.0, 22: 28.0 * 21.0 * 13.0}
    for value, radii in voxels.items():
        assert (labels == value).sum() * 2.0**3 == pytest.approx(4 / 3 * math.pi * radii, rel=0.03)


def test_labels_that_do_not_belong_to_the_image_are_refused() -> None:
    volume = phantom()
    model = load_manifest().model("spinemamba-ct")
    labels = true_labels(volume.geometry)
    elsewhere = Volume(labels, replace(volume.geometry, origin=(5000.0, 0.0, 0.0)))
    with pytest.raises(InputError, match="No label lies on the image"):
        evaluation.evaluation_case(volume, elsewhere, model)
    with pytest.raises(InputError, match="values from 0 to 26"):
        evaluation.evaluation_case(volume, Volume(2 * labels, volume.geometry), model)


def test_a_bad_evaluation_case_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = str(folder / "never.npz")
    assert evaluation.main([str(folder / "ct.nii.gz"), "nowhere.nii", "spinemamba-ct", case]) == 3
    assert evaluation.main([str(folder / "ct.nii.gz"), str(folder / "labels.nii.gz"), "x", case]) == 4
    assert evaluation.main([str(folder / "ct.nii.gz"), str(folder / "labels.nii.gz"), "spinemamba-ct", "a.txt"]) == 6
    assert capsys.readouterr().err.count("\n") == 3
    assert not Path(case).exists()


def test_dice_is_two_overlaps_by_both_sizes() -> None:
    reference = np.array([[[0, 1, 1, 2, 2]]])
    labels = np.array([[[1, 1, 0, 2, 2]]])
    assert evaluation.dice_by_label(labels, reference) == {1: 0.5, 2: 1.0}
    assert evaluation.dice_of_all(labels, reference) == 0.75
    assert evaluation.dice_of_all(0 * labels, 0 * reference) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_step_never_waits_for_the_gpu(config: Config) -> None:
    device = torch.device("cuda:0")
    run = loop.Run(config, device)
    painter = Painter(load_anatomies(config.files(config.anatomies), device), config.patch, config.spacing)
    objective = loop.make_objective(run)
    for _ in range(3):  # libraries start up
        loop.step(run, objective, painter)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [loop.step(run, objective, painter) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()
