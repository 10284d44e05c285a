"""What networks take of a GPU's memory, against the forecast, on a card with room and on one without."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import nn

from segmamba.fast import forget, release_memory
from segmamba.inference.context import RunContext
from segmamba.inference.forecast import Forecast, forecast
from segmamba.inference.sliding_window import NetworkOutput, argmax, identity, predict, softmax
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
MODELS = ("spinemamba", "segmamba-v2-colorectal")
# How far a forecast may be off.
WITHIN = 0.2


def soft_tissue(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Volume:
    geometry = Geometry(shape[::-1], spacing, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    return Volume(np.full(shape, 40, np.int16), geometry, "CT")


def first_network(model: Model) -> nn.Module:
    torch.manual_seed(0)
    network = build_network(model.architecture, **model.arguments).eval()
    return network.coarse if isinstance(network, TwoStageSpineMamba) else network


def run(model: Model, size: tuple[int, int, int], network: nn.Module) -> NetworkOutput:
    image = torch.randn(len(model.preprocessing.normalization), *size[::-1], device=GPU)
    activation = identity if model.fine is not None or model.resamples_logits else softmax
    return predict(network, image, Windows(model.patch, model.overlap), RunContext(GPU, torch.float16), activation)


def reserved_gib(model: Model, told: Forecast, room: float | None = None) -> tuple[float, NetworkOutput]:
    """Return the most memory that is reserved in a network's first run, and its output.

    ``room`` is how much of the GPU the process may take, in GiB: what is reserved counts, not what is in use.
    """
    network = first_network(model)
    gc.collect()
    release_memory()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if room is None else room * 2**30 / total)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    try:
        output = run(model, told.size, network)
        return (torch.cuda.max_memory_reserved() - before) / 2**30, output
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        forget(network)
        release_memory()


def on_the_gpu(output: NetworkOutput) -> bool:
    return output.device.type == "cuda" and not any("main memory" in warning for warning in output.warnings)


@pytest.mark.parametrize("name", MODELS)
def test_on_a_whole_card_a_network_reserves_what_was_forecast(name: str) -> None:
    model = load_manifest().model(name)
    told = forecast(soft_tissue(*CHEST), model, Options())
    peak, output = reserved_gib(model, told)
    expected = told.device_memory_with_room / 2**30
    print(f"{name}, a whole card: {peak:.2f} GiB, forecast {expected:.2f}; {output.warnings}")
    assert not output.warnings
    assert peak == pytest.approx(expected, rel=WITHIN)


@pytest.mark.parametrize("name", MODELS)
def test_on_a_limited_card_a_fifth_more_than_the_forecast_suffices_and_a_fifth_less_does_not(name: str) -> None:
    model = load_manifest().model(name)
    told = forecast(soft_tissue(*CHEST), model, Options())
    expected = told.device_memory / 2**30
    found = {}
    for part in (1 + WITHIN, 1 - WITHIN):
        peak, output = reserved_gib(model, told, part * expected)
        print(f"{name}, {part * expected:.2f} GiB of a forecast {expected:.2f}: {peak:.2f} reserved; {output.warnings}")
        found[part] = on_the_gpu(output)
    assert found == {1 + WITHIN: True, 1 - WITHIN: False}


def test_the_released_network_takes_two_and_a_half_gibibytes_for_a_large_ct() -> None:
    model = load_manifest().model("segmamba-v2-colorectal-official")
    size = (512, 512, 160)
    network, image = first_network(model), torch.randn(1, *size[::-1], device=GPU)
    gc.collect()
    release_memory()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = predict(network, image, Windows(model.patch, model.overlap), RunContext(GPU, torch.float16), argmax)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    reserved = torch.cuda.max_memory_reserved() / 2**30
    forget(network)
    print(f"released network on {size}: {peak:.2f} GiB allocated, {reserved:.2f} reserved; {output.warnings}")
    assert not output.warnings
    assert peak <= 2.5
