"""A release's assets: what the command writes, and the way of a model from there to a user."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import tiny
from helpers.file_server import FileServer, Served, file_server
from helpers.many_cases import write
from helpers.phantoms import grid_around_patient, phantom, rotation
from helpers.released import DOWNLOADS, STORE, TAG, command, release, without_models
from helpers.repository import REPOSITORY

import segmamba
from segmamba.cli.main import main
from segmamba.errors import ModelError
from segmamba.models import store
from segmamba.models.manifest import load_manifest

FILE = "tiny.safetensors"


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "SEGMAMBA_MIRROR", "SEGMAMBA_SHARED_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "store"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a repository with one bundled model."""
    return tiny.write_model(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture
def user(source: Path, server: FileServer, tmp_path: Path) -> Path:
    """The manifest of a user who installed the release without its models."""
    return without_models(release(source, tmp_path / "assets", server), tmp_path / "user")


def fetch(manifest: Path) -> int:
    return main(["models", "--manifest", str(manifest), "fetch", tiny.MODEL_ID])


def test_the_assets_of_this_repository_are_its_models_with_sums_and_addresses(tmp_path: Path) -> None:
    out = tmp_path / "assets"
    assert command().main([str(out), "--tag", TAG]) == 0
    here, released = (json.loads((folder / "weights_manifest.json").read_text()) for folder in (REPOSITORY, out))
    bundled = {entry["file"]["name"]: entry["file"] for entry in released["models"] if entry["file"]["bundled"]}
    assert {path.name for path in out.iterdir()} == {*bundled, "weights_manifest.json", "SHA256SUMS"}
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {*bundled, "weights_manifest.json"}
    for name, digest in sums.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    project = "https://github.com/SegMambaSlicer/SlicerSegMambaSlicer"
    for name, file in bundled.items():
        assert file["sha256"] == sums[name]
        assert file.pop("urls") == [f"{project}/releases/download/{TAG}/{name}"]
    # Nothing else of the manifest is another.
    for entry in here["models"]:
        if entry["file"]["bundled"]:
            del entry["file"]["urls"]
    assert released == here
    load_manifest(out / "weights_manifest.json")


def test_an_existing_folder_or_a_wrong_checkpoint_is_refused_and_nothing_changes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    assert command().main([str(tmp_path / "there"), "--tag", TAG, "--manifest", str(source)]) == 1
    assert "exists: name a new folder" in capsys.readouterr().err
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(source.read_bytes())
    (tmp_path / FILE).write_bytes(b"another file")
    assert command().main([str(tmp_path / "out"), "--tag", TAG, "--manifest", str(manifest)]) == 1
    assert "its SHA-256 differs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_is_fetched_from_the_release_verified_and_runs(
    user: Path, server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=f"get it with 'segmamba models fetch {tiny.MODEL_ID}'"):
        store.installed(load_manifest(user).model(tiny.MODEL_ID), user.parent)
    assert fetch(user) == 0
    assert [path for path, _range in server.requests] == [f"{DOWNLOADS}/{FILE}", f"{STORE}/{FILE}?token=1"]
    assert main(["models", "--manifest", str(user), "verify", tiny.MODEL_ID]) == 0
    ct = write(phantom(grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0))), tmp_path / "ct.nii.gz")
    run = ["segment", str(ct), "-o", str(tmp_path / "spine.nii.gz"), "--task", "vertebrae", "--manifest", str(user)]
    assert main([*run, "--in-process", "--device", "cpu"]) == 0
    assert (tmp_path / "spine.nii.gz").is_file()


def test_a_download_that_breaks_off_goes_on(user: Path, server: FileServer) -> None:
    served = server.files[f"{STORE}/{FILE}?token=1"]
    served.cuts = [1000]
    assert fetch(user) == 0
    assert server.requests[-1] == (f"{STORE}/{FILE}?token=1", "bytes=1000-")


def test_a_mirror_goes_before_the_release(user: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files[f"/mirror/{tiny.MODEL_ID}/{FILE}"] = Served(server.files[f"{STORE}/{FILE}?token=1"].content)
    monkeypatch.setenv("SEGMAMBA_MIRROR", f"{server.url}/mirror")
    assert fetch(user) == 0
    assert [path for path, _range in server.requests] == [f"/mirror/{tiny.MODEL_ID}/{FILE}"]


def test_a_bundle_of_what_was_fetched_is_imported_without_the_server(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch(user) == 0
    models = ["models", "--manifest", str(user)]
    assert main([*models, "bundle", str(tmp_path / "bundle.zip"), tiny.MODEL_ID]) == 0
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "desk"))
    assert main([*models, "import", str(tmp_path / "bundle.zip")]) == 0
    assert main([*models, "verify", tiny.MODEL_ID]) == 0


def test_a_package_without_the_models_says_so_in_its_manifest(source: Path, server: FileServer, tmp_path: Path) -> None:
    assets = release(source, tmp_path / "assets", server, "--without-bundled")
    model = load_manifest(assets / "weights_manifest.json").model(tiny.MODEL_ID)
    assert model.file.bundled is None and model.file.urls == (f"{server.url}{DOWNLOADS}/{FILE}",)


def test_the_version_of_the_package_is_that_of_the_citation_and_of_the_changes() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {segmamba.__version__}\n" in citation
    sections = re.findall(r"^## (\S+)$", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[:2] == ["Unreleased", segmamba.__version__]
