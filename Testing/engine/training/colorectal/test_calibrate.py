"""The logit margin of tumours is calibrated on synthetic CTs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.repository import REPOSITORY

from segmamba.inference.sliding_window import NetworkOutput
from segmamba.networks import build_network
from segmamba.networks.checkpoint import save_safetensors
from segmamba.training.colorectal import calibrate
from segmamba.training.colorectal import validation as evaluate
from segmamba.training.colorectal.labels import LABELS

RECIPE = REPOSITORY / "Resources" / "Training" / "segmamba-v2-colorectal.json"
SMALL = {"features": [4, 8, 8, 16], "depths": [1, 1, 1, 1], "full_features": 4}
TRUE, FALSE = (slice(4, 10),) * 3, (slice(20, 26),) * 3  # 6^3 voxels of 3 mm: 5.8 mL each


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, weights, and two scans with a tumour each, to which answers are given instead of the network's."""
    content = json.loads(RECIPE.read_text(encoding="utf-8")) | {"spacing": 3.0, "device": "cpu"}
    content["arguments"] |= SMALL
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    network = build_network(content["architecture"], **content["arguments"])
    save_safetensors(network, tmp_path / "weights.safetensors")
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[TRUE] = LABELS["tumour"]
    (tmp_path / "scans").mkdir()
    for name in "ab":
        np.savez(tmp_path / "scans" / f"{name}.npz", image=np.zeros(labels.shape, np.int16), labels=labels)

    def answer(network: Any, image: torch.Tensor, *_: Any) -> NetworkOutput:
        logits = torch.zeros(4, *image.shape[1:])
        logits[LABELS["colon"]] = 1.0
        logits[LABELS["tumour"]][TRUE] = 4.2  # a margin of 3.2
        logits[LABELS["tumour"]][FALSE] = 2.2  # by 1.2
        return NetworkOutput(logits, torch.device("cpu"), ())

    monkeypatch.setattr(evaluate, "predict", answer)
    return tmp_path


def run(folder: Path, scans: str = "scans") -> int:
    return calibrate.main([str(folder / name) for name in ("config.json", "weights.safetensors", scans)])


def test_a_tumour_must_be_as_sure_as_it_takes_to_lose_false_ones(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(folder) == 0
    rows = {row["margin"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows[0.0] == {"margin": 0.0, "tumours": 2, "found": 2, "false_tumours": 2, "f": 0.556, "chosen": False}
    assert rows[2.0] == {"margin": 2.0, "tumours": 2, "found": 2, "false_tumours": 0, "f": 1.0, "chosen": True}
    assert rows[4.0] == {"margin": 4.0, "tumours": 2, "found": 0, "false_tumours": 0, "f": 0.0, "chosen": False}


@pytest.mark.parametrize(
    ("tumours", "found", "false", "precision", "sensitivity"), [(10, 8, 2, 0.8, 0.8), (10, 9, 9, 0.5, 0.9)]
)
def test_precision_weighs_twice_as_much(
    tumours: int, found: int, false: int, precision: float, sensitivity: float
) -> None:
    expected = 1.25 * precision * sensitivity / (0.25 * precision + sensitivity)
    assert calibrate.f_score(tumours, found, false) == pytest.approx(expected)


def test_without_scans_it_says_what_to_do(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(folder, scans="nowhere") != 0
    assert "render some" in capsys.readouterr().err
