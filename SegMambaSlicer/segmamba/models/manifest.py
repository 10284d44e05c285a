"""The list of models, read from ``weights_manifest.json``: all the software knows of a model is there.

What is known of one is in `segmamba.models.model`; those names can be imported from here, too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from segmamba.errors import ModelError
from segmamba.models.decode import decode_label, decode_model
from segmamba.models.model import (
    FineStage,
    InputChannel,
    IntensityNormalization,
    ListedModel,
    LogitMarginThreshold,
    Model,
    ModelFile,
    Postprocessing,
    Preprocessing,
    chosen_labels,
)
from segmamba.models.resources import MANIFEST_NAME, resource_root

__all__ = [
    "SCHEMA_VERSION",
    "FineStage",
    "InputChannel",
    "IntensityNormalization",
    "ListedModel",
    "LogitMarginThreshold",
    "Manifest",
    "Model",
    "ModelFile",
    "Postprocessing",
    "Preprocessing",
    "chosen_labels",
    "load_manifest",
    "parse_manifest",
]

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Manifest:
    """All models, the first of each task being that task's default.

    ``problems``: a sentence for each model that was left out because its description cannot be used.
    """

    listed: tuple[ListedModel, ...]
    problems: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[Model, ...]:
        """Those that this version can segment with."""
        return tuple(model for model in self.listed if isinstance(model, Model))

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(model.task for model in self.models))

    def model(self, model_id: str) -> Model:
        """Return the model of that id.

        Raises
        ------
        ModelError
            There is none, or this version cannot segment with it.
        """
        model = self.entry(model_id)
        if isinstance(model, Model):
            return model
        raise ModelError(f"'{model_id}' cannot be used: {model.unsupported}")

    def entry(self, model_id: str) -> ListedModel:
        """Return the entry of that id, also one that this version cannot segment with.

        Raises
        ------
        ModelError
            There is none.
        """
        for model in self.listed:
            if model.id == model_id:
                return model
        known = ", ".join(model.id for model in self.listed)
        raise ModelError(f"There is no model '{model_id}': choose one of {known}.")

    def default(self, task: str) -> Model:
        """Return the first model of a task.

        Raises
        ------
        ModelError
            There is no such task.
        """
        for model in self.models:
            if model.task == task:
                return model
        raise ModelError(f"There is no task '{task}': choose one of {', '.join(self.tasks)}.")

    def choose(self, task: str | None, model_id: str | None) -> Model:
        """Return the model of an id, or where that is None a task's default.

        Raises
        ------
        ModelError
            There is no such model or task, both are None, or the model is for another task.
        """
        if model_id is not None:
            model = self.model(model_id)
            if task not in (None, model.task):
                raise ModelError(f"The model '{model.id}' is for the task '{model.task}', not '{task}'.")
            return model
        if task is None:
            raise ModelError(f"No task is given: choose one of {', '.join(self.tasks)}, or a model.")
        return self.default(task)


def load_manifest(path: Path | None = None) -> Manifest:
    """Read the manifest; by default the one that comes with the software.

    Raises
    ------
    ModelError
        The file is not a manifest, or is one of another schema version.

    Examples
    --------
    >>> load_manifest().default("vertebrae").modalities
    ('CT', 'MR')
    """
    advice = "check the file" if path else "install SegMambaSlicer again"
    path = path or resource_root() / MANIFEST_NAME
    if not path.is_file():
        raise ModelError(f"The manifest {path} does not exist: check the path.")
    try:
        return parse_manifest(path.read_text(encoding="utf-8"), path, advice)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"The manifest {path} is damaged ({type(error).__name__}): {advice}.") from error


def parse_manifest(text: str, path: Path, advice: str = "check the file") -> Manifest:
    """Return the manifest in a text; ``path`` names it in errors. Raises ModelError as `load_manifest` does."""
    try:
        content = json.loads(text)
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            newer = version > SCHEMA_VERSION
            cure = "update SegMambaSlicer" if newer else "rename its keys as in the software's own manifest"
            raise ModelError(
                f"{path.name} has schema version {version} and this software reads {SCHEMA_VERSION}: {cure}."
            )
        label_sets = {name: tuple(map(decode_label, labels)) for name, labels in content["label_sets"].items()}
        return Manifest(tuple(decode_model(entry, label_sets) for entry in content["models"]))
    except (ValueError, KeyError, TypeError) as error:
        # Without the error's text: for a binary file it would be the whole file.
        raise ModelError(f"The manifest {path} is damaged ({type(error).__name__}): {advice}.") from error
