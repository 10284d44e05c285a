"""Windows in numbers: where they lie, how they are weighted, what lack of memory looks like."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.voxel_networks import PATCH, NotANumberIn, OutOfMemoryAt, volume

from segmamba.errors import ModelError
from segmamba.inference import sliding_window
from segmamba.inference.blending import importance_weights
from segmamba.inference.context import RunContext
from segmamba.inference.sliding_window import NetworkOutput, flip_combinations, is_out_of_memory, predict
from segmamba.inference.windows import GROWTH, LARGEST, SHRUNK, Windows, fitted_patch, window_count, window_starts


@pytest.mark.parametrize(
    ("length", "window", "overlap", "starts"),
    [
        (10, 10, 0.5, [0]),
        (11, 10, 0.5, [0, 1]),
        (20, 10, 0.5, [0, 5, 10]),
        (21, 10, 0.5, [0, 4, 7, 11]),
        (30, 10, 0.0, [0, 10, 20]),
        (31, 10, 0.0, [0, 7, 14, 21]),
        (12, 10, 0.99, [0, 1, 2]),
        (40, 16, 0.25, [0, 12, 24]),
    ],
)
def test_windows_begin_evenly_spread_from_end_to_end(
    length: int, window: int, overlap: float, starts: list[int]
) -> None:
    assert window_starts(length, window, overlap) == starts


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 1.5])
def test_an_overlap_out_of_range_is_named(overlap: float) -> None:
    with pytest.raises(ValueError, match=rf"^overlap is {overlap} and must be at least 0 and below 1$"):
        window_starts(20, 10, overlap)


def test_windows_are_counted_along_all_axes_and_a_small_volume_has_one() -> None:
    assert window_count((20, 21, 5), (10, 10, 10), 0.5) == 3 * 4 * 1
    assert window_count((10, 11, 12), (10, 10, 10), 0.0) == 1 * 2 * 2


def test_weights_are_a_gaussian_of_an_eighth_of_the_window_over_their_sum() -> None:
    def gaussian(position: float) -> float:
        return math.exp(-0.5 * ((position - 3.5) / (8 / 8)) ** 2)

    weights = importance_weights(12, 8, [0, 4])
    assert weights.shape == (2, 8) and weights.dtype == torch.float32
    expected = [gaussian(k) / (gaussian(k) + (gaussian(k - 4) if k >= 4 else 0)) for k in range(8)]
    torch.testing.assert_close(weights[0], torch.tensor(expected))
    torch.testing.assert_close(weights[1], torch.tensor(expected[::-1]))


def test_flips_are_all_combinations_with_none_first() -> None:
    assert flip_combinations(()) == [()]
    assert flip_combinations((0, 2)) == [(), (0,), (2,), (0, 2)]


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("full"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("memory"), False),
    ],
)
def test_lack_of_memory_is_known_by_its_type_or_its_words(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one


def test_warnings_and_errors_name_precision_device_and_what_to_do() -> None:
    overflowed = run(NotANumberIn(torch.bfloat16), volume(32, 32, 32), precision=torch.bfloat16)
    assert overflowed.warnings == ("bfloat16 overflowed: the network ran in float32 from then on.",)
    short = run(OutOfMemoryAt(1, 2), volume(32, 32, 32), device="meta")
    assert all(sentence.startswith("meta ran out of memory: ") for sentence in short.warnings)
    sentence = r"^The network returned NaN or infinity: its checkpoint is damaged, get the file again\.$"
    with pytest.raises(ModelError, match=sentence):
        run(NotANumberIn(torch.float32), volume(32, 32, 32))


def run(
    network: torch.nn.Module,
    image: torch.Tensor,
    device: str = "cpu",
    precision: torch.dtype = torch.float32,
) -> NetworkOutput:
    return predict(network, image, Windows(PATCH), RunContext(torch.device(device), precision))


def test_every_step_of_the_way_down_is_tried_in_order_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu, half = torch.device("cuda:1"), torch.device("cpu"), torch.float16
    asked: list[object] = []
    monkeypatch.setattr(sliding_window, "windows_at_a_time", lambda *given: asked.append(given) or 2)
    monkeypatch.setattr(sliding_window, "cpu_precision", lambda: "bfloat16")
    window = (128, 96, 40)
    step, short = sliding_window._Step, "cuda:1 ran out of memory"
    assert sliding_window._steps(gpu, half, [128, 96, 40]) == [
        step(gpu, gpu, half, window, 2),
        step(gpu, gpu, half, window, 1, f"{short}: one window at a time was run instead of 2."),
        step(gpu, cpu, half, window, 1, f"{short}: the windows were blended in main memory instead."),
        step(
            gpu,
            cpu,
            half,
            (96, 64, 32),
            1,
            f"{short}: windows of 96 x 64 x 32 voxels were used, which makes the result less accurate.",
        ),
        step(cpu, cpu, torch.bfloat16, window, 1, f"{short}: the network ran on the CPU."),
    ]
    assert asked == [(gpu, window)]
    monkeypatch.setattr(sliding_window, "windows_at_a_time", lambda *given: 1)
    smallest = sliding_window._steps(gpu, half, (32, 32, 32))
    assert [one.sentence[len(short) :] for one in smallest] == [
        "",
        ": the windows were blended in main memory instead.",
        ": the network ran on the CPU.",
    ]
    assert sliding_window._steps(cpu, torch.float32, window) == [step(cpu, cpu, torch.float32, window, 1)]


@pytest.mark.parametrize(
    ("free_gib", "window", "count"),
    [(80, (128, 128, 128), 2), (80, (96, 96, 96), 4), (80, (160, 160, 160), 1), (0.001, (128, 128, 128), 1)],
)
def test_as_many_windows_as_fill_a_gpu_and_fit_into_its_memory_run_at_a_time(
    monkeypatch: pytest.MonkeyPatch, free_gib: float, window: tuple[int, int, int], count: int
) -> None:
    gpu = torch.device("cuda:1")
    free = {gpu: int(free_gib * 2**30)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 2**40))
    assert sliding_window.windows_at_a_time(gpu, window) == count
    assert sliding_window.windows_at_a_time(torch.device("cpu"), window) == 1


def test_windows_that_do_not_all_fit_into_a_gpu_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, window = torch.device("cuda"), (96, 96, 96)
    needed = 96**3 * sliding_window.BYTES_PER_VOXEL / sliding_window.WINDOW_SHARE
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(3.5 * needed), 2**40))
    assert sliding_window.windows_at_a_time(gpu, window) == 3


@pytest.mark.parametrize(
    ("size", "patch", "fitted"),
    [
        ((167, 149, 180), (160, 96, 96), (176, 96, 112)),  # a chest: 4 windows instead of 12
        ((100, 149, 260), (160, 96, 96), (160, 96, 112)),  # 3 of 112 along x instead of 4
        ((60, 50, 40), (160, 96, 96), (160, 96, 96)),  # never smaller
        ((161, 97, 97), (160, 96, 96), (176, 112, 112)),
        ((220, 130, 130), (160, 96, 96), (224, 96, 96)),  # of no more than twice the voxels
    ],
)
def test_a_fitted_window_takes_the_fewest_voxels(
    size: tuple[int, ...], patch: tuple[int, ...], fitted: tuple[int, ...]
) -> None:
    found = fitted_patch(size, patch, 0.3)
    assert found == fitted

    def voxels(window: tuple[int, ...]) -> int:
        return window_count(size, window, 0.3) * math.prod(window)

    assert voxels(found) <= voxels(patch)
    assert all(own <= new <= GROWTH * own for own, new in zip(patch, found, strict=True))
    assert math.prod(found) <= LARGEST * math.prod(patch)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((133, 119, 144), (144, 128, 144)),  # a chest on the grid of a fast run
        ((60, 50, 40), (144, 96, 96)),  # nine tenths of 96 are more than 80
        ((150, 90, 90), (160, 96, 96)),  # more than a shorter window has
        ((240, 90, 90), (240, 96, 96)),  # two of 144 would take more
        ((235, 96, 180), fitted_patch((235, 96, 180), (160, 96, 96), 0.3)),  # no axis is shorter than the window
    ],
)
def test_only_a_volume_shorter_than_a_window_may_have_a_shorter_one(
    size: tuple[int, ...], fitted: tuple[int, ...]
) -> None:
    assert fitted_patch(size, (160, 96, 96), 0.3, SHRUNK) == fitted
