"""The list of models, read from ``weights_manifest.json``: all the software knows of a model is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from segmamba.errors import ModelError
from segmamba.labels import Code, Label
from segmamba.models.resources import MANIFEST_NAME, resource_root

SCHEMA_VERSION = 2


class Postprocessing(Enum):
    """The rules of `segmamba.inference.postprocessing`, by their names in the manifest."""

    NONE = "none"
    LARGEST_COLUMN = "largest_column"
    BOWEL = "bowel"


@dataclass(frozen=True)
class IntensityNormalization:
    """How one input channel of a network is made from the intensities: clip, subtract ``mean``, divide by ``std``.

    ``scheme`` "clip": ``low`` and ``high`` are intensities (HU for CT).
    ``scheme`` "percentile": ``low`` and ``high`` are percentiles of the non-zero voxels, and mean and standard
    deviation are those of the clipped volume (``mean`` and ``std`` are None).
    ``scheme`` "relative": all four are in units of the mean of the voxels that are brighter than the volume's mean.
    """

    scheme: str
    low: float
    high: float
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True)
class Preprocessing:
    """The grid and the intensities that a network was trained on.

    Attributes
    ----------
    orientation : str
        Directions in which the array's x, y and z indices grow, e.g. "LPS".
    spacing : tuple of float
        Millimetres along x, y, z.
    interpolation : str
        "linear" (with a gaussian against aliasing) or "cubic" (none).
    crop_threshold : float or None
        The volume is cropped to the box of voxels above this intensity (air is cut off).
    fill_value : float
        Intensity outside the volume.
    normalization : tuple of IntensityNormalization
        One for each input channel.
    estimated : str or None
        Which of these values are estimates, in words that are shown with each result.
    crop_nonzero : bool
        The volume is cropped to the box of voxels that are not zero.
    pad_value : float or None
        What windows that reach beyond the volume hold there, after normalization; None stands for ``fill_value``.
    """

    orientation: str
    spacing: tuple[float, float, float]
    interpolation: str
    crop_threshold: float | None
    fill_value: float
    normalization: tuple[IntensityNormalization, ...]
    estimated: str | None = None
    crop_nonzero: bool = False
    pad_value: float | None = None


@dataclass(frozen=True)
class FineStage:
    """The second stage of a model with two.

    Attributes
    ----------
    spacing : tuple of float
        Millimetres along x, y, z.
    patch : tuple of int
        Window in voxels along z, y, x.
    overlap : float
        Part of a window that its neighbour covers.
    refine : tuple of str
        Steps of `segmamba.spine.refine` that are applied where refinement is on.
    """

    spacing: tuple[float, float, float]
    patch: tuple[int, int, int]
    overlap: float
    refine: tuple[str, ...]


@dataclass(frozen=True)
class LogitMarginThreshold:
    """How sure a network must be of a structure; see `segmamba.inference.hysteresis`.

    Attributes
    ----------
    label : int
        Label value of the structure.
    high : float
        A connected component of it counts only if its logit exceeds all others by this much somewhere.
    """

    label: int
    high: float


@dataclass(frozen=True)
class ModelFile:
    """One file of a model. ``size`` (bytes) and ``sha256`` are None where they are not known.

    ``urls`` are tried in this order; a file with any has a size and a SHA-256.
    """

    name: str
    size: int | None
    sha256: str | None
    bundled: str | None
    note: str | None = None
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class ListedModel:
    """One entry of the manifest, as far as its checkpoint is concerned. ``entry`` is the whole entry as read."""

    id: str
    version: str
    title: str
    task: str
    architecture: str
    arguments: Mapping[str, Any]
    modalities: tuple[str, ...]
    file: ModelFile
    entry: Mapping[str, Any]

    @property
    def unsupported(self) -> str | None:
        """Why this version can keep the checkpoint but not segment with it, as a clause; None for a `Model`."""
        return self.entry.get("unsupported")


@dataclass(frozen=True)
class Model(ListedModel):
    """An entry that this version can segment with.

    ``flip_axes``: what test-time augmentation flips along, 0, 1, 2 for z, y, x.
    ``resamples_logits``: logits are resampled to the volume, not probabilities.
    ``margin_threshold``: part of the post-processing, as ``postprocessing``.
    """

    labels: tuple[Label, ...]
    channel_values: tuple[int, ...]
    preprocessing: Preprocessing
    patch: tuple[int, int, int]
    overlap: float
    flip_axes: tuple[int, ...]
    postprocessing: Postprocessing
    fine: FineStage | None = None
    mr_preprocessing: Preprocessing | None = None
    resamples_logits: bool = False
    margin_threshold: LogitMarginThreshold | None = None

    @property
    def caution(self) -> str | None:
        """What has to be said with each result, as a clause."""
        return self.entry.get("caution")

    @property
    def refinement(self) -> tuple[str, ...]:
        """Steps of `segmamba.spine.refine` that its masks can be refined by."""
        return self.fine.refine if self.fine is not None else ()


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
        label_sets = {name: tuple(map(_label, labels)) for name, labels in content["label_sets"].items()}
        return Manifest(tuple(_listed(entry, label_sets) for entry in content["models"]))
    except (ValueError, KeyError, TypeError) as error:
        # Without the error's text: for a binary file it would be the whole file.
        raise ModelError(f"The manifest {path} is damaged ({type(error).__name__}): {advice}.") from error


def chosen_labels(model: Model, structures: Sequence[str] | None) -> tuple[Label, ...]:
    """Return the labels of the structures asked for; all of the model's for None.

    Parameters
    ----------
    model : Model
    structures : sequence of str or None
        Names ("L1 vertebra"), first words of names ("L1") or values ("20"), in any case.

    Raises
    ------
    ModelError
        The model knows no such structure, or none is named.

    Examples
    --------
    >>> model = load_manifest().default("vertebrae")
    >>> [label.name for label in chosen_labels(model, ["l1", "L2 vertebra", "26"])]
    ['L1 vertebra', 'L2 vertebra', 'Sacrum']
    """
    if structures is None:
        return model.labels
    by_key = {
        key.casefold(): label for label in model.labels for key in (label.name.split()[0], label.name, str(label.value))
    }
    names = [name.strip() for name in structures if name.strip()]
    unknown = [name for name in names if name.casefold() not in by_key]
    if unknown or not names:
        known = ", ".join(label.name for label in model.labels)
        raise ModelError(f"The model '{model.id}' has no structure '{', '.join(unknown)}': choose from {known}.")
    chosen = {by_key[name.casefold()].value for name in names}
    return tuple(label for label in model.labels if label.value in chosen)


def _code(parts: list[str]) -> Code:
    return Code(*parts)


def _label(entry: Mapping[str, Any]) -> Label:
    red, green, blue = entry["color"]
    return Label(
        value=entry["value"],
        name=entry["name"],
        color=(red, green, blue),
        category=_code(entry["category"]),
        type=_code(entry["type"]),
        region=_code(entry["region"]) if entry.get("region") else None,
    )


def _triple(values: list[Any]) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third


def _listed(entry: Mapping[str, Any], label_sets: Mapping[str, tuple[Label, ...]]) -> ListedModel:
    file = entry["file"]
    listed = ListedModel(
        id=entry["id"],
        version=entry["version"],
        title=entry["title"],
        task=entry["task"],
        architecture=entry["architecture"],
        arguments=entry["arguments"],
        modalities=tuple(entry["modalities"]),
        file=ModelFile(**{**file, "urls": tuple(file.get("urls", ()))}),
        entry=entry,
    )
    return listed if listed.unsupported else _model(listed, label_sets)


def _model(listed: ListedModel, label_sets: Mapping[str, tuple[Label, ...]]) -> Model:
    entry = listed.entry
    values = tuple(entry["channel_values"])
    threshold = LogitMarginThreshold(**entry["margin_threshold"]) if entry.get("margin_threshold") else None
    if threshold and (threshold.label not in values or entry.get("fine") or entry.get("resample") == "logits"):
        raise ModelError(
            f"The model '{listed.id}' has a margin threshold for a label that it does not give, or together with two "
            "stages or resampled logits, which is not supported: correct its manifest entry."
        )
    return Model(
        **vars(listed),
        labels=tuple(label for label in label_sets[entry["label_set"]] if label.value in values),
        channel_values=values,
        preprocessing=_preprocessing(entry["preprocessing"]),
        patch=_triple(entry["patch"]),
        overlap=entry["overlap"],
        flip_axes=tuple(entry["flip_axes"]),
        postprocessing=_postprocessing(listed, entry["postprocessing"]),
        fine=_fine(entry["fine"]) if entry.get("fine") else None,
        mr_preprocessing=_preprocessing(entry["preprocessing_mr"]) if entry.get("preprocessing_mr") else None,
        resamples_logits=entry.get("resample") == "logits",
        margin_threshold=threshold,
    )


def _postprocessing(listed: ListedModel, name: str) -> Postprocessing:
    try:
        return Postprocessing(name)
    except ValueError as error:
        known = ", ".join(rule.value for rule in Postprocessing)
        raise ModelError(
            f"The model '{listed.id}' asks for the postprocessing '{name}' and there are {known}: correct its "
            "manifest entry."
        ) from error


def _preprocessing(entry: Mapping[str, Any]) -> Preprocessing:
    return Preprocessing(
        orientation=entry["orientation"],
        spacing=_triple(entry["spacing_mm"]),
        interpolation=entry["interpolation"],
        crop_threshold=entry["crop_threshold"],
        fill_value=entry["fill_value"],
        normalization=tuple(IntensityNormalization(**channel) for channel in entry["normalization"]),
        estimated=entry["estimated"],
        crop_nonzero=entry.get("crop_nonzero", False),
        pad_value=entry.get("pad_value"),
    )


def _fine(entry: Mapping[str, Any]) -> FineStage:
    return FineStage(_triple(entry["spacing_mm"]), _triple(entry["patch"]), entry["overlap"], tuple(entry["refine"]))
