"""Models carried to a computer without a network: as a zip archive, as a folder, and with bad intentions."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import tiny

from segmamba.cli.main import main
from segmamba.errors import Cancelled, ModelError, OutputError
from segmamba.models import store
from segmamba.models.bundle import import_bundle, write_bundle
from segmamba.models.import_checkpoint import NormalizationParameters, import_checkpoint
from segmamba.models.manifest import Manifest, load_manifest
from segmamba.models.record import RECORD_NAME
from segmamba.networks import build_network

pytestmark = pytest.mark.usefixtures("models")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return load_manifest(tiny.write_model(tmp_path))


@pytest.fixture
def found(manifest: Manifest, tmp_path: Path) -> store.Installed:
    """An imported model, with normalization parameters of its own."""
    torch.manual_seed(3)
    torch.save(build_network("spine_mamba", **tiny.ARGUMENTS).state_dict(), tmp_path / "mine.pt")
    return import_checkpoint(
        tmp_path / "mine.pt", manifest, tiny.MISSING_ID, NormalizationParameters(-9.0, 9.0, 1.0, 2.0)
    )


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Another computer: an empty models folder."""
    folder = tmp_path / "elsewhere"
    monkeypatch.setenv("SEGMAMBA_MODELS", str(folder))
    return folder


def test_bundle_brings_a_model_to_another_computer_with_all_that_is_known_of_it(
    manifest: Manifest, found: store.Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = found.path.read_bytes()
    write_bundle(tmp_path / "b.zip", [found])
    elsewhere(monkeypatch, tmp_path)
    (there,) = import_bundle(tmp_path / "b.zip", manifest)
    assert there.path.read_bytes() == content
    assert (there.origin, there.normalization, there.source_sha256) == (
        found.origin,
        found.normalization,
        found.source_sha256,
    )
    assert there == store.installed(manifest.model(tiny.MISSING_ID))


def test_models_folder_that_somebody_zipped_as_a_whole_is_accepted(
    manifest: Manifest, found: store.Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path, "store")
    elsewhere(monkeypatch, tmp_path)
    (there,) = import_bundle(Path(archive), manifest)
    assert store.verify(there) == found.sha256
    # This archive is compressed: damage shows in another way.
    whole = Path(archive).read_bytes()
    Path(archive).write_bytes(whole[:9000] + bytes(500) + whole[9500:])
    with pytest.raises(ModelError, match="damaged"):
        import_bundle(Path(archive), manifest)
    assert store.verify(there) == found.sha256


@pytest.mark.parametrize("by_hand", [False, True])
def test_models_folder_of_another_computer_is_accepted_as_it_is(
    manifest: Manifest, found: store.Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "store", copied)
    elsewhere(monkeypatch, tmp_path)
    if by_hand:
        shutil.copytree(copied, tmp_path / "elsewhere")
    else:
        assert len(import_bundle(copied, manifest)) == 1
    there = store.installed(manifest.model(tiny.MISSING_ID))
    assert store.verify(there) == found.sha256
    assert there.normalization == found.normalization


def test_command_line_writes_and_imports_bundles(
    manifest: Manifest, found: store.Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    run = ["models", "--manifest", str(tmp_path / "manifest.json")]
    bundle = tmp_path / "b.zip"
    assert main([*run, "bundle", str(bundle)]) == 0
    assert main([*run, "bundle", str(bundle)]) == OutputError.exit_code
    assert "already exists" in capsys.readouterr().err
    assert main([*run, "bundle", str(tmp_path / "both.zip"), tiny.MODEL_ID, tiny.MISSING_ID]) == 0
    with zipfile.ZipFile(tmp_path / "both.zip") as archive:
        assert len(archive.namelist()) == 4
    elsewhere(monkeypatch, tmp_path)
    assert main([*run, "bundle", str(tmp_path / "c.zip")]) == ModelError.exit_code
    assert main([*run, "import", str(bundle), "--as", tiny.MISSING_ID]) == ModelError.exit_code
    assert "leave out --as" in capsys.readouterr().err
    assert main([*run, "import", str(bundle)]) == 0
    assert "Installed: tiny-missing, imported from mine.pt" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["../escaped", "tiny-missing/../../escaped", "/escaped", "..\\escaped", "C:/escaped", "tiny-missing/C:x"]
)
def test_archive_with_names_that_lead_out_of_it_is_refused(
    manifest: Manifest,
    found: store.Installed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    write_bundle(tmp_path / "b.zip", [found])
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as archive:
        archive.writestr(name, "evil")
    folder = elsewhere(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match="leads out of it"):
        import_bundle(tmp_path / "b.zip", manifest)
    assert not folder.exists()
    assert not list(tmp_path.parent.glob("**/escaped"))


def rewritten(source: Path, target: Path, **changes: object) -> None:
    """Copy a bundle with another record."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(RECORD_NAME):
                content = json.dumps({**json.loads(content), **changes}).encode()
            new.writestr(name, content)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"file": "../b.zip"}, "damaged"),
        ({"file": RECORD_NAME}, "damaged"),
        ({"file": "absent.safetensors"}, "damaged"),
        ({"size": 10}, "damaged"),
        ({"size": 10**9}, "damaged"),
        ({"size": 0}, "damaged"),
        ({"sha256": "0" * 64}, "damaged"),
        ({"version": 9}, "update"),
        ({"version": 1}, "from an older version"),
        ({"normalization": [{"scheme": "clip"}]}, "damaged"),
    ],
    ids=lambda value: str(value),
)
def test_archive_whose_record_lies_installs_nothing(
    manifest: Manifest,
    found: store.Installed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    says: str,
) -> None:
    write_bundle(tmp_path / "b.zip", [found])
    rewritten(tmp_path / "b.zip", tmp_path / "lie.zip", **changes)
    folder = elsewhere(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match=says):
        import_bundle(tmp_path / "lie.zip", manifest)
    assert store.find(manifest.model(tiny.MISSING_ID)) is None
    assert not [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_bundle_with_another_version_than_the_manifest_s_is_refused(
    manifest: Manifest, found: store.Installed, tmp_path: Path
) -> None:
    own = store.installed(manifest.model(tiny.MODEL_ID), tmp_path)
    write_bundle(tmp_path / "b.zip", [own])
    rewritten(tmp_path / "b.zip", tmp_path / "old.zip", sha256="0" * 64)
    with pytest.raises(ModelError, match="does not have version"):
        import_bundle(tmp_path / "old.zip", manifest)


def test_damaged_cut_or_foreign_archives_are_one_sentence(
    manifest: Manifest, found: store.Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path / "b.zip", [found])
    whole = (tmp_path / "b.zip").read_bytes()
    elsewhere(monkeypatch, tmp_path)
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.zip").write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive:
        archive.writestr("holiday.jpg", "")
    for name, says in (("cut", "zip archive"), ("flipped", "damaged"), ("foreign", "no model that"), ("no", "No such")):
        with pytest.raises(ModelError, match=says):
            import_bundle(tmp_path / f"{name}.zip", manifest)
    with pytest.raises(Cancelled):
        import_bundle(tmp_path / "b.zip", manifest, cancelled=lambda: True)
    assert store.find(manifest.model(tiny.MISSING_ID)) is None


def test_damaged_model_is_not_bundled(manifest: Manifest, found: store.Installed, tmp_path: Path) -> None:
    found.path.write_bytes(b"damaged")
    with pytest.raises(ModelError, match="get the file again"):
        write_bundle(tmp_path / "b.zip", [found])
    assert not list(tmp_path.glob("*.zip"))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"<html><title>Sign in</title>", "is a web page"), (b"\1\2\3" * 99, "cannot be read as a zip archive")],
)
def test_what_is_not_an_archive_is_said_to_be_what_it_is(
    manifest: Manifest, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "models.zip").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        import_bundle(tmp_path / "models.zip", manifest)
