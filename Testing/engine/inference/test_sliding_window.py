"""Windows, blending, and what happens when memory runs out."""

from __future__ import annotations

import pytest
import torch
from helpers.full_gpu import memory_left
from helpers.voxel_networks import PATCH, NotANumberIn, OutOfMemoryAt, PerVoxel, volume
from torch import nn

from segmamba import scan
from segmamba.errors import Cancelled, DeviceError, ModelError
from segmamba.inference.blending import blend_weights
from segmamba.inference.sliding_window import mirrorings, predict
from segmamba.inference.windows import window_count, window_starts


def whole(image: torch.Tensor) -> torch.Tensor:
    return PerVoxel()(image[None])[0].softmax(dim=0)


def run(network: nn.Module, image: torch.Tensor, device: str = "cpu", **keywords: object) -> torch.Tensor:
    return predict(network, image, PATCH, 0.5, device, torch.float32, **keywords)  # type: ignore[arg-type]


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
    for start, weights in zip(starts, blend_weights(100, 32, starts), strict=True):
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


@pytest.mark.parametrize("mirror", [(), (1, 2)])
def test_without_softmax_the_blended_logits_come_back(mirror: tuple[int, ...]) -> None:
    image = volume(40, 70, 33)
    logits = run(PerVoxel(), image, softmax=False, mirror=mirror)
    torch.testing.assert_close(logits, PerVoxel()(image[None])[0])
    assert logits.min() < -1
    torch.testing.assert_close(logits.softmax(dim=0), run(PerVoxel(), image, mirror=mirror))


def test_mirroring_averages_over_all_combinations_of_axes() -> None:
    class Gradient(nn.Module):
        """Adds the position along x: its mean over both mirrorings is the same everywhere."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            position = torch.arange(image.shape[-1], dtype=torch.float32).expand_as(image) / 16
            return torch.cat([position, torch.zeros_like(image)], dim=1)

    assert len(mirrorings((0, 1, 2))) == 8
    plain = run(Gradient(), volume(32, 32, 32))
    mirrored = run(Gradient(), volume(32, 32, 32), mirror=(2,))
    assert plain[0].std() > 0.1
    assert mirrored[0].std() < 1e-6


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
    torch.testing.assert_close(run(Overwriting(), image, mirror=(0, 2)), whole(image), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fill", [None, [-7.0]])
def test_a_small_volume_lies_in_the_middle_of_its_window(fill: list[float] | None) -> None:
    seen = []

    class Spy(PerVoxel):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image.clone())
            return super().forward(image)

    image = volume(20, 32, 32)
    run(Spy(), image, fill=fill)
    assert torch.equal(seen[0][0, :, 6:26], image)
    outside = torch.cat([seen[0][0, 0, :6], seen[0][0, 0, 26:]])
    assert (outside == (fill[0] if fill else image.min())).all()


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
    notes: list[str] = []
    devices: list[torch.device] = []
    # The meta device stands in for a GPU: it is not the CPU, and the fake network fails on it.
    probabilities = run(OutOfMemoryAt(1, 2), image, device="meta", fallbacks=notes, devices=devices)
    torch.testing.assert_close(probabilities, whole(image))
    assert probabilities.device.type == "cpu"
    assert len(notes) == 2
    assert "blended in main memory" in notes[0]
    assert "ran on the CPU" in notes[1]
    assert devices == [torch.device("cpu")]


def test_a_scan_that_was_chosen_for_the_gpu_is_given_up_with_it() -> None:
    scan.set_backend("triton" if "triton" in scan.available_backends() else "torch")
    try:
        run(OutOfMemoryAt(1, 2), volume(32, 32, 32), device="meta")
        assert scan.chosen_backend("cpu") == "torch"
    finally:
        scan.set_backend(None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("allowed_mib", "where"), [(64, "main memory"), (1, "CPU")])
def test_a_real_gpu_that_is_full_gives_the_same_result(allowed_mib: int, where: str) -> None:
    image = volume(160, 160, 160)
    notes: list[str] = []
    devices: list[torch.device] = []
    # Eight classes of 160^3 voxels take 125 MiB, one window 1 MiB and its layers a few.
    network = nn.Sequential(PerVoxel(), nn.Conv3d(3, 16, 1), nn.Conv3d(16, 8, 1))
    expected = predict(network, image, PATCH, 0.5, "cpu", torch.float32)
    with memory_left(allowed_mib):
        probabilities = predict(network, image, PATCH, 0.5, "cuda", torch.float32, fallbacks=notes, devices=devices)
    assert where in notes[-1]
    assert [device.type for device in devices] == ["cpu" if where == "CPU" else "cuda"]
    assert probabilities.device.type == "cpu"
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_float16_on_a_gpu_stays_near_float32_on_the_cpu() -> None:
    image = volume(40, 70, 33)
    probabilities = predict(PerVoxel(), image, PATCH, 0.5, "cuda", torch.float16)
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


def test_an_overflow_in_half_precision_is_repeated_in_float32_and_noted() -> None:
    image = volume(32, 32, 32)
    notes: list[str] = []
    network = NotANumberIn(torch.bfloat16)
    probabilities = predict(network, image, PATCH, 0.5, "cpu", torch.bfloat16, fallbacks=notes)
    torch.testing.assert_close(probabilities, whole(image))
    assert len(notes) == 1
    assert "float32" in notes[0]


def test_a_network_that_gives_nan_in_float32_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="NaN"):
        run(NotANumberIn(torch.float32), volume(32, 32, 32))
