"""Import a checkpoint file: identify its network, compare all weights, convert and record it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segmamba.errors import Cancelled, ModelError
from segmamba.models import store
from segmamba.models.install import PARTIAL, add, changing, check_space, file_name
from segmamba.models.manifest import IntensityNormalization, ListedModel, Manifest, Model
from segmamba.models.record import Record

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class NormalizationParameters:
    """Clip limits, mean and standard deviation of a network's input; in HU for CT.

    Raises
    ------
    ModelError
        They are not finite, or not in order.
    """

    low: float
    high: float
    mean: float
    std: float

    def __post_init__(self) -> None:
        values = (self.low, self.high, self.mean, self.std)
        if not all(map(math.isfinite, values)) or not self.low < self.high or self.std <= 0:
            raise ModelError(
                f"Clip {self.low:g} to {self.high:g}, mean {self.mean:g} and std {self.std:g} are not valid: the first "
                "limit must be below the second, and std above 0."
            )


def import_checkpoint(
    path: Path,
    manifest: Manifest,
    model_id: str | None = None,
    normalization: NormalizationParameters | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> store.Installed:
    """Import a ``.pt``, ``.pth`` or ``.safetensors`` file into the user's models folder. No code in it is run.

    Parameters
    ----------
    path : Path
    manifest : Manifest
        The known models.
    model_id : str, optional
        Id of its model; by default the one with its hash or its weights.
    normalization : NormalizationParameters, optional
        The right ones for a model with estimated parameters in the manifest. They are kept next to the checkpoint.
    progress : callable, optional
        Called with "read" or "convert" and the finished fraction of it.
    cancelled : callable, optional
        Called between the steps.

    Raises
    ------
    ModelError
        The file is damaged or fits no model; the message lists the differences. Nothing is changed.
    OutputError
        The models folder cannot be written or has too little room.
    Cancelled
    """
    from segmamba.networks.checkpoint import load_state_dict

    progress, cancelled = progress or (lambda stage, fraction: None), cancelled or (lambda: False)
    if model_id is not None:
        manifest.entry(model_id)
    progress("read", 0.0)
    state = load_state_dict(path)
    digest = store.sha256(path)
    progress("read", 1.0)
    model = _model_of(path, state, digest, manifest, model_id)
    _check_version(path, digest, model)
    channels = _channels(model, normalization)
    if cancelled():
        raise Cancelled()
    with changing(model, cancelled) as folder:
        check_space(folder, sum(value.numel() * value.element_size() for value in state.values()))
        part = folder / f"import{PARTIAL}"
        try:
            _convert(state, part, progress, cancelled)
            converted = store.sha256(part)
            name = file_name(model, ".safetensors", converted)
            origin = f"imported from {path.name}"
            add(folder, part, Record(name, part.stat().st_size, converted, origin, digest, channels))
        finally:
            part.unlink(missing_ok=True)
        found = store.in_folder(model, folder, store.USER)
    assert found is not None
    return found


def _convert(state: Mapping[str, Tensor], part: Path, progress: Progress, cancelled: Callable[[], bool]) -> None:
    from segmamba.networks.checkpoint import write_safetensors

    def written(fraction: float) -> None:
        progress("convert", fraction)
        if cancelled():
            raise Cancelled()

    write_safetensors(state, part, written)


def _model_of(
    path: Path, state: Mapping[str, Tensor], digest: str, manifest: Manifest, model_id: str | None
) -> ListedModel:
    """Return the model of the weights, by its id, its hash or its network."""
    from segmamba.networks.identify import differences, expected_shapes, identify

    shapes = {name: tuple(value.shape) for name, value in state.items()}
    identity = identify(shapes)
    seems = f"It seems to be {identity}." if identity else "It is not a network that this software knows."
    if model_id is not None:
        model = manifest.entry(model_id)
        found = differences(expected_shapes(model.architecture, model.arguments), shapes)
        if found:
            raise ModelError(f"{path} does not fit the model '{model_id}': weights {'; '.join(found)}. {seems}")
        return model
    known = [model for model in manifest.listed if model.file.sha256 == digest]
    fitting = known or [
        model
        for model in manifest.listed
        if not differences(expected_shapes(model.architecture, model.arguments), shapes)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ModelError(f"{path} fits {', '.join(model.id for model in fitting)}: say which it is with --as.")
    alike = [model for model in manifest.listed if identity and model.architecture == identity.architecture]
    details = "".join(
        f" Compared with '{model.id}', weights "
        f"{'; '.join(differences(expected_shapes(model.architecture, model.arguments), shapes))}."
        for model in alike[:1]
    )
    raise ModelError(f"{path} fits no model of the manifest: {seems[0].lower()}{seems[1:]}{details}")


def _check_version(path: Path, digest: str, model: ListedModel) -> None:
    if model.file.sha256 not in (None, digest):
        raise ModelError(
            f"{path} fits the network of '{model.id}' but is not its checkpoint of version {model.version} (the "
            "SHA-256 differs): get that one, or use yours with 'segmamba segment --checkpoint'."
        )


def estimated_channel(model: ListedModel) -> IntensityNormalization | None:
    """Return the channel with estimated normalization parameters, which an import may replace, or None."""
    if not isinstance(model, Model) or model.preprocessing.estimated is None:
        return None
    channels = model.preprocessing.normalization
    return channels[0] if len(channels) == 1 and channels[0].scheme == "clip" else None


def _channels(
    model: ListedModel, normalization: NormalizationParameters | None
) -> tuple[IntensityNormalization, ...] | None:
    if normalization is None:
        return None
    estimate = estimated_channel(model)
    if estimate is None:
        raise ModelError(f"'{model.id}' does not accept normalization parameters: leave out --clip, --mean and --std.")
    return (replace(estimate, **vars(normalization)),)
