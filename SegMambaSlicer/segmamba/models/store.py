"""Find and verify checkpoints, without changing any file.

A model is searched for in three places: bundled with the software, in the user's models folder, and in a read-only
shared folder. In the latter two it has its own folder, named by its id, with the checkpoint and a record of its origin
(`segmamba.models.record`); a checkpoint under the manifest's name without a record was put there by hand.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

from segmamba.errors import ModelError
from segmamba.models.manifest import IntensityNormalization, ListedModel, Model
from segmamba.models.record import RECORD_NAME, read_record
from segmamba.models.resources import resource_root
from segmamba.models.settings import MODELS, SHARED_MODELS, setting, user_folder
from segmamba.utils.hashing import file_sha256

SOFTWARE, USER, SHARED = "software", "user", "shared"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Installed:
    """An installed checkpoint.

    Attributes
    ----------
    model : ListedModel
    path : Path
    place : str
        `SOFTWARE`, `USER` or `SHARED`.
    origin : str
        Its origin, in words.
    size, sha256
        Expected size in bytes and hash; None if unknown.
    source_sha256 : str or None
        SHA-256 of the file that it was converted from.
    normalization : tuple of IntensityNormalization or None
        The parameters that the user gave at the import.
    """

    model: ListedModel
    path: Path
    place: str
    origin: str
    size: int | None
    sha256: str | None
    source_sha256: str | None = None
    normalization: tuple[IntensityNormalization, ...] | None = None


def models_folder() -> Path:
    """Return the folder for checkpoints that are not bundled.

    It is that of the setting "models", by default ``segmamba/models`` in the user's data folder.

    Raises
    ------
    ModelError
        The settings file is damaged.
    """
    return Path(setting(MODELS).value or default_models_folder())


def default_models_folder() -> Path:
    """Return the models folder without a setting."""
    return user_folder("XDG_DATA_HOME", ".local", "share") / "models"


def shared_folder() -> Path | None:
    """Return the folder with checkpoints for all users of a computer or network, if the setting names one.

    Raises
    ------
    ModelError
        The settings file is damaged.
    """
    chosen = setting(SHARED_MODELS).value
    return Path(chosen) if chosen else None


def model_folder(model: ListedModel) -> Path:
    """Return the folder of a model in the user's models folder.

    Raises
    ------
    ModelError
        The manifest's id or file name is not a plain name, or the settings file is damaged.
    """
    for name in (model.id, model.file.name):
        if not PLAIN_NAME.fullmatch(name):
            raise ModelError(f"The manifest calls a model or its file '{name}': letters, digits, '.', '_', '-' only.")
    return models_folder() / model.id


def find(model: ListedModel, root: Path | None = None) -> Installed | None:
    """Return a model's checkpoint, or None if it is not installed.

    Parameters
    ----------
    model : ListedModel
    root : Path, optional
        Folder of the manifest, where paths of bundled files start. By default `resource_root`.

    Raises
    ------
    ModelError
        The record of an installed checkpoint, or the settings file, is damaged, or the manifest names a file outside
        its folder.
    """
    file = model.file
    if file.bundled is not None:
        path = _within(root or resource_root(), file.bundled)
        if os.path.isfile(path):
            return Installed(model, path, SOFTWARE, "comes with the software", file.size, file.sha256)
    folders = [(USER, model_folder(model))]
    shared = shared_folder()
    if shared is not None:
        folders.append((SHARED, shared / model.id))
    for place, folder in folders:
        found = in_folder(model, folder, place)
        if found is not None:
            return found
    return None


def _within(root: Path, bundled: str) -> Path:
    """Return the path of a bundled file below a folder; ModelError if it leads out of it."""
    parts = PurePosixPath(bundled).parts
    if not parts or bundled.startswith("/") or "\\" in bundled or ":" in bundled or ".." in parts:
        raise ModelError(f"The manifest's path '{bundled}' leads out of its folder: correct the manifest.")
    return root.joinpath(*parts)


def in_folder(model: ListedModel, folder: Path, place: str) -> Installed | None:
    """Return the checkpoint of a model in its folder in one of the places, or None."""
    record = read_record(folder / RECORD_NAME)
    if record is not None and os.path.isfile(folder / record.file):
        path = folder / record.file
        return Installed(
            model, path, place, record.origin, record.size, record.sha256, record.source_sha256, record.normalization
        )
    path = folder / model.file.name
    if os.path.isfile(path):
        return Installed(model, path, place, "added by hand", model.file.size, model.file.sha256)
    return None


def configured(model: Model, found: Installed) -> Model:
    """Return a model with the normalization parameters that the user gave at the import, where that was so."""
    if found.normalization is None:
        return model
    return replace(model, preprocessing=replace(model.preprocessing, normalization=found.normalization, estimated=None))


def checkpoint_location(model: ListedModel, root: Path | None = None) -> Path:
    """Return the path of a model's checkpoint, or where it belongs if it is missing or its record is damaged.

    ``root`` as for `find`.
    """
    with contextlib.suppress(ModelError):
        found = find(model, root)
        if found is not None:
            return found.path
    if model.file.bundled is not None:
        return _within(root or resource_root(), model.file.bundled)
    return model_folder(model) / model.file.name


def installed(model: ListedModel, root: Path | None = None) -> Installed:
    """Return a model's checkpoint; ``root`` as for `find`.

    Raises
    ------
    ModelError
        It is not installed; the message says how to get it.
    """
    found = find(model, root)
    if found is not None:
        return found
    path = checkpoint_location(model, root)
    if model.file.bundled is not None and not model.file.urls:
        raise ModelError(
            f"The checkpoint of '{model.id}' is missing from this installation ({path}): install SegMambaSlicer again."
        )
    if model.file.urls:
        advice = f"get it with 'segmamba models fetch {model.id}', or put the file at {path}."
    else:
        advice = f"bring it in with 'segmamba models import FILE', or put the file at {path}."
    note = f" {model.file.note}" if model.file.note else ""
    raise ModelError(f"The checkpoint of '{model.id}' is not installed: {advice}{note}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text.

    Raises
    ------
    ModelError
        The file cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): check the path of the checkpoint.") from error


def known_sha256(path: Path) -> str:
    """Do what `sha256` does, but do not read a file again that has not changed since the last call."""
    try:
        state = path.stat()
    except OSError:
        return sha256(path)
    return _sha256_in_state(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _sha256_in_state(path: Path, *_: int) -> str:
    return sha256(path)


def verify(found: Installed, read: Callable[[Path], str] = sha256) -> str:
    """Compare a checkpoint's size and SHA-256 with the expected ones, if known; return the SHA-256.

    ``read`` gives that of a file: `sha256`, or `known_sha256`.

    Raises
    ------
    ModelError
        The file is damaged, a different one or a different version, or cannot be read.
    """
    model, path = found.model, found.path
    if found.place == SOFTWARE:
        again = "install SegMambaSlicer again."
    else:
        again = f"get the file again ('segmamba models {'fetch ' + model.id if model.file.urls else 'import FILE'}')."
    digest = read(path)
    size = path.stat().st_size
    if found.size is not None and size != found.size:
        raise ModelError(f"{path} has {size} bytes and the checkpoint of '{model.id}' has {found.size}: {again}")
    if found.sha256 is not None and digest != found.sha256:
        raise ModelError(f"{path} is not the expected checkpoint of '{model.id}' (its SHA-256 differs): {again}")
    if model.file.sha256 not in (None, digest, found.source_sha256):
        raise ModelError(f"{path} is not version {model.version} of '{model.id}': {again}")
    return digest
