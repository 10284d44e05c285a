"""Two trained stages become one checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights, save_safetensors
from segmamba.training.vertebrae.merge_stages import main

STAGE = {"in_channels": 1, "features": [8, 8, 8, 16, 16], "depths": [1, 1], "prior_tokens": 4}


def test_both_stages_load_from_the_merged_file(tmp_path: Path) -> None:
    arguments = {"coarse": STAGE | {"out_channels": 33}, "fine": STAGE | {"out_channels": 6, "shape_prior": False}}
    paths = []
    for name, given in arguments.items():
        torch.manual_seed(len(name))
        paths.append(tmp_path / f"{name}.safetensors")
        save_safetensors(build_network("spine_mamba", **given), paths[-1])
    merged = tmp_path / "both.safetensors"
    assert main([*map(str, paths), str(merged)]) == 0
    network = build_network("spine_mamba_two_stage", **arguments)
    load_weights(network, load_state_dict(merged))
    for name, path in zip(arguments, paths, strict=True):
        stage = getattr(network, name).state_dict()
        assert all(torch.equal(value.half(), stage[key].half()) for key, value in load_state_dict(path).items())


def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    arguments = [str(tmp_path / "a.safetensors")] * 2
    assert main([*arguments, str(tmp_path / "out.safetensors")]) == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()
