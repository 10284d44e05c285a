"""Where models are kept and where they come from: the user's choices, from the environment or from a settings file.

The file is JSON, for example ``{"models": "/data/models", "mirror": "https://models.hospital.example"}``. An
environment variable wins over it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segmamba.errors import ModelError, OutputError

MODELS, SHARED_MODELS, MIRROR = "models", "shared_models", "mirror"
# The environment variable of each setting.
VARIABLES = {MODELS: "SEGMAMBA_MODELS", SHARED_MODELS: "SEGMAMBA_SHARED_MODELS", MIRROR: "SEGMAMBA_MIRROR"}
FILE_NAME = "settings.json"
ADDRESS = re.compile(r"https?://[^/\s]+\S*$")


@dataclass(frozen=True)
class Setting:
    """What is set: its value, and in words where it was set. ``value`` is None, and ``source`` empty, where nothing is.

    ``fixed`` says that an environment variable gives it, so that the settings file has no say.
    """

    value: str | None = None
    source: str = ""
    fixed: bool = False


def settings_file() -> Path:
    """Return where the settings file belongs, whether it is there or not.

    That is ``segmamba/settings.json`` in ``$XDG_CONFIG_HOME`` or ``~/.config``, on macOS in
    ``~/Library/Application Support``, on Windows in ``%LOCALAPPDATA%``.
    """
    return user_folder("XDG_CONFIG_HOME", ".config") / FILE_NAME


def user_folder(variable: str, *otherwise: str) -> Path:
    """Return this software's folder among those of the user.

    Parameters
    ----------
    variable : str
        Names the folder above it on Linux.
    *otherwise : str
        Parts of that folder's path below the home folder, where the variable is not set.
    """
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get(variable) or home.joinpath(*otherwise))
    return base / "segmamba"


def setting(name: str) -> Setting:
    """Return a setting, one of `VARIABLES`.

    Raises
    ------
    ModelError
        The settings file is damaged.
    """
    variable = VARIABLES[name]
    chosen = os.environ.get(variable)
    if chosen:
        return Setting(chosen, f"the environment variable {variable}", True)
    path = settings_file()
    value = read_settings(path).get(name)
    return Setting(value, f"the settings file {path}") if value else Setting()


def read_settings(path: Path) -> Mapping[str, str]:
    """Return what a settings file says; nothing where there is none, or none that this user can reach.

    Raises
    ------
    ModelError
        It cannot be read, or says what it cannot say.
    """
    if not os.path.isfile(path):
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"The settings file {path} cannot be read ({error}): correct or remove it.") from error
    if not isinstance(content, dict):
        raise ModelError(f"The settings file {path} is no JSON object: correct or remove it.")
    for name, value in content.items():
        problem = _problem(name, value)
        if problem:
            raise ModelError(f"The settings file {path}: {problem}")
    return content


def write_setting(name: str, value: str) -> None:
    """Keep a setting in the settings file; an empty value takes it out again.

    Raises
    ------
    ModelError
        The value cannot be right, or the settings file is damaged.
    OutputError
        The settings file cannot be written.
    """
    problem = _problem(name, value)
    if problem:
        raise ModelError(problem)
    path = settings_file()
    content = {**read_settings(path), name: value}
    kept = {key: text for key, text in content.items() if text}
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"The settings file {path} cannot be written ({error.strerror or error}): ask for the right to write "
            f"there, or set {VARIABLES[name]} instead."
        ) from error


def _problem(name: str, value: object) -> str:
    """Return in one sentence why a setting cannot be right, or an empty text."""
    if name not in VARIABLES:
        return f"There is no setting '{name}': choose from {', '.join(VARIABLES)}."
    if not isinstance(value, str):
        return f"'{name}' has to be a text in quotation marks: correct it."
    if not value:
        return ""
    if name == MIRROR:
        if not ADDRESS.match(value):
            return f"'{value}' is no address of a server: give one that begins with https:// or http://."
    elif not Path(value).is_absolute():
        return f"'{value}' is no whole path of a folder: give one that begins at the root or with a drive."
    return ""
