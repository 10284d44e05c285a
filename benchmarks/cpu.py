"""Speed on the processor: precisions, the scan's blocks, and vertebrae of a CT from file to file.

python benchmarks/cpu.py CHEST_CT.nii.gz
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timing import keep, seconds

from segmamba.device import choose_device
from segmamba.files import segment_file
from segmamba.networks.segmamba_v2 import SegMambaV2
from segmamba.networks.spine_mamba import SpineMamba
from segmamba.request import Options, Request
from segmamba.scan import torch_scan

Row = dict[str, Any]


def networks() -> list[Row]:
    """The released network and the bundled coarse one on 64^3, in float32 and in bfloat16."""
    rows = []
    for name, network, channels in (
        ("SegMamba-V2 as released", SegMambaV2(), 1),
        ("SpineMamba coarse", SpineMamba(), 2),
    ):
        image = torch.randn(1, channels, 64, 64, 64)
        row: Row = {"what": f"{name}, 64^3"}
        for precision in (torch.float32, torch.bfloat16):
            half = nullcontext() if precision == torch.float32 else torch.autocast("cpu", precision)
            with torch.no_grad(), half:
                row[f"{precision} s"] = seconds(lambda: network.eval()(image), 2)  # noqa: B023
        rows.append(row)
    return rows


def scans() -> list[Row]:
    """The scan of the bundled network's layer at 1/8, by how many states are held at a time."""
    x, B, C = (torch.randn(3, count, 2880) for count in (192, 16, 16))
    step, rates = torch.rand(3, 192, 2880) * 0.1, -torch.rand(192, 16) * 4
    rows = []
    chosen = torch_scan.MAX_STATES
    for states in (8_000_000, 4_000_000, 2_000_000, 1_000_000):
        torch_scan.MAX_STATES = states
        with torch.no_grad():
            taken = seconds(lambda: torch_scan.selective_scan(x, step, rates, B, C, torch.ones(192)))
        rows.append({"what": f"scan (3, 192, 2880), {states} states at a time", "s": taken, "chosen": states == chosen})
    torch_scan.MAX_STATES = chosen
    return rows


def whole_file(path: Path) -> list[Row]:
    """Vertebrae of a CT from file to file."""
    with tempfile.TemporaryDirectory() as folder:
        request = Request(str(path), f"{folder}/labels.nii.gz", model="spinemamba", options=Options(device="cpu"))
        report = segment_file(request)
    return [{"what": f"vertebrae of {path.name}, file to file", **report["timings_s"]}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path, help="a CT, 512 x 512 x 133 in the committed results")
    path = parser.parse_args().ct
    keep(networks() + scans() + whole_file(path), choose_device("cpu").title or platform.processor())


if __name__ == "__main__":
    main()
