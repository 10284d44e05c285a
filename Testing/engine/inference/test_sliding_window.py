"""Windows, blending, and what happens when memory runs out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.full_gpu import memory_left
from helpers.voxel_networks import PATCH, NotANumberIn, OutOfMemoryAt, PerVoxel, volume
from torch import nn

from segmamba import scan
from segmamba.errors import Cancelled, DeviceError, ModelError
from segmamba.inference.blending import importance_weights
from segmamba.inference.context import RunContext
from segmamba.inference.sliding_window import Activation, NetworkOutput, flip_combinations, identity, predict, softmax
from segmamba.inference.windows import Windows, window_count, window_starts

CPU = torch.device("cpu")


def whole(image: torch.Tensor) -> torch.Tensor:
    return PerVoxel()(image[None])[0].softmax(dim=0)


def output(network: nn.Module, image: torch.Tensor, device: str, dtype: torch.dtype = torch.float32) -> NetworkOutput:
    return predict(network, image, Windows(PATCH), RunContext(torch.device(device), dtype))


def run(
    network: nn.Module,
    image: torch.Tensor,
    activation: Activation = softmax,
    flip_axes: tuple[int, ...] = (),
    pad_values: tuple[float, ...] | None = None,
    **watching: Any,
) -> torch.Tensor:
    """Return what a network gives on the processor in float32; ``watching`` are fields of the context."""
    context = RunContext(CPU, torch.float32, **watching)
    return predict(network, image, Windows(PATCH, 0.5, flip_axes, pad_values), context, activation).values


@pytest.mark.parametrize(("length", "window", "overlap"), [(32, 32, 0.5), (33, 32, 0.5), (200, 96, 0.5), (90, 32, 0.0)])
def test_windows_cover_the_axis_with_at_least_the_overlap(length: int, window: int, overlap: float) -> None:
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] + window == length
    assert all(0 < b - a <= window * (1 - overlap) for a, b in zip(starts, starts[1:], strict=False))


def test_an_overlap_of_a_whole_window_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        window_starts(64, 32, 1.0)


def test_blend_weights_sum_to_one_at_every_voxel() -> None:
    starts = window_starts(100, 32, 0.4)
    total = torch.zeros(100)
    for start, weights in zip(starts, importance_weights(100, 32, starts), strict=True):
        total[start : start + 32] += weights
    torch.testing.assert_close(total, torch.ones(100))


def test_every_window_has_the_size_of_the_patch() -> None:
    sizes = []

    class Spy(PerVoxel):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(image.shape[2:]))
            return super().forward(image)

    assert run(Spy(), volume(40, 20, 9)).shape == (3, 40, 20, 9)
    assert set(sizes) == {PATCH}


@pytest.mark.parametrize("size", [(40, 70, 33), (5, 40, 20), (32, 32, 32)])
def test_blended_windows_give_what_the_whole_volume_gives(size: tuple[int, int, int]) -> None:
    image = volume(*size)
    probabilities = run(PerVoxel(), image)
    assert probabilities.shape == (3, *size)
    torch.testing.assert_close(probabilities, whole(image))


@pytest.mark.parametrize("flip_axes", [(), (1, 2)])
def test_without_softmax_the_blended_logits_come_back(flip_axes: tuple[int, ...]) -> None:
    image = volume(40, 70, 33)
    logits = run(PerVoxel(), image, identity, flip_axes)
    torch.testing.assert_close(logits, PerVoxel()(image[None])[0])
    assert logits.min() < -1
    torch.testing.assert_close(logits.softmax(dim=0), run(PerVoxel(), image, flip_axes=flip_axes))


@pytest.mark.parametrize("size", [(40, 70, 33), (5, 40, 20), (32, 32, 32)])
def test_logits_that_stay_as_they_are_are_those_that_were_blended_in_slabs(size: tuple[int, int, int]) -> None:
    image = volume(*size)
    torch.testing.assert_close(run(PerVoxel(), image, identity), run(PerVoxel(), image, torch.clone), rtol=0, atol=0)


def test_test_time_augmentation_averages_over_all_combinations_of_axes() -> None:
    class Gradient(nn.Module):
        """Adds the position along x: its mean over both flips is the same everywhere."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            position = torch.arange(image.shape[-1], dtype=torch.float32).expand_as(image) / 16
            return torch.cat([position, torch.zeros_like(image)], dim=1)

    assert len(flip_combinations((0, 1, 2))) == 8
    plain = run(Gradient(), volume(32, 32, 32))
    flipped = run(Gradient(), volume(32, 32, 32), flip_axes=(2,))
    assert plain[0].std() > 0.1
    assert flipped[0].std() < 1e-6


class Overwriting(PerVoxel):
    """Answers in the same memory each time, as a recorded CUDA graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: torch.Tensor | None = None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answer = super().forward(image)
        self.answer = answer if self.answer is None else self.answer.copy_(answer)
        return self.answer


def test_an_answer_that_the_next_call_overwrites_is_averaged_all_the_same() -> None:
    image = volume(40, 33, 35)
    torch.testing.assert_close(run(Overwriting(), image, flip_axes=(0, 2)), whole(image), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pad_values", [None, (-7.0,)])
def test_a_small_volume_lies_in_the_middle_of_its_window(pad_values: tuple[float, ...] | None) -> None:
    seen = []

    class Spy(PerVoxel):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image.clone())
            return super().forward(image)

    image = volume(20, 32, 32)
    run(Spy(), image, pad_values=pad_values)
    assert torch.equal(seen[0][0, :, 6:26], image)
    outside = torch.cat([seen[0][0, 0, :6], seen[0][0, 0, 26:]])
    assert (outside == (pad_values[0] if pad_values else image.min())).all()


def test_progress_ends_at_one_and_counts_every_window() -> None:
    fractions: list[float] = []
    image = volume(40, 70, 33)
    run(PerVoxel(), image, progress=fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert len(fractions) == window_count(image.shape[1:], PATCH, 0.5)


def test_cancelling_stops_between_windows() -> None:
    fractions: list[float] = []
    with pytest.raises(Cancelled):
        run(PerVoxel(), volume(40, 70, 33), progress=fractions.append, cancelled=lambda: len(fractions) == 2)
    assert len(fractions) == 2


def test_lack_of_memory_on_a_device_is_met_by_blending_in_main_memory_then_by_the_cpu() -> None:
    image = volume(40, 32, 32)
    # The meta device stands in for a GPU: it is not the CPU, and the fake network fails on it.
    found = output(OutOfMemoryAt(1, 2), image, "meta")
    torch.testing.assert_close(found.values, whole(image))
    assert found.values.device.type == "cpu"
    assert len(found.warnings) == 2
    assert "blended in main memory" in found.warnings[0]
    assert "ran on the CPU" in found.warnings[1]
    assert found.device == CPU


def test_a_scan_that_was_chosen_for_the_gpu_is_given_up_with_it() -> None:
    scan.set_backend("triton" if "triton" in scan.available_backends() else "torch")
    try:
        output(OutOfMemoryAt(1, 2), volume(32, 32, 32), "meta")
        assert scan.chosen_backend("cpu") == "torch"
    finally:
        scan.set_backend(None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("allowed_mib", "where"), [(64, "main memory"), (1, "CPU")])
def test_a_real_gpu_that_is_full_gives_the_same_result(allowed_mib: int, where: str) -> None:
    image = volume(160, 160, 160)
    # Eight classes of 160^3 voxels take 125 MiB, one window 1 MiB and its layers a few.
    network = nn.Sequential(PerVoxel(), nn.Conv3d(3, 16, 1), nn.Conv3d(16, 8, 1))
    expected = run(network, image)
    with memory_left(allowed_mib):
        found = output(network, image, "cuda")
    assert where in found.warnings[-1]
    assert found.device.type == ("cpu" if where == "CPU" else "cuda")
    assert found.values.device.type == "cpu"
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_float16_on_a_gpu_stays_near_float32_on_the_cpu() -> None:
    image = volume(40, 70, 33)
    probabilities = output(PerVoxel(), image, "cuda", torch.float16).values
    assert probabilities.device.type == "cuda"
    torch.testing.assert_close(probabilities.cpu(), whole(image), rtol=0, atol=5e-3)


def test_lack_of_main_memory_is_a_device_error_that_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match="region of interest"):
        run(OutOfMemoryAt(1), volume(32, 32, 32))


def test_another_runtime_error_is_not_taken_for_lack_of_memory() -> None:
    class Broken(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run(Broken(), volume(32, 32, 32))


def test_an_overflow_in_half_precision_is_repeated_in_float32_with_a_warning() -> None:
    image = volume(32, 32, 32)
    found = output(NotANumberIn(torch.bfloat16), image, "cpu", torch.bfloat16)
    torch.testing.assert_close(found.values, whole(image))
    assert len(found.warnings) == 1
    assert "float32" in found.warnings[0]


def test_a_network_that_gives_nan_in_float32_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="NaN"):
        run(NotANumberIn(torch.float32), volume(32, 32, 32))
