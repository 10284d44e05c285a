"""What networks take of a GPU's memory: not more than was forecast, on a card with room and on one without."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import nn

from segmamba.fast import forget, release_memory
from segmamba.inference.context import RunContext
from segmamba.inference.forecast import Forecast, forecast
from segmamba.inference.sliding_window import NetworkOutput, argmax, identity, predict
from segmamba.inference.windows import Windows
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import Model, load_manifest
from segmamba.networks import build_network
from segmamba.networks.two_stage import TwoStageSpineMamba
from segmamba.request import Options

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

GPU = torch.device("cuda")
# As large as a chest CT: its first stage has a grid of 2 mm.
CHEST = (133, 512, 512), (0.7, 0.7, 2.5)
# Beside what PyTorch's allocator gives out, it needs some to keep the parts in one piece.
SPARE = 1.3


def soft_tissue(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Volume:
    geometry = Geometry(shape[::-1], spacing, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    return Volume(np.full(shape, 40, np.int16), geometry, "CT")


def first_network(model: Model) -> nn.Module:
    torch.manual_seed(0)
    network = build_network(model.architecture, **model.arguments).eval()
    return network.coarse if isinstance(network, TwoStageSpineMamba) else network


def run(model: Model, size: tuple[int, int, int], network: nn.Module) -> NetworkOutput:
    image = torch.randn(len(model.preprocessing.normalization), *size[::-1], device=GPU)
    activation = identity if model.fine is not None else argmax
    return predict(network, image, Windows(model.patch, model.overlap), RunContext(GPU, torch.float16), activation)


def peak_gib(model: Model, told: Forecast, room: float = 1.0) -> tuple[float, NetworkOutput]:
    """Return the most memory of a network's first run in a process that may take a part of the GPU, and its output."""
    network = first_network(model)
    gc.collect()
    release_memory()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(room)
    try:
        output = run(model, told.size, network)
        return (torch.cuda.max_memory_allocated() - before) / 2**30, output
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        forget(network)
        release_memory()


@pytest.mark.parametrize("name", ["spinemamba", "segmamba-v2-colorectal"])
@pytest.mark.parametrize("room", ["a whole card", "little more than the forecast"])
def test_a_network_allocates_no_more_than_the_forecast_and_needs_little_more(name: str, room: str) -> None:
    model = load_manifest().model(name)
    told = forecast(soft_tissue(*CHEST), model, Options())
    total = torch.cuda.get_device_properties(GPU).total_memory
    part = 1.0 if room == "a whole card" else SPARE * told.device_memory / total
    peak, output = peak_gib(model, told, part)
    expected = told.device_memory / 2**30
    print(f"{name}, {room}: {peak:.2f} GiB, forecast {expected:.2f}, {peak / expected - 1:+.0%}; {output.warnings}")
    assert output.device.type == "cuda"
    assert not any("main memory" in warning for warning in output.warnings)
    assert peak <= expected


def test_the_released_network_takes_two_and_a_half_gibibytes_for_a_large_ct() -> None:
    model = load_manifest().model("segmamba-v2-colorectal-official")
    told = forecast(soft_tissue((160, 512, 512), model.preprocessing.spacing), model, Options())
    peak, output = peak_gib(model, told)
    print(
        f"released network on {told.size}: {peak:.2f} GiB, forecast {told.device_memory / 2**30:.2f}; {output.warnings}"
    )
    assert told.size == (512, 512, 160)
    assert not output.warnings
    assert peak <= 2.5
