"""Checkpoint files: what is written comes back, and every mismatch is named."""

from __future__ import annotations

import gzip
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segmamba.errors import ModelError
from segmamba.networks.checkpoint import load_state_dict, load_weights, save_quantized, save_safetensors
from segmamba.networks.quantization import dequantize, quantize_int8
from segmamba.networks.state_dict import find_state_dict
from segmamba.training import quantize


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
    with pytest.raises(ModelError, match="weight 'head.weight' is not in the network"):
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
    (tmp_path / name).write_bytes(b"\1\2\3 not a checkpoint at all")
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
    with pytest.raises(ModelError, match=r"holds more than weights \(\w*\.?print\)"):
        load_state_dict(path)
    assert "ran" not in capsys.readouterr().out


def test_file_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3}, path)
    with pytest.raises(ModelError, match="does not hold network weights"):
        load_state_dict(path)


@pytest.fixture
def a_large_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(64, 32, 3, 3, 3) * torch.linspace(0.01, 10, 64)[:, None, None, None, None],
        "up.weight": torch.randn(64, 32, 2, 2, 2),
        "linear.weight": torch.randn(128, 256),
        "linear.bias": torch.randn(128),
        "mamba.A_log": torch.randn(2048, 16),
        "mamba.conv1d.weight": torch.randn(256, 1, 4),
        "count": torch.tensor(7),
    }


def test_weights_stored_in_eight_bits_come_back_within_half_a_step_of_their_row(
    a_large_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_quantized(a_large_state, tmp_path / "w.safetensors")
    state = load_state_dict(tmp_path / "w.safetensors")
    assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in a_large_state.items()}
    for name in ("conv.weight", "up.weight", "linear.weight"):
        rows, back = a_large_state[name].flatten(1), state[name].flatten(1)
        assert back.dtype == torch.float32
        steps = rows.abs().amax(dim=1, keepdim=True) / 127
        assert ((back - rows).abs() <= 0.5001 * steps).all()
        assert not torch.equal(back, rows)
    for name in ("linear.bias", "mamba.A_log", "mamba.conv1d.weight", "count"):
        assert torch.equal(state[name], a_large_state[name].half() if name != "count" else a_large_state[name])


def test_eight_bits_take_half_the_space_of_half_precision(
    a_large_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    large = {name: value for name, value in a_large_state.items() if value.dim() > 1 and name.endswith("r.weight")}
    save_safetensors(large, tmp_path / "half.safetensors")
    save_quantized(large, tmp_path / "eight.safetensors")
    sizes = [(tmp_path / name).stat().st_size for name in ("eight.safetensors", "half.safetensors")]
    assert sizes[0] < 0.52 * sizes[1]


def test_eight_bits_of_the_same_weights_are_the_same_file(
    a_large_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for path in paths:
        save_quantized(a_large_state, path)
    assert len({path.read_bytes() for path in paths}) == 1


def test_a_file_in_eight_bits_is_stored_again_without_further_loss(
    a_large_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_quantized(a_large_state, tmp_path / "once.safetensors")
    once = load_state_dict(tmp_path / "once.safetensors")
    save_quantized(once, tmp_path / "twice.safetensors")
    twice = load_state_dict(tmp_path / "twice.safetensors")
    assert all(torch.allclose(once[name], twice[name], rtol=1e-6, atol=0) for name in once)


def test_a_row_of_zeros_survives_eight_bits() -> None:
    weight = torch.randn(128, 256)
    weight[3] = 0
    state = dequantize(quantize_int8({"a.weight": weight}))
    assert (state["a.weight"][3] == 0).all() and state["a.weight"].isfinite().all()


def test_weights_that_eight_bits_cannot_hold_are_refused() -> None:
    for name, value in (("a.weight", torch.full((128, 256), torch.nan)), ("a.bias", torch.tensor([1e6]))):
        with pytest.raises(ModelError, match=f"'{name}' is not finite"):
            quantize_int8({name: value})


def test_scales_that_are_missing_or_too_few_are_a_clear_sentence() -> None:
    stored = quantize_int8({"a.weight": torch.randn(128, 256)})
    scales = stored.pop("a.weight.scales")
    with pytest.raises(ModelError, match=r"'a.weight' does not have one scale per row"):
        dequantize(stored)
    with pytest.raises(ModelError, match=r"'a.weight' does not have one scale per row"):
        dequantize(stored | {"a.weight.scales": scales[:5]})


def test_a_storage_of_a_newer_version_asks_for_an_update(tmp_path: Path) -> None:
    pytest.importorskip("safetensors.torch").save_file(
        {"w": torch.zeros(2)}, str(tmp_path / "w.safetensors"), metadata={"storage": "four bits"}
    )
    with pytest.raises(ModelError, match=r"'four bits'\): update"):
        load_state_dict(tmp_path / "w.safetensors")


def test_the_command_stores_a_checkpoint_in_eight_bits_and_any_network_still_loads_it_strictly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = nn.Sequential(nn.Conv3d(16, 64, 3), nn.BatchNorm3d(64))
    save_safetensors(network, tmp_path / "half.safetensors")
    assert quantize.main([str(tmp_path / "half.safetensors"), str(tmp_path / "eight.safetensors")]) == 0
    assert "SHA-256" in capsys.readouterr().out
    load_weights(network, load_state_dict(tmp_path / "eight.safetensors"))
    with pytest.raises(ModelError, match="another architecture"):
        load_weights(nn.Sequential(nn.Conv3d(16, 32, 3)), load_state_dict(tmp_path / "eight.safetensors"))
    assert quantize.main([str(tmp_path / "none.pt"), str(tmp_path / "out.safetensors")]) == ModelError.exit_code
    assert capsys.readouterr().err.count("\n") == 1


WRAPPERS = (
    *(["model_state_dict"], ["net"], ["network_weights"], ["model", "state_dict"], ["state_dict", "module"]),
    *(["ema", "net"], ["student"]),
)
PREFIXES = ("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "model.", "net._orig_mod.")


@pytest.mark.parametrize("wrappers", WRAPPERS, ids=".".join)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_are_found_whatever_a_program_has_wrapped_them_in(
    a_network: nn.Module, tmp_path: Path, wrappers: list[str], prefix: str
) -> None:
    content: dict[str, Any] = {f"{prefix}{name}": value for name, value in a_network.state_dict().items()}
    for wrapper in reversed(wrappers):
        content = {wrapper: content, "epoch": 3, "best": np.float64(0.5), "arguments": Namespace(out=tmp_path)}
    torch.save(content, tmp_path / "model.pt")
    state = load_state_dict(tmp_path / "model.pt")
    assert state.keys() == a_network.state_dict().keys()
    load_weights(a_network, state)


def test_only_the_weights_of_the_network_are_taken(a_network: nn.Module, tmp_path: Path) -> None:
    compiled_inside = {f"0._orig_mod.{name}": value for name, value in a_network[0].state_dict().items()}
    assert find_state_dict(compiled_inside).keys() == {"0.weight", "0.bias"}
    of_lightning = {f"net.{name}": value for name, value in a_network.state_dict().items()}
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}
    saved = {"state_dict": of_lightning | {"loss.weight": torch.ones(2)}, "optimizer_states": optimizer}
    assert find_state_dict(saved).keys() == a_network.state_dict().keys()
    averaged = torch.optim.swa_utils.AveragedModel(a_network).state_dict()
    assert find_state_dict(averaged).keys() == a_network.state_dict().keys()
    assert find_state_dict({"epoch": 3, **a_network.state_dict()}).keys() == a_network.state_dict().keys()


def test_two_networks_with_the_same_names_are_refused(a_network: nn.Module) -> None:
    state = dict(a_network.state_dict())
    with pytest.raises(ModelError, match=r"two weights '0.weight'"):
        find_state_dict(state | {f"module.{name}": value for name, value in state.items()})


def test_the_content_and_not_the_name_says_which_format_it_is(a_network: nn.Module, tmp_path: Path) -> None:
    save_safetensors(a_network, tmp_path / "a.pt")
    torch.save(a_network.state_dict(), tmp_path / "b.safetensors")
    for name in ("a.pt", "b.safetensors"):
        load_weights(a_network, load_state_dict(tmp_path / name))


OTHER_FILES = {
    "web page": (b"<!DOCTYPE html><html><title>Sign in</title></html>", "is a web page, .* save the file itself"),
    "page with a mark": (b"\xef\xbb\xbf\n<html lang='en'>", "is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "pointer of Git LFS"),
    "json": (b'{"message": "Not Found"}', "is a text file"),
    "yaml": ("learning_rate: 0.1  # größer\n".encode() * 100, "is a text file"),
    "wide text": ("weights".encode("utf-16"), "is a text file"),
    "empty": (b"", "is empty"),
    "zeros": (b"\0" * 5000, "is empty"),
    "packed": (gzip.compress(b"x" * 100), r"is packed \(gzip\): unpack it"),
    "keras": (b"\x89HDF\r\n\x1a\n" + b"\0\1" * 90, "HDF5"),
    "damaged": (bytes(range(256)) * 9, "is damaged: get it again"),
    "cut": (None, "is damaged: get it again"),
}


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("kind", OTHER_FILES)
def test_what_is_not_a_checkpoint_is_said_to_be_what_it_is(tmp_path: Path, kind: str, name: str) -> None:
    content, said = OTHER_FILES[kind]
    if content is None:
        torch.save({"weight": torch.zeros(999)}, tmp_path / "whole")
        content = (tmp_path / "whole").read_bytes()[:2000]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        load_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_zip_of_other_things_and_a_program_are_said_to_be_that(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/weights.pth", b"x")
    with pytest.raises(ModelError, match=r"is packed \(zip\): unpack it"):
        load_state_dict(tmp_path / "model.pt")
    torch.jit.script(nn.Linear(1, 1)).save(str(tmp_path / "script.pt"))
    with pytest.raises(ModelError, match="TorchScript program"):
        load_state_dict(tmp_path / "script.pt")
