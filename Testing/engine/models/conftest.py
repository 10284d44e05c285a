"""A store of models of its own, and a server of one, for each test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.file_server import FileServer, Served, file_server
from helpers.served_model import CONTENT, write_manifest

from segmamba.models import download
from segmamba.models.manifest import Model, load_manifest


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of installed models; there is no shared one."""
    monkeypatch.delenv("SEGMAMBA_SHARED_MODELS", raising=False)
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of models of its own, no proxy and no mirror."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "SEGMAMBA_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("SEGMAMBA_SHARED_MODELS", raising=False)
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "store"))
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A server of the file of a model, at two addresses."""
    with file_server() as server:
        server.files["/a"] = Served(CONTENT)
        server.files["/b"] = Served(CONTENT)
        yield server


@pytest.fixture
def a_model(server: FileServer, tmp_path: Path) -> Model:
    """A model with the two addresses of the server."""
    return load_manifest(write_manifest(tmp_path, f"{server.url}/a", f"{server.url}/b")).models[0]
