"""Import of checkpoint files: the right model, exact weights, named differences, no code, nothing half done."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.repository import REPOSITORY

from segmamba.cli.main import main
from segmamba.errors import Cancelled, ModelError, OutputError
from segmamba.inference.pipeline import segment
from segmamba.io.volume import Geometry, Volume
from segmamba.models import install as installing
from segmamba.models import store
from segmamba.models.import_checkpoint import NormalizationParameters, import_checkpoint
from segmamba.models.manifest import Manifest, load_manifest
from segmamba.models.record import RECORD_NAME
from segmamba.networks import build_network, checkpoint
from segmamba.networks.checkpoint import load_state_dict, save_safetensors, write_safetensors
from segmamba.networks.identify import differences, expected_shapes, identify

pytestmark = pytest.mark.usefixtures("models")

NORMALIZATION = NormalizationParameters(-100.0, 200.0, 50.0, 40.0)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A tiny model whose file and hash are known, and one that a user brings."""
    return load_manifest(tiny.write_model(tmp_path))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Random weights of the tiny network, in the precision of a training."""
    torch.manual_seed(7)
    return dict(build_network("spine_mamba", **tiny.ARGUMENTS).state_dict())


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("name", ["mine.pt", "mine.pth", "old.pt", "mine.safetensors"])
def test_weights_come_through_exactly_from_every_kind_of_file(
    manifest: Manifest, state: dict[str, torch.Tensor], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_safetensors(state, path, dtype=torch.float32)
    else:
        prefixed = {"module": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
        torch.save(prefixed, path, _use_new_zipfile_serialization=name != "old.pt")
    found = import_checkpoint(path, manifest, tiny.MISSING_ID)
    assert found.path.suffix == ".safetensors"
    assert found.origin == f"imported from {name}"
    loaded = load_state_dict(found.path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert store.verify(store.installed(manifest.model(tiny.MISSING_ID))) == found.sha256
    assert files_in(store.models_folder()) == sorted([found.path.name, RECORD_NAME])


def test_what_is_written_is_read_by_the_safetensors_package(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = {
        "matrix": torch.arange(6.0).view(2, 3).T,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "one": torch.tensor(5),
        "none": torch.zeros(0, 4),
    }
    write_safetensors(state, tmp_path / "w.safetensors")
    loaded = safetensors.load_file(str(tmp_path / "w.safetensors"))
    assert all(torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype for key, value in state.items())


def test_model_is_told_by_its_weights_or_by_its_hash(manifest: Manifest, state: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(state, path)
    with pytest.raises(ModelError, match=f"{tiny.MODEL_ID}, {tiny.MISSING_ID}: say which it is with --as"):
        import_checkpoint(path, manifest)
    assert import_checkpoint(tmp_path / "tiny.safetensors", manifest).model.id == tiny.MODEL_ID
    only = Manifest(manifest.models[1:])
    assert import_checkpoint(path, only).model.id == tiny.MISSING_ID


def test_other_weights_are_not_taken_for_a_published_checkpoint(manifest: Manifest, state: Any, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    torch.save(state, path)
    with pytest.raises(ModelError, match="is not its checkpoint of version 1 .*--checkpoint"):
        import_checkpoint(path, manifest, tiny.MODEL_ID)
    assert files_in(store.models_folder()) == []


def test_every_kind_of_difference_is_named_with_its_first_weight(
    manifest: Manifest, state: dict[str, torch.Tensor], tmp_path: Path, models: Path
) -> None:
    path = tmp_path / "mine.pt"
    del state["out.conv.conv.bias"]
    state["extra"] = torch.zeros(1)
    state["encoders.0.conv2.conv.weight"] = torch.zeros(8, 8, 1, 1, 1)
    torch.save(state, path)
    with pytest.raises(ModelError) as caught:
        import_checkpoint(path, manifest, tiny.MISSING_ID)
    message = str(caught.value)
    assert (
        "1 missing, first out.conv.conv.bias; 1 unexpected, first extra; 1 of a different shape, first enc" in message
    )
    assert "encoders.0.conv2.conv.weight with 8x8x1x1x1 where the network has 8x8x3x3x3" in message
    assert "It seems to be spine_mamba with 1 input and 4 output channels" in message
    assert not models.exists()


def test_file_renamed_to_a_wrong_model_is_found_out(manifest: Manifest, tmp_path: Path) -> None:
    other = build_network("spine_mamba", **{**tiny.ARGUMENTS, "in_channels": 2, "out_channels": 5})
    path = tmp_path / "missing.pt"
    torch.save(other.state_dict(), path)
    for name in (None, tiny.MISSING_ID):
        with pytest.raises(ModelError, match="spine_mamba with 2 input and 5 output channels"):
            import_checkpoint(path, manifest, name)
    # Put in place by hand it goes no further either.
    folder = store.model_folder(manifest.model(tiny.MISSING_ID))
    folder.mkdir(parents=True)
    path.rename(folder / "missing.pt")
    with pytest.raises(ModelError, match="belongs to another architecture or other arguments"):
        segment(a_volume(), manifest.model(tiny.MISSING_ID))


def test_weights_of_something_else_are_told_apart_from_a_damaged_file(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "resnet.pt"
    torch.save({"fc.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="fits no model of the manifest: it is not a network that this software knows"):
        import_checkpoint(path, manifest)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is damaged"):
        import_checkpoint(path, manifest)


@pytest.mark.parametrize("name", ["page.pt", "page.safetensors"])
def test_a_web_page_for_a_checkpoint_ends_in_one_line_without_warnings_of_libraries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGMAMBA_DEBUG", raising=False)
    (tmp_path / name).write_text("<!DOCTYPE html><html><title>Sign in</title></html>" * 9)
    assert main(["models", "import", str(tmp_path / name)]) == ModelError.exit_code
    *progress, line = capsys.readouterr().err.strip().splitlines()
    assert progress == ["read"] and line.startswith(
        f"segmamba: error: The file {tmp_path / name} is a web page, not a checkpoint: open the"
    )


@pytest.mark.parametrize(("debug", "shown"), [("", False), ("1", True)])
def test_what_libraries_warn_of_is_shown_only_with_the_log(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch, debug: str, shown: bool
) -> None:
    def load(path: Path) -> None:
        warnings.warn("TypedStorage is deprecated", UserWarning, stacklevel=1)
        raise ModelError("No.") if not debug else SystemExit

    monkeypatch.setenv("SEGMAMBA_DEBUG", debug)
    monkeypatch.setattr(checkpoint, "load_state_dict", load)
    with contextlib.suppress(SystemExit):
        main(["models", "import", str(tmp_path / "weights.pt")])
    assert [str(warning.message) for warning in recwarn] == ["TypedStorage is deprecated"] * shown


def test_wrapped_weights_of_other_programs_are_imported(manifest: Manifest, state: Any, tmp_path: Path) -> None:
    wrapped = {"network_weights": {f"module._orig_mod.{key}": value for key, value in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "checkpoint_final.pth")
    found = import_checkpoint(tmp_path / "checkpoint_final.pth", manifest, tiny.MISSING_ID)
    assert load_state_dict(found.path).keys() == state.keys()


class RunsCode:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_wants_to_run_code_is_refused_and_never_run(
    manifest: Manifest, state: dict[str, Any], tmp_path: Path, zipped: bool, models: Path
) -> None:
    path, mark = tmp_path / "mine.pt", tmp_path / "the code ran"
    torch.save({**state, "extra": RunsCode(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="holds more than weights"):
        import_checkpoint(path, manifest, tiny.MISSING_ID)
    assert not mark.exists()
    assert not models.exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_and_nothing_stays(
    manifest: Manifest, state: dict[str, torch.Tensor], tmp_path: Path, bad: float
) -> None:
    path = tmp_path / "mine.pt"
    state["out.conv.conv.bias"][0] = bad
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"'out.conv.conv.bias' has NaN or infinity"):
        import_checkpoint(path, manifest, tiny.MISSING_ID)
    assert files_in(store.models_folder()) == []


def test_cancelled_or_too_large_import_keeps_what_was_there(
    manifest: Manifest, state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.pt"
    torch.save(state, path)
    before = import_checkpoint(path, manifest, tiny.MISSING_ID)
    torch.save({key: value + 1 for key, value in state.items()}, path)
    steps: list[str] = []
    with pytest.raises(Cancelled):
        import_checkpoint(
            path, manifest, tiny.MISSING_ID, None, lambda stage, _: steps.append(stage), lambda: "convert" in steps
        )
    with monkeypatch.context() as patch:
        patch.setattr(installing, "DISK_RESERVE", 1 << 60)
        with pytest.raises(OutputError, match="free some space"):
            import_checkpoint(path, manifest, tiny.MISSING_ID)
    assert files_in(store.models_folder()) == sorted([before.path.name, RECORD_NAME])
    assert store.verify(store.installed(before.model)) == before.sha256
    after = import_checkpoint(path, manifest, tiny.MISSING_ID)
    assert files_in(store.models_folder()) == sorted([after.path.name, RECORD_NAME])
    assert after.path != before.path


def a_volume() -> Volume:
    array = np.random.default_rng(0).integers(-1000, 1000, (14, 28, 28)).astype(np.int16)
    geometry = Geometry((28, 28, 14), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    return Volume(array, geometry, "CT")


def test_given_intensities_are_kept_used_and_reported_and_an_estimate_is_marked(
    manifest: Manifest, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "mine.pt"
    torch.save(state, path)
    model = manifest.model(tiny.MISSING_ID)
    import_checkpoint(path, manifest, tiny.MISSING_ID)
    estimate = segment(a_volume(), model).report["model"]
    assert estimate["estimated"] == "the weights are random"
    assert estimate["normalization"][0]["low"] == -1000.0
    found = import_checkpoint(path, manifest, tiny.MISSING_ID, NORMALIZATION)
    assert store.configured(model, found).preprocessing.normalization[0].low == NORMALIZATION.low
    given = segment(a_volume(), model).report["model"]
    assert given["estimated"] is None
    assert given["normalization"] == [{"scheme": "clip", "low": -100.0, "high": 200.0, "mean": 50.0, "std": 40.0}]


def test_intensities_that_cannot_be_right_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    for parameters in ((200.0, -100.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0), (0.0, math.nan, 0.0, 1.0)):
        with pytest.raises(ModelError, match="are not valid"):
            NormalizationParameters(*parameters)
    bundled = load_manifest()
    path = REPOSITORY / "Resources/Models/spinemamba.safetensors"
    with pytest.raises(ModelError, match="does not accept normalization parameters: leave out --clip"):
        import_checkpoint(path, bundled, normalization=NORMALIZATION)


def test_command_line_imports_lists_verifies_and_notes_the_estimate(
    manifest: Manifest, state: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.pt"
    torch.save(state, path)
    run = ["models", "--manifest", str(tmp_path / "manifest.json")]
    assert main([*run, "import", str(path), "--as", tiny.MISSING_ID]) == 0
    assert "Note: the weights are random; if you know them, import again with them (--clip" in capsys.readouterr().out
    parameters = ["--clip", "-100", "200", "--mean", "50", "--std", "40"]
    assert main([*run, "import", str(path), "--as", tiny.MISSING_ID, *parameters]) == 0
    assert "Note" not in capsys.readouterr().out
    assert main([*run, "list"]) == 0
    assert "imported from mine.pt" in capsys.readouterr().out
    assert main([*run, "verify"]) == 0
    assert capsys.readouterr().out.count("OK  ") == 2
    assert main([*run, "import", str(path), "--clip", "1", "2"]) == ModelError.exit_code
    assert "belong together" in capsys.readouterr().err
    store.installed(manifest.model(tiny.MISSING_ID)).path.write_bytes(b"damaged")
    assert main([*run, "verify", tiny.MISSING_ID]) == ModelError.exit_code
    assert "FAIL  tiny-missing" in capsys.readouterr().out


@pytest.mark.parametrize("architecture", ["spine_mamba", "segmamba_v2_release", "segmamba_v2_paper"])
def test_network_is_told_by_its_names_and_shapes(architecture: str) -> None:
    shapes = expected_shapes(architecture, {"in_channels": 3, "out_channels": 7})
    assert str(identify(shapes)) == f"{architecture} with 3 input and 7 output channels"
    assert differences(shapes, shapes) == ()
