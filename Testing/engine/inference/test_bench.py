"""How fast a machine runs a model's networks, as ``segmamba bench`` tells it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import tiny

from segmamba.cli.main import main
from segmamba.inference import bench as measuring
from segmamba.inference.bench import CHEST_MM, bench
from segmamba.inference.sliding_window import NetworkOutput
from segmamba.models.manifest import load_manifest
from segmamba.request import Options

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.0)


@pytest.mark.usefixtures("quick")
def test_the_command_tells_device_window_and_a_chest_ct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tiny.write_model(tmp_path)
    assert main(["bench", "--manifest", str(manifest), "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{tiny.MODEL_ID} ")
    assert said[0].endswith("scan torch, float32") or said[0].endswith("scan torch, bfloat16")
    assert said[1].startswith("window of 32 x 32 x 32 voxels: ")
    assert said[2].startswith("networks for a chest CT of 360 x 300 x 333 mm, estimated: ")


@pytest.mark.usefixtures("quick")
def test_both_stages_are_run_and_the_chest_ct_is_their_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spine = load_manifest().default("vertebrae")
    asked: list[tuple[int, ...]] = []

    def answer(network: torch.nn.Module, image: torch.Tensor, *_: object) -> NetworkOutput:
        asked.append(tuple(image.shape))
        return NetworkOutput(torch.zeros(1, 1, 1, 1), CPU, ("It was slow.",))

    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr(measuring, "predict", answer)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(clock)))
    found = bench(spine, Options(device="cpu"))
    assert set(asked) == {(2, *spine.patch), (2, *spine.fine.patch)}
    assert [stage.seconds for stage in found.stages] == [2.0, 2.0]
    # 180 x 150 x 166 voxels of 2 mm: 4 windows of 176 x 96 x 112; of the second stage about 6.
    windows = (found.chest_seconds / 2.0) - 4 * 176 * 112 / (160 * 96)
    assert 4 <= windows <= 12
    assert found.warnings == ("It was slow.",)
    assert CHEST_MM == (360.0, 300.0, 333.0)
