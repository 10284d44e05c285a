"""Speed on the processor: layouts and precisions, the scan's blocks, and vertebrae of a CT from file to file.

python benchmarks/cpu.py CHEST_CT.nii.gz

Networks and scans run on one core and are measured in seconds of it, which other programs hardly change; the file
takes as many threads as it does for a user, and is measured by the clock too.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from timing import core_seconds, keep, relative_error
from torch import Tensor, nn

from segmamba.inference.device import choose_device
from segmamba.inference.file_to_file import segment_file
from segmamba.models.manifest import load_manifest
from segmamba.models.resources import resource_root
from segmamba.networks import blocks, build_network, segmamba_v2, spine_mamba
from segmamba.networks.checkpoint import load_state_dict, load_weights
from segmamba.networks.segmamba_v2 import SegMambaV2
from segmamba.request import Options, Request
from segmamba.scan import torch_scan

Row = dict[str, Any]


def networks() -> list[Row]:
    """The bundled networks on their windows, and the released one on a smaller window."""
    model = load_manifest().default("vertebrae")
    both: Any = build_network(model.architecture, **model.arguments)
    load_weights(both, load_state_dict(resource_root() / "Resources/Models/spinemamba.safetensors"))
    assert model.fine is not None
    torch.manual_seed(0)
    return [
        compared("SpineMamba coarse", both.coarse.eval(), torch.randn(1, 2, *model.patch)),
        compared("SpineMamba fine", both.fine.eval(), torch.randn(1, 2, *model.fine.patch)),
        compared("SegMamba-V2 as released", SegMambaV2().eval(), torch.randn(1, 1, 64, 64, 64)),
    ]


@torch.no_grad()
def compared(name: str, network: nn.Module, image: Tensor) -> Row:
    """Return the times of a network in float32, in bfloat16 in PyTorch's layout and in ours, and the errors."""

    def times_and_answer(half: AbstractContextManager[Any], run: Callable[[], Tensor]) -> tuple[float, Tensor]:
        with half:
            return core_seconds(run), run()

    exact, expected = times_and_answer(nullcontext(), lambda: network(image))
    with channels_first():
        plain, first = times_and_answer(torch.autocast("cpu", torch.bfloat16), lambda: network(image))
    ours, last = times_and_answer(torch.autocast("cpu", torch.bfloat16), lambda: network(image))
    return {
        "what": f"{name}, {tuple(image.shape[2:])}",
        "float32 s": exact,
        "bfloat16, channels first s": plain,
        "bfloat16 s": ours,
        "ratio": plain / ours,
        "error, channels first": relative_error(first, expected),
        "error": relative_error(last, expected),
    }


@contextmanager
def channels_first() -> Iterator[None]:
    """Let the networks run as PyTorch lays maps out by itself."""
    chosen = blocks.to_channels_last
    modules: tuple[Any, ...] = (blocks, spine_mamba, segmamba_v2)
    norm = blocks.InstanceNorm.forward
    for module in modules:
        module.to_channels_last = lambda volume: volume.contiguous()
    blocks.InstanceNorm.forward = nn.InstanceNorm3d.forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for module in modules:
            module.to_channels_last = chosen
        blocks.InstanceNorm.forward = norm  # type: ignore[method-assign]


@torch.no_grad()
def scans() -> list[Row]:
    """The scan of the bundled network's layer at 1/8, by how many states are held at a time."""
    x, B, C = (torch.randn(3, count, 2880) for count in (192, 16, 16))
    step, rates = torch.rand(3, 192, 2880) * 0.1, -torch.rand(192, 16) * 4
    rows = []
    chosen = torch_scan.MAX_STATES
    for states in (8_000_000, 4_000_000, 2_000_000, 1_000_000):
        torch_scan.MAX_STATES = states
        taken = core_seconds(lambda: torch_scan.selective_scan(x, step, rates, B, C, torch.ones(192)), 7)
        rows.append({"what": f"scan (3, 192, 2880), {states} states at a time", "s": taken, "chosen": states == chosen})
    torch_scan.MAX_STATES = chosen
    return rows


def whole_file(path: Path) -> list[Row]:
    """Vertebrae of a CT from file to file."""
    with tempfile.TemporaryDirectory() as folder:
        request = Request(str(path), f"{folder}/labels.nii.gz", model="spinemamba", options=Options(device="cpu"))
        begin = time.process_time()
        report = segment_file(request)
        spent = time.process_time() - begin
    row = {"what": "vertebrae of a CT, file to file", "size": report["volume"]["size"], "cores' s": spent}
    return [row | {f"{stage} s": taken for stage, taken in report["timings_s"].items()}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path, help="a CT, 512 x 512 x 133 in the committed results")
    path = parser.parse_args().ct
    title = choose_device("cpu").title or platform.processor()
    rows = whole_file(path)
    torch.set_num_threads(1)
    keep(networks() + scans() + rows, title)


if __name__ == "__main__":
    main()
