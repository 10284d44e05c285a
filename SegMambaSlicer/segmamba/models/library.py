"""All models that can be used: those of the software's manifest, and those that the user trained and imported.

A model of the user's own has a folder in the models folder, as every installed checkpoint has, with its description
beside it: ``model.json``, a manifest of this one model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from segmamba.errors import ModelError
from segmamba.models.manifest import ListedModel, Manifest, load_manifest, parse_manifest
from segmamba.models.store import models_folder, shared_folder

DESCRIPTION = "model.json"


def load_models(path: Path | None = None) -> Manifest:
    """Return all models that can be used, or only those of a manifest that is named.

    Models of the user's own come after those of the software. A description that cannot be read, or that has the id of
    another model, is left out and named in ``problems``, and so is a damaged settings file: neither keeps the other
    models from running.

    Raises
    ------
    ModelError
        The file is not a manifest, or is one of another schema version.

    Examples
    --------
    >>> load_models().default("vertebrae").modalities
    ('CT', 'MR')
    """
    manifest = load_manifest(path)
    if path is not None:
        return manifest
    try:
        descriptions = list(_descriptions())
    except ModelError as error:
        return replace(manifest, problems=(str(error),))
    for description in descriptions:
        try:
            model = described_model(read_description(description), description)
            manifest = with_model(manifest, model)
        except ModelError as error:
            manifest = replace(manifest, problems=(*manifest.problems, str(error)))
    return manifest


def read_description(path: Path) -> str:
    """Return the text of a description. Raises ModelError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({type(error).__name__}): import the model again.") from error


def described_model(text: str, path: Path) -> ListedModel:
    """Return the model that a description describes; ``path`` names it in errors.

    Raises
    ------
    ModelError
        It is damaged, from another version, or does not describe exactly one model.
    """
    listed = parse_manifest(text, path).listed
    if len(listed) != 1 or listed[0].file.bundled is not None:
        raise ModelError(f"{path} is damaged (it must describe one model): import the model again.")
    return listed[0]


def with_model(manifest: Manifest, model: ListedModel) -> Manifest:
    """Return a manifest with one more model. Raises ModelError where it has another one of that id."""
    if any(known.id == model.id for known in manifest.listed):
        raise ModelError(f"There are two models '{model.id}': import yours under another name with --as.")
    return replace(manifest, listed=(*manifest.listed, model))


def _descriptions() -> Iterator[Path]:
    """Yield the descriptions in the user's and the shared models folder; a model in both is the user's."""
    seen: set[str] = set()
    for root in filter(None, (models_folder(), shared_folder())):
        for path in sorted(root.glob(f"*/{DESCRIPTION}")):
            if os.path.isfile(path) and path.parent.name not in seen:
                seen.add(path.parent.name)
                yield path
