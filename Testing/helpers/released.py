"""The command that makes a release's assets, and a server that has them where GitHub has those of a release."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from helpers.file_server import FileServer, Served
from helpers.repository import REPOSITORY

PROJECT, TAG = "/SegMambaSlicer/SlicerSegMambaSlicer", "v9.8.7"
DOWNLOADS = f"{PROJECT}/releases/download/{TAG}"
# Where GitHub's own addresses lead.
STORE = "/release-assets"


def command() -> ModuleType:
    """Return ``release/assets.py`` as a module."""
    path = REPOSITORY / "release" / "assets.py"
    found = importlib.util.spec_from_file_location("release_assets", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def release(manifest: Path, out: Path, server: FileServer, *more: str) -> Path:
    """Make a release of a manifest's models, put it on a server, and return the assets' folder."""
    arguments = [str(out), "--tag", TAG, "--repository", server.url + PROJECT, "--manifest", str(manifest), *more]
    assert command().main(arguments) == 0
    for asset in out.iterdir():
        server.files[f"{DOWNLOADS}/{asset.name}"] = Served(redirect=f"{server.url}{STORE}/{asset.name}?token=1")
        server.files[f"{STORE}/{asset.name}?token=1"] = Served(asset.read_bytes())
    return out


def without_models(assets: Path, place: Path) -> Path:
    """Make an installation that has a release's manifest and no checkpoint; return that manifest's path."""
    place.mkdir()
    manifest = place / "weights_manifest.json"
    manifest.write_bytes((assets / "weights_manifest.json").read_bytes())
    return manifest
