"""Where checkpoints are, and whether they are the right ones."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from segmamba.errors import ModelError
from segmamba.manifest import Model
from segmamba.resources import resource_root

ENVIRONMENT_VARIABLE = "SEGMAMBA_MODELS"


def models_folder() -> Path:
    """Return the folder for checkpoints that do not come with the software.

    The environment variable SEGMAMBA_MODELS names it; else it is ``segmamba/models`` in the user's data folder.
    """
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return Path(chosen)
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "segmamba" / "models"


def checkpoint_location(model: Model, root: Path | None = None) -> Path:
    """Return where a model's checkpoint belongs, whether or not it is there.

    Parameters
    ----------
    model : Model
    root : Path, optional
        What the path of a bundled file starts from: the folder of the manifest. By default `resource_root`.
    """
    if model.file.bundled is not None:
        return (root or resource_root()) / model.file.bundled
    return models_folder() / model.id / model.file.name


def checkpoint_path(model: Model, root: Path | None = None) -> Path:
    """Return the path of a model's checkpoint.

    Raises
    ------
    ModelError
        The file is not there; the sentence says where to put it.
    """
    path = checkpoint_location(model, root)
    if path.is_file():
        return path
    if model.file.bundled is not None:
        raise ModelError(
            f"The checkpoint of '{model.id}' is missing from this installation ({path}): install SegMambaSlicer again."
        )
    note = f" {model.file.note}" if model.file.note else ""
    raise ModelError(f"The checkpoint of '{model.id}' is not installed: put the file at {path}.{note}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text.

    Raises
    ------
    ModelError
        The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): check the path of the checkpoint.") from error
    return digest.hexdigest()


def verify(model: Model, path: Path) -> str:
    """Compare a checkpoint's size and SHA-256 with the manifest's, where it states them, and return the SHA-256.

    Raises
    ------
    ModelError
        The file is damaged, another one, or cannot be read.
    """
    digest = sha256(path)
    size = path.stat().st_size
    expected = model.file
    if expected.size is not None and size != expected.size:
        raise ModelError(
            f"{path} has {size} bytes and the checkpoint of '{model.id}' has {expected.size}: get the file again."
        )
    if expected.sha256 is not None and digest != expected.sha256:
        raise ModelError(
            f"{path} is not the checkpoint of '{model.id}' that the manifest names (its SHA-256 differs): "
            "get the file again."
        )
    return digest
