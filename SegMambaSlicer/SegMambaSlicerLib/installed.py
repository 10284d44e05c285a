"""What is installed of a model, and what can be done with it. Functions that take and give values; no Qt."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from segmamba.download import MIRROR_VARIABLE
from segmamba.errors import ModelError
from segmamba.manifest import Model
from segmamba.store import SOFTWARE, USER, Installed, find, model_folder


@dataclass(frozen=True)
class State:
    """A model and its checkpoint: None where there is none, and ``problem`` where its record is damaged."""

    model: Model
    found: Installed | None
    problem: str = ""

    @property
    def origin(self) -> str:
        """Where the file is from, in words, or why there is none."""
        if self.found is not None:
            return self.found.origin
        return "damaged" if self.problem else "not installed"

    @property
    def downloadable(self) -> bool:
        """Whether somebody said where to get it from."""
        bundled = self.found is not None and self.found.place == SOFTWARE
        return not bundled and bool(self.model.file.urls or os.environ.get(MIRROR_VARIABLE))

    @property
    def removable(self) -> bool:
        """Whether it is the user's own."""
        if self.found is not None:
            return self.found.place == USER
        return bool(self.problem) and model_folder(self.model).is_dir()


def look(model: Model, root: Path | None) -> State:
    """Return what is there of a model; ``root`` as for `segmamba.store.find`."""
    try:
        return State(model, find(model, root))
    except ModelError as error:
        return State(model, None, str(error))
