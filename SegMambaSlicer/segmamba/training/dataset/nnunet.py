"""Data sets with a ``dataset.json``: nnU-Net v2 and Medical Segmentation Decathlon."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segmamba.errors import InputError
from segmamba.training.dataset.layout import Case, Dataset, images_in, stem
from segmamba.training.dataset.partial import KEY, read_drawn
from segmamba.utils.words import counted

DESCRIPTION = "dataset.json"
IGNORE = "ignore"
BACKGROUND = "background"
# nnU-Net ends the name of each channel's file so.
CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
# A person in the names that BIDS and the panel give; else a case is a person.
PERSON = re.compile(r"sub-[A-Za-z0-9]+")


def read_described(folder: Path) -> Dataset:
    """Read a data set with a ``dataset.json``, its cases from ``imagesTr`` and ``labelsTr``.

    nnU-Net v2: ``channel_names``, and ``labels`` by name, or regions (lists of values) with ``regions_class_order``;
    images ``CASE_0000``, ``CASE_0001``, ... Decathlon: ``modality`` and ``labels`` by value; images ``CASE``, with
    several channels in four dimensions.
    `segmamba.training.dataset.partial` says how a case is named in which only some structures were drawn.

    Raises
    ------
    InputError
        The description cannot be read, a label belongs to no image, or a channel is missing.
    """
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(description, dict):
            raise ValueError("it is no JSON object")
        channels = _channels(description)
        labels, ignore = _labels(description["labels"])
        regions = {name: values for name, values in labels.items() if isinstance(values, tuple)}
        written = _written(regions, description.get("regions_class_order")) if regions else labels
        drawn = read_drawn(description, labels)
        if regions and drawn:
            raise ValueError(f"'{KEY}' is for structures, and these labels are regions")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not describe a data set ({error}): write channel_names and labels.") from error
    label_maps = images_in(folder / "labelsTr")
    # Decathlon's images have the names of their labels, which may end in four digits, too.
    whole = {stem(label) for label in label_maps} if len(channels) == 1 else set()
    images: dict[str, dict[int, Path]] = {}
    for image in images_in(folder / "imagesTr"):
        match = None if stem(image) in whole else CHANNEL.match(stem(image))
        name, channel = (match["case"], int(match["channel"])) if match else (stem(image), 0)
        images.setdefault(name, {})[channel] = image
    cases = [_case(label, images.pop(stem(label), {}), len(channels)) for label in label_maps]
    unlabelled = tuple(path for files in images.values() for path in files.values())
    for name in sorted(drawn.keys() - {case.name for case in cases}):
        raise InputError(f"{path} says what is labelled in {name}, which has no labels in labelsTr: correct the name.")
    cases = [replace(case, drawn=drawn.get(case.name)) for case in cases]
    return Dataset(folder, channels, written, ignore, tuple(cases), regions, unlabelled)


def _case(labels: Path, images: Mapping[int, Path], channels: int) -> Case:
    name = stem(labels)
    person = PERSON.match(name)
    if channels > 1 and list(images) == [0] and stem(images[0]) == name:
        return Case(name, (images[0],), labels, person[0] if person else name)
    for channel in range(channels):
        if channel not in images:
            raise InputError(f"{labels} has no image of channel {channel:04} in imagesTr: add it, or move the labels.")
    return Case(name, tuple(images[c] for c in range(channels)), labels, person[0] if person else name)


def _channels(description: Mapping[str, Any]) -> tuple[str, ...]:
    names = description.get("channel_names") or description["modality"]
    if sorted(map(int, names)) != list(range(len(names))) or not names:
        raise ValueError("channels are not numbered from 0")
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _labels(described: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Return names with values, and the value to ignore. nnU-Net maps names to values, Decathlon values to names.

    Where one structure has several values, all are regions: names with tuples of values, in the file's order.
    """
    by_name = {
        **{str(name): value for name, value in described.items() if not str(name).isdigit()},
        **{str(name): int(value) for value, name in described.items() if str(value).isdigit()},
    }
    several = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in by_name.items()}
    for name, values in several.items():
        if not values or not all(type(value) is int and 0 <= value <= 254 for value in values):
            raise ValueError(f"label '{name}' is not a whole number from 0 to 254, or a list of them")
    ignore = several.pop(IGNORE, (None,))
    structures = {name: values for name, values in several.items() if values != (0,) and name != BACKGROUND}
    if not structures:
        raise ValueError("there is no label besides the background")
    if all(len(values) == 1 for values in structures.values()):
        return dict(sorted(((name, values[0]) for name, values in structures.items()), key=lambda i: i[1])), ignore[0]
    if any({0, *ignore} & set(values) for values in structures.values()):
        raise ValueError("a region holds the background's value, or the one to ignore")
    return structures, ignore[0]


def _written(regions: Mapping[str, tuple[int, ...]], order: Any) -> dict[str, int]:
    """Return the value that a result has in each region: nnU-Net writes them one over the other."""
    if not isinstance(order, list) or len(order) != len(regions):
        raise ValueError(f"regions need regions_class_order, a list of {counted(len(regions), 'value')}")
    for (name, values), value in zip(regions.items(), order, strict=True):
        if value not in values:
            raise ValueError(f"regions_class_order gives '{name}' the value {value}, which is none of its own")
    if len(set(order)) < len(order):
        raise ValueError("regions_class_order gives two regions one value")
    return dict(zip(regions, order, strict=True))
