"""Windows in numbers: where they lie, how they are weighted, what lack of memory looks like."""

from __future__ import annotations

import math

import pytest
import torch
from test_sliding_window import PATCH, NotANumberIn, OutOfMemoryAt, volume

from segmamba.blending import blend_weights
from segmamba.errors import ModelError
from segmamba.sliding_window import is_out_of_memory, mirrorings, predict
from segmamba.windows import window_count, window_starts


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

    weights = blend_weights(12, 8, [0, 4])
    assert weights.shape == (2, 8) and weights.dtype == torch.float32
    expected = [gaussian(k) / (gaussian(k) + (gaussian(k - 4) if k >= 4 else 0)) for k in range(8)]
    torch.testing.assert_close(weights[0], torch.tensor(expected))
    torch.testing.assert_close(weights[1], torch.tensor(expected[::-1]))


def test_mirrorings_are_all_combinations_with_none_first() -> None:
    assert mirrorings(()) == [()]
    assert mirrorings((0, 2)) == [(), (0,), (2,), (0, 2)]


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


def test_notes_and_errors_name_precision_device_and_what_to_do() -> None:
    notes: list[str] = []
    run(NotANumberIn(torch.bfloat16), volume(32, 32, 32), precision=torch.bfloat16, fallbacks=notes)
    assert notes == ["bfloat16 overflowed: the network ran in float32 from there on."]
    run(OutOfMemoryAt(1, 2), volume(32, 32, 32), device="meta", fallbacks=notes)
    assert all(note.startswith("meta ran out of memory: ") for note in notes[1:])
    sentence = r"^The network gives NaN or infinity: its checkpoint is damaged, get the file again\.$"
    with pytest.raises(ModelError, match=sentence):
        run(NotANumberIn(torch.float32), volume(32, 32, 32))


def run(
    network: torch.nn.Module,
    image: torch.Tensor,
    device: str = "cpu",
    precision: torch.dtype = torch.float32,
    fallbacks: list[str] | None = None,
) -> torch.Tensor:
    return predict(network, image, PATCH, 0.5, device, precision, fallbacks=fallbacks)
