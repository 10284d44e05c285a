"""Checkpoint files: what is written comes back, and every mismatch is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from segmamba.errors import ModelError
from segmamba.networks.checkpoint import load_state_dict, load_weights, save_safetensors


@pytest.fixture
def a_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))


def test_safetensors_come_back_in_half_precision_with_metadata(a_network: nn.Module, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    save_safetensors(a_network, path, metadata={"architecture": "spine_mamba"})
    state = load_state_dict(path)
    assert state["0.weight"].dtype == torch.float16
    assert state["1.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(state["0.weight"], a_network.state_dict()["0.weight"].half())
    with safetensors.safe_open(path, "pt") as opened:
        assert opened.metadata() == {"architecture": "spine_mamba"}


def test_half_precision_weights_load_into_a_float32_network(a_network: nn.Module) -> None:
    state = {name: value.half() for name, value in a_network.state_dict().items()}
    other = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
    load_weights(other, state)
    assert other[0].weight.dtype == torch.float32
    assert torch.equal(other[0].weight, state["0.weight"].float())


@pytest.mark.parametrize("wrapper", ["module", "model", "state_dict", None])
def test_wrapped_and_prefixed_torch_files_are_unwrapped(a_network: nn.Module, tmp_path: Path, wrapper) -> None:
    state = {f"module.{name}": value for name, value in a_network.state_dict().items()}
    path = tmp_path / "model.pt"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    load_weights(a_network, load_state_dict(path))
    assert list(load_state_dict(path)) == list(a_network.state_dict())


def test_missing_unexpected_and_misshapen_weights_are_named(a_network: nn.Module) -> None:
    state = dict(a_network.state_dict())
    with pytest.raises(ModelError, match="weight 'head.weight' has no place"):
        load_weights(a_network, {**state, "head.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"weight '0.bias' has the shape \(5,\) where the network has \(2,\)"):
        load_weights(a_network, {**state, "0.bias": torch.zeros(5)})
    del state["1.weight"]
    with pytest.raises(ModelError, match="has no weight '1.weight'"):
        load_weights(a_network, state)


def test_weights_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="weight 'w' is not finite in torch.float16"):
        save_safetensors({"w": torch.tensor([1e6])}, tmp_path / "model.safetensors")


def test_absent_file_is_a_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no checkpoint file"):
        load_state_dict(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_damaged_file_is_a_clear_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not a checkpoint at all")
    with pytest.raises(ModelError, match="is damaged"):
        load_state_dict(tmp_path / name)


class RunsCode:
    def __reduce__(self):
        return (print, ("code from the checkpoint ran",))


def test_torch_file_with_code_is_refused_and_the_code_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(1), "extra": RunsCode()}, path)
    with pytest.raises(ModelError, match="holds more than weights"):
        load_state_dict(path)
    assert "ran" not in capsys.readouterr().out


def test_file_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3}, path)
    with pytest.raises(ModelError, match="holds no network weights"):
        load_state_dict(path)
