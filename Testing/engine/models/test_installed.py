"""Models that are installed: in a shared folder, removed, and with records that are damaged."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from helpers.file_server import FileServer
from helpers.served_model import NAME, folder_of

from segmamba.cli.main import main
from segmamba.errors import ModelError
from segmamba.models import install as installing
from segmamba.models import store
from segmamba.models.download import fetch
from segmamba.models.manifest import Model
from segmamba.models.record import RECORD_NAME, read_record

pytestmark = pytest.mark.usefixtures("surroundings")


def test_shared_store_is_used_as_it_is_and_never_changed(
    a_model: Model, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    fetch(a_model)
    shared = tmp_path / "shared"
    store.models_folder().rename(shared)
    monkeypatch.setenv("SEGMAMBA_SHARED_MODELS", str(shared))
    for path in (shared, shared / a_model.id):
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        found = fetch(a_model)
        assert (found.place, found.path.parent.parent) == (store.SHARED, shared)
        assert len(server.requests) == 1
        with pytest.raises(ModelError, match="shared folder stay"):
            installing.remove(a_model)
        manifest = str(tmp_path / "manifest.json")
        assert main(["models", "path", a_model.id, "--manifest", manifest]) == 0
        assert capsys.readouterr().out.strip() == str(shared / a_model.id / NAME)
    finally:
        for path in (shared, shared / a_model.id):
            path.chmod(0o700)


def test_removed_model_leaves_nothing_and_says_how_much_it_was(a_model: Model, tmp_path: Path, capsys) -> None:
    fetch(a_model)
    manifest = str(tmp_path / "manifest.json")
    assert main(["models", "--manifest", manifest, "remove", a_model.id]) == 0
    assert "0.3 MB" in capsys.readouterr().out
    assert not folder_of(a_model).exists()
    assert main(["models", "--manifest", manifest, "remove", a_model.id]) == ModelError.exit_code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 2}',
        '{"version": 3}',
        '{"version": 2, "file": "../x", "size": 1, "sha256": "", "origin": ""}',
        '{"version": 1, "file": "x", "size": 1, "sha256": "", "origin": "", "source_sha256": null, "channels": null}',
    ],
)
def test_damaged_newer_or_older_record_is_a_sentence_and_fetch_mends_it(a_model: Model, text: str) -> None:
    fetch(a_model)
    record = folder_of(a_model) / RECORD_NAME
    record.write_text(text)
    with pytest.raises(
        ModelError, match="damaged|update|older version of SegMambaSlicer: import or fetch the model again"
    ):
        store.find(a_model)
    fetch(a_model)
    assert read_record(record) is not None


def test_checkpoint_that_is_known_is_read_again_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def file_sha256(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(store, "file_sha256", file_sha256)
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    first = store.known_sha256(path)
    assert store.known_sha256(path) == first == hashlib.sha256(b"first").hexdigest()
    assert len(read) == 1
    # Of the same size, in the same place, and in a new file under the same name.
    path.write_bytes(b"other")
    os.utime(path, ns=(0, 0))
    assert store.known_sha256(path) == hashlib.sha256(b"other").hexdigest()
    (tmp_path / "new").write_bytes(b"third")
    os.utime(tmp_path / "new", ns=(0, 0))
    os.replace(tmp_path / "new", path)
    assert store.known_sha256(path) == hashlib.sha256(b"third").hexdigest()
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        store.known_sha256(path)
