"""The fast path: its kernels against float64, and its networks against the plain ones."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers.repository import HELPERS, PACKAGES
from torch import nn

from segmamba.fast import FastNetwork, fast_network, forget, kernels, release_memory
from segmamba.fast.accelerate import accelerate, agrees
from segmamba.fast.conv_weights import column_blocks
from segmamba.fast.maps import as_map, as_volume
from segmamba.fast.march import segment_length
from segmamba.fast.tiles import Tiles, fitting_stages
from segmamba.inference.blending import Blender, WindowGrid
from segmamba.inference.context import RunContext
from segmamba.inference.sliding_window import argmax, predict
from segmamba.inference.windows import Windows
from segmamba.networks.segmamba_v2 import SegMambaV2
from segmamba.networks.segmamba_v2_paper import SegMambaV2Paper
from segmamba.networks.spine_mamba import SpineMamba

WINDOW = (32, 32, 32)
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def network(name: str) -> nn.Module:
    """A small network with norms that do something."""
    torch.manual_seed(0)
    made: nn.Module = {
        "release": lambda: SegMambaV2(1, 2, (1, 1, 1, 1), (16, 16, 24, 32), 48),
        "release, narrow": lambda: SegMambaV2(1, 2, (1, 1, 1, 1), (8, 8, 16, 16), 16),
        "paper": lambda: SegMambaV2Paper(1, 3, (16, 16, 24, 32), (1, 1, 1, 1), 8),
        "paper, narrow": lambda: SegMambaV2Paper(1, 3, (8, 8, 16, 16), (1, 1, 1, 1), 8),
        "paper, strided": lambda: SegMambaV2Paper(1, 3, (16, 16, 24, 32), (1, 1, 1, 1), 8, hierarchical=False),
        "spine": lambda: SpineMamba(2, 5, (8, 16, 16, 24, 32), (1, 1)),
        "spine, narrow": lambda: SpineMamba(2, 5, (4, 8, 8, 16, 16), (1, 1)),
        "spine, no prior": lambda: SpineMamba(2, 5, (8, 16, 16, 24, 32), (1, 1), shape_prior=False),
    }[name]()
    for module in made.modules():
        if isinstance(module, nn.InstanceNorm3d) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return made.eval()


NETWORKS = ["release", "paper", "paper, strided", "spine", "spine, no prior"]


def image(name: str, *size: int) -> torch.Tensor:
    return torch.randn(2, window_of(name)[0], *size, generator=torch.Generator().manual_seed(1))


def window_of(name: str) -> tuple[int, ...]:
    """What the network is given: channels, then z, y, x."""
    return (2 if name.startswith("spine") else 1, *WINDOW)


def relative_error(measured: torch.Tensor, expected: torch.Tensor) -> float:
    return float((measured.double().cpu() - expected.double().cpu()).norm() / expected.double().norm())


@pytest.mark.slow
def test_kernels_match_float64_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(PACKAGES)
    program = HELPERS / "fast_kernels.py"
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "all kernels match", done.stderr


@pytest.mark.parametrize("name", NETWORKS)
def test_without_triton_the_fast_network_is_the_plain_one(name: str) -> None:
    plain, volume = network(name), image(name, 37, 32, 33)
    with torch.no_grad():
        expected = plain(volume)
    fast = accelerate(plain, torch.float32)
    assert relative_error(fast(volume), expected) < 1e-5
    assert relative_error(fast(volume), plain(volume).detach()) < 1e-5


def test_accelerating_leaves_the_network_as_it_was() -> None:
    plain = network("release")
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    accelerate(plain, torch.bfloat16)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert all(value.dtype == torch.float32 for value in plain.parameters())


@pytest.mark.parametrize("name", ["release, narrow", "paper, narrow", "spine, narrow"])
def test_a_fast_network_is_held_against_the_plain_one(name: str) -> None:
    # In float32, because many processors only emulate bfloat16.
    plain = network(name)
    good = accelerate(plain, torch.float32, graphs=False)
    wrong = FastNetwork(lambda image: 1.2 * good.forward(image), torch.float32, graphs=False)
    assert agrees(plain, good, window_of(name), CPU)
    assert not agrees(plain, wrong, window_of(name), CPU)


def test_it_is_held_against_the_plain_one_on_half_a_window_which_takes_half_the_memory() -> None:
    plain, seen = network("release, narrow"), []
    good = accelerate(plain, torch.float32, graphs=False)

    def seeing(image: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(image.shape))
        return good.forward(image)

    for window in ((1, 64, 32, 32), (1, 32, 32, 32)):
        assert agrees(plain, FastNetwork(seeing, torch.float32, graphs=False), window, CPU)
    assert seen == [(1, 1, 32, 32, 32), (1, 1, 32, 32, 32)]


def test_the_plain_network_runs_while_kernels_are_compiled() -> None:
    plain, order = network("release, narrow"), []
    plain.register_forward_hook(lambda *given: order.append("plain"))
    good = accelerate(plain, torch.float32, graphs=False)

    def noted(image: torch.Tensor) -> torch.Tensor:
        order.append("fast")
        return good.forward(image)

    fast = FastNetwork(noted, torch.float32, graphs=False)
    assert agrees(plain, fast, (1, 32, 32, 32), CPU, lambda: order.append("compiled"))
    assert order == ["plain", "compiled", "fast"]


@pytest.mark.parametrize("name", ["release", "spine"])
def test_it_is_held_against_the_plain_one_on_windows_as_they_come(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "segmamba.inference.sliding_window.fast_network",
        lambda plain, device, dtype, window, batch: (asked.append(window), ()),
    )
    predict(network(name), image(name, 32, 32, 32)[0], Windows(WINDOW), RunContext(CPU, torch.float32))
    assert asked == [window_of(name)]


def test_one_that_gives_other_answers_is_not_used_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["segmamba.fast.accelerate"]
    monkeypatch.setattr(kernels, "missing", lambda device: "")
    monkeypatch.setattr(module, "accelerate", lambda *arguments, **keywords: FastNetwork(len, torch.float16, False))
    monkeypatch.setattr(module, "agrees", lambda *arguments: False)
    compiled: list[Any] = []

    def begin(forward: Any, shapes: Any, device: Any) -> Any:
        compiled.extend(shapes)
        return lambda: None

    monkeypatch.setattr(module, "compile_at_once", begin)
    plain = network("release")
    for _ in range(2):
        fast, (warning,) = fast_network(plain, torch.device("cuda"), torch.float16, (1, 64, 32, 32), 3)
        assert fast is None
        # For the half of a window that it is compared on, and for the windows that run at a time.
        assert compiled == [(1, 1, 32, 32, 32), (3, 1, 64, 32, 32)]
        assert warning.startswith("The fast kernels give different results on this GPU")
    forget(plain)


def test_what_sets_the_pace_of_a_scan_stays_in_single_precision() -> None:
    plain = network("release")
    fast = accelerate(plain, torch.bfloat16)
    layer = fast.forward.vit.stages[2][0].mamba  # type: ignore[attr-defined]
    assert layer.A_log.dtype == layer.dt_proj.bias.dtype == torch.float32
    assert layer.in_proj.weight.dtype == torch.bfloat16


def test_a_network_without_a_fast_form_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="no fast path for Conv3d"):
        accelerate(nn.Conv3d(1, 1, 1))
    assert fast_network(nn.Conv3d(1, 1, 1), torch.device("cuda"), torch.float16, window_of("release")) == (None, ())


def test_without_triton_the_plain_network_runs_on_a_gpu_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "triton_kernels", lambda: None)
    fast, (warning,) = fast_network(network("release"), torch.device("cuda"), torch.float16, window_of("release"))
    assert fast is None
    assert warning.startswith("Triton is not installed")


def test_fewer_blocks_are_read_ahead_where_shared_memory_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = type("Properties", (), {"shared_memory_per_block_optin": 99 * 1024})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    tiles = Tiles(True, 128, 48, 64, 8, 4)
    assert fitting_stages(tiles, 256, torch.device("cuda")) == 2
    assert fitting_stages(tiles, 256, torch.device("cpu")) == 4


def test_on_the_processor_and_in_single_precision_the_plain_network_runs() -> None:
    assert fast_network(network("release"), torch.device("cpu"), torch.bfloat16, window_of("release")) == (None, ())
    assert fast_network(network("release"), torch.device("cuda"), torch.float32, window_of("release")) == (None, ())


def test_a_kernel_that_does_not_work_is_replaced_once_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken() -> str:
        calls.append(1)
        raise RuntimeError("ptxas failed\nand more")

    monkeypatch.setattr(kernels, "fallbacks", {})
    monkeypatch.setattr(kernels, "triton_kernels", lambda: (None, None))
    answers = [kernels.run("norm", broken, lambda: "plain", torch.device("cuda")) for _ in range(2)]
    assert answers == ["plain", "plain"]
    assert len(calls) == 1
    assert kernels.fallbacks["norm"].endswith("PyTorch's was used: ptxas failed")


def test_lack_of_memory_in_a_kernel_is_not_taken_for_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernels, "fallbacks", {})
    monkeypatch.setattr(kernels, "triton_kernels", lambda: (None, None))
    with pytest.raises(torch.OutOfMemoryError):
        kernels.run("norm", full, lambda: None, torch.device("cuda"))
    assert not kernels.fallbacks


def test_a_map_goes_to_a_volume_and_back() -> None:
    volume = torch.randn(2, 3, 4, 5, 6)
    feature = as_map(volume, border=2)
    assert torch.equal(as_volume(feature), volume)
    assert feature.size == (4, 5, 6)
    assert feature.data.sum() == pytest.approx(float(volume.sum()), abs=1e-4)


@pytest.mark.parametrize(("count", "columns"), [(144, (128, 16)), (240, (128, 128)), (72, (64, 16)), (64, (64, 0))])
def test_columns_of_a_march_are_two_powers_of_two(count: int, columns: tuple[int, int]) -> None:
    assert column_blocks(count) == columns


def test_a_march_is_cut_only_where_that_fills_the_gpu() -> None:
    assert segment_length(128, 256, 3, 264) == 128
    assert segment_length(64, 64, 3, 264) == 16


@pytest.mark.parametrize("size", [(40, 70, 33), (70, 33, 40), (33, 32, 64)])
def test_a_ring_of_slabs_gives_what_the_whole_sum_gives(size: tuple[int, int, int]) -> None:
    grid = WindowGrid.over(size, (32, 32, 32), 0.4)
    whole = torch.zeros(2, *size)
    made = torch.full((2, *size), float("nan"))

    def keep(first: int, slab: torch.Tensor) -> None:
        made.narrow(grid.axis + 1, first, slab.shape[grid.axis + 1]).copy_(slab)

    blender = Blender(grid, torch.device("cpu"), keep)
    generator = torch.Generator().manual_seed(0)
    ends = [*grid.starts[grid.axis], size[grid.axis]]
    for number, group in enumerate(grid.groups()):
        for place in group:
            logits = torch.randn(2, 32, 32, 32, generator=generator)
            z, y, x = (axis[index] for axis, index in zip(blender.weights, place, strict=True))
            whole[(slice(None), *grid.box(place))] += logits * z[:, None, None] * y[:, None] * x
            blender.add(place, logits)
        blender.finish(ends[number], ends[number + 1])
    torch.testing.assert_close(made, whole)


def test_labels_are_the_most_probable_classes() -> None:
    plain, volume = network("release, narrow"), image("release", 40, 32, 33)[0]
    arguments = (plain, volume, Windows((32, 32, 32)), RunContext(CPU, torch.float32))
    labels = predict(*arguments, argmax).values[0]
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, predict(*arguments).values.argmax(dim=0).to(torch.uint8))


@pytest.mark.gpu
@needs_cuda
def test_kernels_match_float64_on_cuda() -> None:
    from helpers.fast_kernels import check_all

    check_all("cuda")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_fast_network_stays_near_float32_on_cuda(name: str, graphs: bool) -> None:
    plain, volume = network(name).cuda(), image(name, 64, 48, 64).cuda()
    with torch.no_grad():
        expected = plain(volume)
    fast = accelerate(plain, graphs=graphs)
    assert relative_error(fast(volume), expected) < 4e-3
    # A second call gives the answer to what it is asked, not the first one's.
    assert relative_error(fast(volume.flip(2)), plain(volume.flip(2)).detach()) < 4e-3
    assert not kernels.fallbacks


@pytest.mark.gpu
@needs_cuda
def test_graphs_that_are_gone_leave_no_memory_behind() -> None:
    plain, volume, used = network("spine").cuda(), image("spine", *WINDOW).cuda(), []
    for _ in range(4):
        accelerate(plain)(volume)
        gc.collect()
        release_memory()
        used.append(torch.cuda.memory_allocated())
    assert used[-1] - used[0] < 2**20


@pytest.mark.gpu
@needs_cuda
def test_weights_that_change_are_taken_up() -> None:
    plain = network("release")
    arguments = (plain, torch.device("cuda"), torch.float16, window_of("release"))
    first, _ = fast_network(*arguments)
    assert first is not None
    assert fast_network(*arguments)[0] is first
    with torch.no_grad():
        plain.out.conv.conv.weight.mul_(2)  # type: ignore[union-attr, operator]
    assert fast_network(*arguments)[0] is not first
    forget(plain)


@pytest.mark.gpu
@needs_cuda
def test_windows_on_the_fast_path_give_what_the_plain_network_gives() -> None:
    plain, volume = network("release"), image("release", 70, 48, 90)[0]
    windows = Windows((32, 48, 48))
    expected = predict(plain, volume, windows, RunContext(CPU, torch.float32)).values
    measured = predict(plain, volume, windows, RunContext(torch.device("cuda"), torch.float16)).values
    assert next(plain.parameters()).device.type == "cpu"
    assert (measured.cpu() - expected).abs().max() < 2e-2
