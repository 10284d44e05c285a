"""Entries of ``weights_manifest.json`` as values; `segmamba.models.manifest` reads the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segmamba.errors import ModelError
from segmamba.labels import Code, Label
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
)


def _code(parts: list[str]) -> Code:
    return Code(*parts)


def decode_label(entry: Mapping[str, Any]) -> Label:
    """Return a structure of a label set; KeyError, TypeError or ValueError if it is damaged."""
    red, green, blue = entry["color"]
    return Label(
        value=entry["value"],
        name=entry["name"],
        color=(red, green, blue),
        category=_code(entry["category"]),
        type=_code(entry["type"]),
        region=_code(entry["region"]) if entry.get("region") else None,
    )


def encode_label(label: Label) -> dict[str, Any]:
    """Return the entry of a structure that `decode_label` reads."""
    codes = {"category": label.category, "type": label.type, "region": label.region}
    return {
        "value": label.value,
        "name": label.name,
        "color": list(label.color),
        **{name: [code.scheme, code.value, code.meaning] if code else None for name, code in codes.items()},
    }


def _triple(values: list[Any]) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third


def decode_model(entry: Mapping[str, Any], label_sets: Mapping[str, tuple[Label, ...]]) -> ListedModel:
    """Return the model of an entry, a `Model` if this version can segment with it.

    Raises
    ------
    ModelError
        The entry asks for what there is not.
    KeyError, TypeError, ValueError
        It is damaged.
    """
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
    channels = tuple(InputChannel(**channel) for channel in entry.get("input_channels", ()))
    model = Model(
        **vars(listed),
        # Levels are counted along the column: also those that no channel is for.
        labels=tuple(label for label in label_sets[entry["label_set"]] if label.value in values or entry.get("fine")),
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
        input_channels=channels,
        has_regions=entry.get("output", "classes") == "regions",
        regions={name: tuple(parts) for name, parts in entry.get("regions", {}).items()},
    )
    _check_channels(model)
    return model


def _check_channels(model: Model) -> None:
    """Refuse an entry of several volumes, or of regions, that does not fit together.

    Raises
    ------
    ModelError
    """
    names = [channel.name.casefold() for channel in model.input_channels]
    both = model.fine is not None or model.mr_preprocessing is not None
    if names and (both or len(set(names)) < len(names) or len(model.preprocessing.normalization) != len(names)):
        raise ModelError(
            f"The model '{model.id}' takes several volumes: their names must differ, each needs one normalization, and "
            "a second stage or an MR preprocessing is not supported. Correct its manifest entry."
        )
    if model.has_regions and (0 in model.channel_values or model.resamples_logits or model.margin_threshold):
        raise ModelError(
            f"The model '{model.id}' has regions together with a background channel, resampled logits or a margin "
            "threshold, which is not supported: correct its manifest entry."
        )
    order = zip(model.channel_values, model.regions.values(), strict=False)
    if model.regions and (len(model.regions) != len(model.channel_values) or not all(v in part for v, part in order)):
        raise ModelError(
            f"The model '{model.id}' has 'regions' that are not those of its channels: give each, in their order, the "
            "label values that it is made of, its own among them."
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
