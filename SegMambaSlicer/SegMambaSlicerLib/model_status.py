"""What is installed of a model, and what can be done with it. Functions that take and give values; no Qt."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from slicer.i18n import tr as _

from segmamba.errors import ModelError
from segmamba.models.manifest import ListedModel
from segmamba.models.settings import MIRROR, setting
from segmamba.models.store import SOFTWARE, USER, Installed, find, model_folder


@dataclass(frozen=True)
class ModelStatus:
    """A model and its checkpoint: None where there is none.

    ``problem`` says what is damaged, and ``leftovers`` whether the user's own folder of the model is there then.
    ``mirror`` tells that a server is set that may have the file.
    """

    model: ListedModel
    found: Installed | None
    problem: str = ""
    leftovers: bool = False
    mirror: bool = False

    @property
    def origin(self) -> str:
        """Where the file is from, in words, or why there is none."""
        if self.found is not None:
            return self.found.origin
        return _("damaged") if self.problem else _("not installed")

    @property
    def downloadable(self) -> bool:
        """Whether somebody said where to get it from."""
        bundled = self.found is not None and self.found.place == SOFTWARE
        return not bundled and bool(self.model.file.urls or self.mirror)

    @property
    def offeredByAuthors(self) -> bool:
        """Whether it is to be got by hand, from a page of its authors."""
        return self.found is None and self.model.file.page is not None

    @property
    def removable(self) -> bool:
        """Whether it is the user's own."""
        if self.found is not None:
            return self.found.place == USER
        return self.leftovers


def modelStatus(model: ListedModel, root: Path | None) -> ModelStatus:
    """Return what is there of a model; ``root`` as for `segmamba.models.store.find`."""
    found, problem, mirror, leftovers = None, "", False, False
    try:
        found = find(model, root)
    except ModelError as error:
        problem = str(error)
    # A damaged settings file is said by `find`, and does not matter to what comes with the software.
    with contextlib.suppress(ModelError):
        mirror = bool(setting(MIRROR).value)
        leftovers = bool(problem) and model_folder(model).is_dir()
    return ModelStatus(model, found, problem, leftovers, mirror)
