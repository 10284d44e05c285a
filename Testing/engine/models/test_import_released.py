"""Import of the authors' own checkpoints, at small and at full size, and of the bundled one in eight bits."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from helpers import brain
from helpers.own_time import PATIENCE
from helpers.repository import REPOSITORY

from segmamba.cli.main import main
from segmamba.errors import InputError
from segmamba.inference.pipeline import segment
from segmamba.io.read import read_image
from segmamba.io.volume import Geometry, Volume
from segmamba.models import store
from segmamba.models.import_checkpoint import import_checkpoint
from segmamba.models.manifest import load_manifest
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict
from segmamba.networks.quantization import INT8_ROWS

pytestmark = pytest.mark.usefixtures("models")

OFFICIAL, BRATS = "segmamba-v2-colorectal-official", "segmamba-v2-brats2023-official"


@pytest.fixture
def small_official(tmp_path: Path) -> Path:
    """The software's own manifest, in which the released networks are narrow."""
    root = REPOSITORY
    content = json.loads((root / "weights_manifest.json").read_text(encoding="utf-8"))
    for entry in content["models"]:
        if entry["architecture"] == "segmamba_v2_release":
            entry["arguments"] |= {"feat_size": [8, 8, 16, 16], "hidden_size": 16, "depths": [1, 1, 1, 1]}
    path = tmp_path / "official.json"
    path.write_text(json.dumps(content))
    return path


def test_brats_checkpoint_is_recognised_kept_carried_and_run_on_four_volumes(
    small_official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = load_manifest(small_official).model(BRATS)
    torch.manual_seed(5)
    weights = dict(build_network(listed.architecture, **listed.arguments).state_dict())
    checkpoint = tmp_path / "final_model.pt"
    torch.save({"module": weights}, checkpoint)
    run = ["models", "--manifest", str(small_official)]
    assert main([*run, "import", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Installed: {BRATS}, imported from final_model.pt") and "--clip" not in said
    kept = load_state_dict(store.installed(listed).path)
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], value) for name, value in weights.items())
    assert main([*run, "import", str(checkpoint), "--clip", "0", "1", "--mean", "0", "--std", "1"]) == 4
    assert "does not accept normalization parameters" in capsys.readouterr().err
    assert main([*run, "verify", BRATS]) == 0
    assert main([*run, "bundle", str(tmp_path / "b.zip")]) == 0
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "elsewhere"))
    assert main([*run, "import", str(tmp_path / "b.zip")]) == 0
    names = [channel.name for channel in listed.input_channels]
    paths = brain.write_channels(tmp_path / "BraTS-GLI-00000-000", "BraTS-GLI-00000-000-", tuple(names))
    result = tmp_path / "out.nii.gz"
    command = ["segment", paths["t1c"], "-o", str(result), "--in-process", "--manifest", str(small_official)]
    command += ["--task", "brain-tumour", "--device", "cpu"]
    capsys.readouterr()
    assert main(command) == InputError.exit_code
    said = capsys.readouterr().err
    assert "takes 4 co-registered volumes (t2w, t2f, t1n, t1c) and got 1" in said and said.count("\n") == 1
    assert main([*command, *(f"--channel={name}={paths[name]}" for name in ("t2w", "t2f", "t1n"))]) == 0
    assert "its grid and its normalization are those of the authors' earlier release" in capsys.readouterr().out
    labels = read_image(result)
    assert labels.geometry.size == brain.GRID.size and set(np.unique(labels.array)) <= {0, 1, 2, 3}
    assert labels.array.any()
    assert main([*run, "remove", BRATS]) == 0


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder for large files, which goes at once."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


# Not getrusage's figure: that begins with the peak of the process that started this one.
PEAK = """
import re, sys
from pathlib import Path
from segmamba.models.import_checkpoint import import_checkpoint
from segmamba.models.manifest import load_manifest
from segmamba.networks import build_network, checkpoint, identify
import filelock, safetensors.torch
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
import_checkpoint(Path(sys.argv[1]), load_manifest(Path(sys.argv[2])))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read as Linux tells it")
def test_full_size_released_network_is_imported_within_twice_its_size_and_runs(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = REPOSITORY
    shapes = json.loads((root / "Testing/data/segmamba_v2_release_state_dict_shapes.json").read_text())
    torch.manual_seed(0)
    # Half a gigabyte of random numbers takes seconds: the same ones again and again.
    values = torch.randn(1 << 20).mul_(0.01)
    state = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        state[name] = values.repeat(-(-size // len(values)))[:size].clone().view(shape)
    checkpoint = room / "final_model.pt"
    torch.save({"module": {f"module.{name}": value for name, value in state.items()}}, checkpoint)
    content = json.loads((root / "weights_manifest.json").read_text(encoding="utf-8"))
    # A window that a processor computes in a moment.
    next(entry for entry in content["models"] if entry["id"] == OFFICIAL)["patch"] = [32, 32, 32]
    manifest = room / "manifest.json"
    manifest.write_text(json.dumps(content))
    monkeypatch.setenv("SEGMAMBA_MODELS", str(room / "store"))
    environment = {**os.environ, "PYTHONPATH": str(root / "SegMambaSlicer")}
    command = [sys.executable, "-c", PEAK, str(checkpoint), str(manifest)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    size = checkpoint.stat().st_size
    assert size > 500e6
    # The mapped file counts: less than most of it would mean that nothing was measured.
    assert 0.8 * size < int(done.stdout) < 2 * size
    model = load_manifest(manifest).model(OFFICIAL)
    loaded = load_state_dict(store.installed(model).path)
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    array = np.random.default_rng(0).integers(-1000, 1000, (14, 28, 28)).astype(np.int16)
    geometry = Geometry((28, 28, 14), (0.8, 0.8, 3.75), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    result = segment(Volume(array, geometry, "CT"), model)
    assert set(np.unique(result.labels)) <= {0, 1}
    assert (
        result.report["model"]["checkpoint_sha256"]
        == hashlib.sha256(store.installed(model).path.read_bytes()).hexdigest()
    )
    assert "estimate" in result.report["model"]["estimated"]


def test_a_checkpoint_in_eight_bits_is_imported_by_its_hash_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = load_manifest()
    model = bundled.default("vertebrae")
    path = REPOSITORY / str(model.file.bundled)
    with pytest.importorskip("safetensors").safe_open(path, "pt") as file:
        assert file.metadata()["storage"] == INT8_ROWS
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "models"))
    found = import_checkpoint(path, bundled)
    assert found.model is model and found.source_sha256 == model.file.sha256
    store.verify(found)
    ours, theirs = load_state_dict(found.path), load_state_dict(path)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and len(ours) == len(theirs)
