"""The co-registered volumes of a model that takes several: which is which, whether they fit, and all on one grid.

The grid is that of the input, on which the result lies. The others are interpolated linearly onto it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from segmamba.errors import InputError
from segmamba.inference.preprocess import preprocessing_of, resample_without_aliasing
from segmamba.io.modality import AUTO, check_modality
from segmamba.io.volume import Geometry, Volume, are_one_grid
from segmamba.models.manifest import InputChannel, Model

Item = TypeVar("Item")

# Along each axis, this many places of the input are looked for in the other volumes.
PROBES = 24
# With a smaller part of the input in view, a volume shows something else; with less than the second, a note says so.
SMALLEST_PART, WHOLE = 0.02, 0.98
LARGEST = float(np.finfo(np.float32).max)


def in_order(model: Model, first: Item, others: Mapping[str, Item]) -> tuple[Item, ...]:
    """Return what is given for each volume that a model takes, in the model's order.

    Parameters
    ----------
    model : Model
    first : object
        Of the input: it is the one channel that is not named.
    others : mapping
        By the names of the model's channels, in any case.

    Raises
    ------
    InputError
        A channel is unknown, missing or named twice, or the model takes one volume.

    Examples
    --------
    >>> from segmamba.models.manifest import load_manifest
    >>> model = load_manifest().default("brain-tumour")
    >>> in_order(model, "first.nii", {"T1n": "b.nii", "T1c": "c.nii", "t2f": "a.nii"})
    ('first.nii', 'a.nii', 'b.nii', 'c.nii')
    """
    names = [channel.name for channel in model.input_channels]
    if not names:
        if others:
            raise InputError(f"The model '{model.id}' takes one volume: leave out the channel '{next(iter(others))}'.")
        return (first,)
    known = {name.casefold(): name for name in names}
    by_name: dict[str, Item] = {}
    for given, item in others.items():
        name = known.get(given.casefold())
        if name is None:
            raise InputError(f"The model '{model.id}' has no channel '{given}': choose from {', '.join(names)}.")
        if name in by_name:
            raise InputError(f"The channel '{name}' is given twice: give each once.")
        by_name[name] = item
    missing = [name for name in names if name not in by_name]
    if len(missing) != 1:
        count = len(by_name) + 1
        raise InputError(
            f"The model '{model.id}' takes {len(names)} co-registered volumes ({', '.join(names)}) and got {count}: "
            "name all but one of them as channels (--channel NAME=FILE); the input is the one that is not named."
        )
    return tuple(by_name.get(name, first) for name in names)


def check_files(files: Sequence[str], model: Model) -> None:
    """Refuse one file for two channels.

    Raises
    ------
    InputError
    """
    first: dict[Path, str] = {}
    for file, channel in zip(files, model.input_channels, strict=False):
        other = first.setdefault(Path(file).resolve(), channel.name)
        if other != channel.name:
            raise InputError(f"{file} is given for both channels '{other}' and '{channel.name}': give each its own.")


def joined(volumes: Sequence[Volume], own: int, model: Model, modality: str = AUTO) -> Volume:
    """Return the input with all volumes that a model takes, on its grid, as ``channels``.

    Parameters
    ----------
    volumes : sequence of Volume
        In the model's order.
    own : int
        Which of them is the input.
    model : Model
        One that takes several.
    modality : str
        "CT" or "MR" where the user says what the volumes are, "auto" otherwise.

    Returns
    -------
    Volume
        Its ``notes`` are those of all volumes, and say which of them show only a part of the input.

    Raises
    ------
    InputError
        A volume is of another modality than its channel, lies elsewhere or in another frame of reference, or is there
        twice.
    """
    volume = volumes[own]
    name = model.input_channels[own].name
    arrays, notes = [], list(volume.notes)
    for number, (other, channel) in enumerate(zip(volumes, model.input_channels, strict=True)):
        check_channel(other, channel, model, modality if number == own or channel.modality == modality else AUTO)
        if number == own:
            arrays.append(other.array)
            continue
        notes += [f"Channel {channel.name}: {note}" for note in other.notes]
        notes += _check_place(other, volume, channel.name, name)
        arrays.append(on_grid(other, volume.geometry, preprocessing_of(model, number).fill_value))
    _refuse_copies(volumes, model)
    return replace(volume, channels=tuple(arrays), notes=tuple(dict.fromkeys(notes)))


def check_channel(volume: Volume, channel: InputChannel, model: Model, chosen: str = AUTO) -> None:
    """Refuse a volume of another modality than a model takes as a channel; ``chosen`` as for `resolve_modality`.

    Raises
    ------
    InputError
    """
    if channel.modality is None:
        return
    name = f"Channel {channel.name}"
    check_modality(volume, replace(model, modalities=(channel.modality,)), chosen, name)


def _check_place(other: Volume, volume: Volume, channel: str, own: str) -> list[str]:
    """Return a sentence where a volume shows a part of the input only. Raises InputError if it shows nothing of it."""
    if other.frame and volume.frame and other.frame != volume.frame:
        raise InputError(
            f"Channels {channel} and {own} have different frames of reference (DICOM), so nothing says how they lie to "
            "each other: register them, and give the registered volumes."
        )
    part = _part_in_view(volume.geometry, other.geometry)
    if part < SMALLEST_PART:
        raise InputError(
            f"Channels {channel} and {own} do not overlap: give volumes of one examination, registered to each other."
        )
    if part > WHOLE:
        return []
    return [f"Channel {channel} shows {part:.0%} of the input: check the result in the rest, where it is empty."]


def _part_in_view(geometry: Geometry, other: Geometry) -> float:
    """Return the part of a grid that lies within another one."""
    axes = [np.linspace(0, size - 1, min(size, PROBES)) for size in geometry.size]
    places = np.stack([*np.meshgrid(*axes, indexing="ij"), np.ones([len(axis) for axis in axes])]).reshape(4, -1)
    indices = (np.linalg.inv(other.affine) @ geometry.affine @ places)[:3]
    inside = (indices >= -0.5) & (indices <= np.array(other.size)[:, None] - 0.5)
    return float(inside.all(axis=0).mean())


def on_grid(volume: Volume, geometry: Geometry, fill: float) -> np.ndarray:
    """Return a volume's intensities (z, y, x) on another grid; as they are if it is the same. ``fill`` is outside."""
    if are_one_grid(volume.geometry, geometry):
        return volume.array
    import torch

    # The smoothing against aliasing is for numbers with a fraction.
    values = torch.from_numpy(np.clip(volume.array, -LARGEST, LARGEST, dtype=np.float32, casting="unsafe"))
    return resample_without_aliasing(values, volume.geometry, geometry, fill).numpy()


def _refuse_copies(volumes: Sequence[Volume], model: Model) -> None:
    """Refuse one image under two names: as two files it is not found by their paths."""
    for first, second in _pairs(len(volumes)):
        one, other = volumes[first].array, volumes[second].array
        if one.shape == other.shape and np.array_equal(one, other):
            names = [model.input_channels[number].name for number in (first, second)]
            raise InputError(f"Channels {names[0]} and {names[1]} hold the same image: give each its own.")


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    return ((first, second) for second in range(count) for first in range(second))
