"""Take over a model that the user trained: its weights and its description go into the models folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segmamba.errors import Cancelled, ModelError
from segmamba.models import store
from segmamba.models.install import PARTIAL, add, changing, check_space, file_name
from segmamba.models.library import DESCRIPTION, described_model, read_description, with_model
from segmamba.models.manifest import ListedModel, Manifest
from segmamba.models.record import RECORD_NAME, Record, read_record

# Where a training leaves its model, seen from what the user may name: the folder itself, a fold, or a whole run.
PLACES = ("", "model/", "fold-*/model/")


def find_description(path: Path) -> Path | None:
    """Return the description of a trained model: of the file itself, of its folder, or of the folder of a run.

    Raises
    ------
    ModelError
        The run has several models; they are named.
    """
    if path.name == DESCRIPTION and path.is_file():
        return path
    for place in PLACES:
        found = sorted(path.glob(place + DESCRIPTION))
        if len(found) > 1:
            names = ", ".join(str(item.parent.parent) for item in found)
            raise ModelError(f"{path} has several trained models: choose one of {names}.")
        if found:
            return found[0]
    return None


def import_own(
    path: Path,
    manifest: Manifest,
    name: str | None = None,
    even_if_worse: bool = False,
    cancelled: Callable[[], bool] | None = None,
) -> store.Installed:
    """Copy a trained model into the user's models folder.

    Parameters
    ----------
    path : Path
        From `find_description`; the weights lie beside it.
    manifest : Manifest
        The known models.
    name : str, optional
        Its id in the list, in place of the one in its description.
    even_if_worse : bool
        Take it also where it does worse than the model that it was trained from.
    cancelled : callable, optional
        Called between the steps.

    Raises
    ------
    ModelError
        Description or weights are damaged, the name is taken, or the model does worse than the one it came from.
    OutputError
        The models folder cannot be written or has too little room.
    Cancelled
    """
    content = _named(path, name)
    entry = content["models"][0]
    text = json.dumps(content, indent=2) + "\n"
    model = described_model(text, path)
    weights = path.parent / model.file.name
    if not weights.is_file():
        raise ModelError(f"The weights {weights} are missing: copy them beside {path}.")
    _check_better(entry, even_if_worse)
    digest = store.sha256(weights)
    if digest != model.file.sha256:
        raise ModelError(f"{weights} is not the file that {path.name} describes (its SHA-256 differs): copy it again.")
    with changing(model, cancelled) as folder:
        check_space(folder, weights.stat().st_size)
        part = folder / f"import{PARTIAL}"
        try:
            shutil.copyfile(weights, part)
            if cancelled is not None and cancelled():
                raise Cancelled()
            record = Record(file_name(model, weights.suffix, digest), part.stat().st_size, digest, entry["origin"])
            add_own(folder, model, manifest, part, record, text)
        finally:
            part.unlink(missing_ok=True)
        found = store.in_folder(model, folder, store.USER)
    assert found is not None
    return found


def _named(path: Path, name: str | None) -> dict[str, Any]:
    """Return the content of a description, of the model by another name if one is given."""
    text = read_description(path)
    described_model(text, path)
    content: dict[str, Any] = json.loads(text)
    if name is not None:
        if not store.PLAIN_NAME.fullmatch(name):
            raise ModelError(f"'{name}' cannot be a model's name: letters, digits, '.', '_', '-' only.")
        entry = content["models"][0]
        # A model of its own kind is a task of its own, too.
        entry["task"] = name if entry["task"] == entry["id"] else entry["task"]
        entry["id"] = name
    return content


def add_own(folder: Path, model: ListedModel, manifest: Manifest, part: Path, record: Record, description: str) -> None:
    """Make a verified file the user's own model. Call this within `segmamba.models.install.changing`.

    Raises
    ------
    ModelError
        Another model has its name, one of the software or one of the user's own with other weights.
    """
    previous = read_record(folder / RECORD_NAME)
    # Without a record, a description is what an interrupted import of this model left.
    if previous is None and not (folder / DESCRIPTION).is_file():
        with_model(manifest, model)
    elif previous is not None and previous.sha256 != record.sha256:
        raise ModelError(
            f"'{model.id}' is already there with other weights: give this one another name with --as, or remove that "
            f"one first ('segmamba models remove {model.id}')."
        )
    (folder / DESCRIPTION).write_text(description, encoding="utf-8")
    add(folder, part, record)


def _check_better(entry: dict[str, Any], even_if_worse: bool) -> None:
    compared = entry.get("compared")
    # To three decimals, as they are told.
    if compared and round(compared["after"], 3) < round(compared["before"], 3) and not even_if_worse:
        raise ModelError(
            f"'{entry['id']}' does worse on its validation cases than '{compared['model']}', which it was trained from "
            f"(Dice {compared['after']:.3f}, before {compared['before']:.3f}): train it for longer or on more cases, "
            "or import it all the same with --even-if-worse."
        )
