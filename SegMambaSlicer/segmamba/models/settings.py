"""The user's settings for models, folders and download server, from the environment or from a settings file.

The file is JSON, for example ``{"models": "/data/models", "mirror": "https://models.hospital.example"}``. An
environment variable takes precedence.
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
from segmamba.utils.atomic import replacing

MODELS, SHARED_MODELS, MIRROR = "models", "shared_models", "mirror"
# The environment variable of each setting.
VARIABLES = {MODELS: "SEGMAMBA_MODELS", SHARED_MODELS: "SEGMAMBA_SHARED_MODELS", MIRROR: "SEGMAMBA_MIRROR"}
FILE_NAME = "settings.json"
ADDRESS = re.compile(r"https?://[^/\s]+\S*$")


@dataclass(frozen=True)
class Setting:
    """A setting: its value, and its source in words; None and an empty text if it is not set.

    ``fixed``: it comes from an environment variable, so that the settings file is ignored.
    """

    value: str | None = None
    source: str = ""
    fixed: bool = False


def settings_file() -> Path:
    """Return the path of the settings file, whether it exists or not.

    It is ``segmamba/settings.json`` in ``$XDG_CONFIG_HOME`` or ``~/.config``, on macOS in
    ``~/Library/Application Support``, on Windows in ``%LOCALAPPDATA%``.
    """
    return user_folder("XDG_CONFIG_HOME", ".config") / FILE_NAME


def user_folder(variable: str, *otherwise: str) -> Path:
    """Return this software's folder in the user's folders.

    Parameters
    ----------
    variable : str
        Environment variable with the parent folder on Linux.
    *otherwise : str
        Path of the parent folder in the home folder if the variable is not set.
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
    """Return the content of a settings file; nothing if it does not exist or this user has no access.

    Raises
    ------
    ModelError
        It cannot be read, or a setting is not valid.
    """
    if not os.path.isfile(path):
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"The settings file {path} cannot be read ({error}): correct or remove it.") from error
    if not isinstance(content, dict):
        raise ModelError(f"The settings file {path} is not a JSON object: correct or remove it.")
    for name, value in content.items():
        problem = _problem(name, value)
        if problem:
            raise ModelError(f"The settings file {path}: {problem}")
    return content


def write_setting(name: str, value: str) -> None:
    """Write a setting to the settings file; an empty value removes it.

    Raises
    ------
    ModelError
        The value is not valid, or the settings file is damaged.
    OutputError
        The settings file cannot be written.
    """
    problem = _problem(name, value)
    if problem:
        raise ModelError(problem)
    path = settings_file()
    content = {**read_settings(path), name: value}
    kept = {key: text for key, text in content.items() if text}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"The settings file {path} cannot be written ({error.strerror or error}): ask for permission to "
            f"write there, or set {VARIABLES[name]} instead."
        ) from error


def _problem(name: str, value: object) -> str:
    """Return a sentence why a setting is not valid, or an empty text."""
    if name not in VARIABLES:
        return f"There is no setting '{name}': choose from {', '.join(VARIABLES)}."
    if not isinstance(value, str):
        return f"'{name}' must be a text in quotation marks: correct it."
    if not value:
        return ""
    if name == MIRROR:
        if not ADDRESS.match(value):
            return f"'{value}' is not the address of a server: it must begin with https:// or http://."
    elif not Path(value).is_absolute():
        return f"'{value}' must be an absolute path: begin it at the root or with a drive."
    return ""
