"""Training at toy size: runs, resumes, exports, evaluates, and can be compiled."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import phantoms, small_spine, tiny
from helpers.voxel_networks import OneConvolution
from helpers.warm_child import warm_context

from segmamba import scan
from segmamba.cli.main import main
from segmamba.errors import InputError, ModelError, OutputError
from segmamba.models.manifest import IntensityNormalization
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights
from segmamba.training import loop, sample_source, tasks
from segmamba.training.config import Config, read_config
from segmamba.training.cuda_graph import CudaGraphStep, gradients_of
from segmamba.training.dataset.curves import read_log
from segmamba.training.losses import vertebra_loss
from segmamba.training.vertebrae import validation as evaluation
from segmamba.training.vertebrae.label_maps import prepare
from segmamba.training.vertebrae.samples import Shares, VertebraSynthesizer
from segmamba.training.vertebrae.tissue_maps import load_anatomies

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tissue label maps, an evaluation case, and a configuration that was run once."""
    folder = tmp_path_factory.mktemp("training")
    prepare(small_spine.write_subjects(folder / "labels"), folder / "maps", variants=1)
    phantoms.write_pair(folder)
    (folder / "cases").mkdir()
    arguments = [str(folder / "ct.nii.gz"), str(folder / "labels.nii.gz"), "spinemamba"]
    assert evaluation.main([*arguments, str(folder / "cases" / "phantom.npz")]) == 0
    (folder / "config.json").write_text(json.dumps(tiny.TRAINING), encoding="utf-8")
    assert main(["train", str(folder / "config.json")]) == 0
    return folder


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Config:
    """The configuration with a folder of its own, small patches and nothing to evaluate."""
    config = read_config(folder / "config.json")
    return replace(config, folder=str(tmp_path / "own"), patch=(16, 16, 16), evaluation="")


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights_of(run: loop.Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.network.state_dict().items()}


def synthesizer_of(config: Config, device: torch.device, seed: int = 0) -> VertebraSynthesizer:
    anatomies = load_anatomies(config.files(config.anatomies), device)
    channels = {"CT": config.channels, "MR": config.mr_channels}
    return VertebraSynthesizer(anatomies, config.patch, config.spacing, channels, Shares(config.mr_share), seed)


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
    assert set(entry["phantom"]) == {"dice_foreground", "level_accuracy"}
    assert all(0 <= value <= 1 for value in entry["phantom"].values())


def test_the_saved_weights_are_those_that_were_evaluated(folder: Path) -> None:
    config = read_config(folder / "config.json")
    network = build_network(config.architecture, **config.arguments).eval()
    load_weights(network, load_state_dict(folder / "run" / "weights.safetensors"))
    cases = config.files(config.evaluation)
    results = evaluation.evaluate(network, cases, config.channels, config.patch, torch.float32)
    assert results["phantom"] == pytest.approx(log_of(folder / "run")[-1]["evaluation"]["phantom"], abs=0.02)


@pytest.mark.parametrize("channels", [33, 6])
def test_an_evaluation_measures_mask_and_levels_each_on_its_own(folder: Path, channels: int) -> None:
    class Known(torch.nn.Module):
        """Finds the phantom's bones and takes each for L2; the way to their centres is whatever."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            answer = 1000 * torch.ones((1, channels, *image.shape[2:]))
            answer[:, 0], answer[:, 1:2], answer[:, 2] = 0.6, image, 0.0  # image: 1 in bones, 0.08 in water
            answer[:, 6:] = torch.eye(27)[20, : channels - 6].view(1, -1, 1, 1, 1)
            return answer

    case = folder / "cases" / "phantom.npz"
    channel = IntensityNormalization("clip", -1000.0, 1000.0, 0.0, 500.0)
    (results,) = evaluation.evaluate(Known(), [case], [channel], (32, 32, 32), torch.float32).values()
    with np.load(case) as content:
        labels = content["labels"]
    assert results["dice_foreground"] > 0.97
    if channels == 33:
        assert results["level_accuracy"] == pytest.approx((labels == 21).sum() / (labels > 0).sum())
    else:
        assert set(results) == {"dice_foreground"}


def test_the_second_stage_is_trained_without_levels(config: Config) -> None:
    arguments = config.arguments | {"out_channels": 6}
    loop.train(replace(config, arguments=arguments, spacing=1.25, iterations=2))
    (entry,) = log_of(Path(config.folder))
    assert math.isfinite(entry["loss"])


def test_maps_are_made_finer_with_the_samples_but_not_finer_than_a_millimetre(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def load(files: Any, device: torch.device, spacing: float) -> Any:
        asked.append(spacing)
        return load_anatomies(files, device)

    monkeypatch.setattr(sample_source, "load_anatomies", load)
    for number, spacing in enumerate((2.0, 1.25, 0.5)):
        loop.train(replace(config, spacing=spacing, folder=f"{config.folder}{number}"), minutes=0)
    assert asked == [2.0, 1.25, 1.0]


def test_a_run_goes_on_where_it_stopped_with_other_samples(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def synthesizer(*arguments: Any, seed: int, **options: Any) -> VertebraSynthesizer:
        seeds.append(seed)
        return VertebraSynthesizer(*arguments, seed=seed, **options)

    monkeypatch.setattr(sample_source, "VertebraSynthesizer", synthesizer)
    loop.train(replace(config, iterations=2, seed=7))
    loop.train(replace(config, iterations=4, seed=7))
    assert [entry["iteration"] for entry in log_of(Path(config.folder))] == [2, 4]
    assert seeds == [7, 9]
    run = loop.Run(config, CPU)
    assert run.iteration == 4
    averaged = load_state_dict(run.weights_path)
    assert torch.equal(averaged["out.conv.conv.weight"], run.average.state_dict()["out.conv.conv.weight"].half())
    assert differing(weights_of(run), run.average.state_dict())


@pytest.mark.slow
def test_other_processes_prefetch_and_each_has_a_seed_of_its_own_and_a_run_trains_on_what_they_give(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Started as others are, importing torch would take each of them seconds.
    monkeypatch.setattr(sample_source, "CONTEXT", warm_context())
    config = replace(config, num_workers=2, batch=1)
    source, make = sample_source.PrefetchedSource(config, CPU, 7), sample_source.synthesizer_factory(config, CPU)
    alone = [make(seed) for seed in (14, 15)]
    for synthesizer in (alone[0], alone[1], alone[0]):
        prefetched, expected = source.batch(1), synthesizer.batch(1)
        assert list(vars(prefetched)) == list(vars(expected))
        for ours, theirs in zip(vars(prefetched).values(), vars(expected).values(), strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    # The processes that run now, as starting others takes seconds.
    asked: list[int] = []
    monkeypatch.setattr(sample_source, "PrefetchedSource", lambda config, device, seed: asked.append(seed) or source)
    loop.train(replace(config, iterations=2))
    assert asked == [config.seed]
    (entry,) = log_of(Path(config.folder))
    assert math.isfinite(entry["loss"])


def test_without_maps_no_worker_process_starts(config: Config) -> None:
    with pytest.raises(InputError, match="no tissue label map to train on"):
        loop.train(replace(config, num_workers=1, anatomies="none/*.npz"))


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
    whole = state.read_bytes()
    for length in (*range(0, len(whole), len(whole) // 20), 1, 1000, len(whole) - 1):
        state.write_bytes(whole[:length])
        with pytest.raises(InputError, match="choose another folder"):
            loop.Run(config, CPU)


def test_a_line_of_the_log_that_was_cut_costs_no_other_one(config: Config) -> None:
    run = loop.Run(config, CPU)
    run.log(loss=1.0)
    path = run.folder / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    run.log(loss=2.0)
    run.log(loss=3.0)
    assert [entry["loss"] for entry in read_log(path)] == [2.0, 3.0]
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match=r"log\.jsonl cannot be written"):
        run.log(loss=4.0)


@pytest.fixture
def a_step(config: Config) -> tuple[loop.Run, VertebraSynthesizer]:
    config = replace(config, warmup=0, learning_rate=3e-3)
    return loop.Run(config, CPU), synthesizer_of(config, CPU, seed=1)


@pytest.mark.slow
def test_repeating_one_sample_lowers_its_loss(a_step: tuple[loop.Run, VertebraSynthesizer]) -> None:
    run, synthesizer = a_step
    sample = synthesizer.batch(1)
    synthesizer.batch = lambda size: sample  # type: ignore[method-assign]
    losses = [float(loop.step(run, loop.make_gradients(run), synthesizer)) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_without_finite_gradients_changes_nothing(
    a_step: tuple[loop.Run, VertebraSynthesizer], factor: float
) -> None:
    run, synthesizer = a_step
    objective, gradients = loop.make_objective(run), loop.make_gradients(run)
    loop.step(run, gradients, synthesizer)
    before, states = weights_of(run), [value["exp_avg"].clone() for value in run.optimizer.state.values()]
    broken = gradients_of(lambda *batch: factor * objective(*batch), run.network, CPU)
    loop.step(run, broken, synthesizer)
    assert not differing(before, weights_of(run))
    after = [value["exp_avg"] for value in run.optimizer.state.values()]
    assert all(torch.equal(first, second) for first, second in zip(states, after, strict=True))
    loop.step(run, gradients, synthesizer)
    assert differing(before, weights_of(run))


def test_a_loss_that_is_no_number_ends_the_run_with_advice(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*batch: torch.Tensor) -> torch.Tensor:
        return math.nan * vertebra_loss(*batch)

    monkeypatch.setattr(tasks, "vertebra_loss", broken)
    with pytest.raises(InputError, match="lower learning_rate"):
        loop.train(config)
    assert not (Path(config.folder) / "log.jsonl").exists()


class Captured(BaseException):
    """Ends a compilation once its graph is complete."""


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "scans"), [(33, 2), (6, 0)])
def test_network_and_loss_are_captured_in_one_graph(
    config: Config, channels: int, scans: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled or run: the kernels' own shapes stand in for them. The second stage's loss is another one."""
    triton_scan = pytest.importorskip("segmamba.scan.triton_scan")
    monkeypatch.setattr(triton_scan, "INTERPRETED", True)  # else it refuses the processor's tensors
    graphs: list[torch.fx.GraphModule] = []

    def stop(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        raise Captured

    run = loop.Run(replace(config, arguments=config.arguments | {"out_channels": channels}), CPU)
    if not scans:
        run.network = OneConvolution(1, channels)
    objective = loop.make_objective(run)
    batch = synthesizer_of(config, CPU).batch(1)
    torch.compiler.reset()
    scan.set_backend("triton")
    try:
        compiled = torch.compile(objective, fullgraph=True, dynamic=False, backend=stop)
        with pytest.raises(Captured), torch.autocast("cpu", torch.bfloat16):
            compiled(batch.image, batch.levels, batch.offsets, batch.ribs)
    finally:
        scan.set_backend(None)
        torch.compiler.reset()
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("segmamba.selective_scan" in name for name in called) == scans
    assert sum("smooth_l1_loss" in name for name in called) == 1


def test_the_rate_warms_up_and_decays(config: Config) -> None:
    run = loop.Run(replace(config, warmup=10, iterations=110, learning_rate=1.0), CPU)
    rates = []
    for run.iteration in (0, 9, 10, 60, 110, 200):
        rates.append(run.learning_rate())
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.005, 0.005])


def test_the_rate_decays_with_the_time_where_it_is_limited(config: Config) -> None:
    run = loop.Run(replace(config, warmup=0, iterations=1000, minutes=10.0, learning_rate=1.0), CPU)
    rates = []
    for run.seconds in (0.0, 300.0, 600.0):
        rates.append(run.learning_rate())
    assert rates == pytest.approx([1.0, 0.5, 0.005])
    assert run.task.is_over(run)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_step_never_waits_for_the_gpu(config: Config) -> None:
    device = torch.device("cuda:0")
    run = loop.Run(config, device)
    synthesizer = synthesizer_of(config, device)
    gradients = loop.make_gradients(run)
    for _ in range(3):  # libraries start up
        loop.step(run, gradients, synthesizer)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [loop.step(run, gradients, synthesizer) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_has_the_gradients_of_one_that_is_not(config: Config) -> None:
    device = torch.device("cuda:0")
    run, other = loop.Run(config, device), loop.Run(config, device)
    plain = gradients_of(loop.make_objective(run), run.network, device)
    captured = CudaGraphStep(gradients_of(loop.make_objective(other), other.network, device))
    synthesizer = synthesizer_of(config, device)
    for _ in range(3):  # captured with the first, replayed with the others
        batch = list(vars(synthesizer.batch(1)).values())
        assert float(captured(*batch)) == pytest.approx(float(plain(*batch)), rel=1e-2)
        assert captured.replays
        for mine, theirs in zip(run.network.parameters(), other.network.parameters(), strict=True):
            assert (mine.grad - theirs.grad).norm() <= 0.05 * mine.grad.norm() + 1e-4
