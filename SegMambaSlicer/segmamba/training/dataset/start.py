"""Training that begins from a model of the list: its grid, its intensities, and as many of its weights as fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segmamba.errors import ModelError
from segmamba.inference.device import choose_device
from segmamba.models import store
from segmamba.models.library import load_models
from segmamba.models.manifest import Model
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights, save_safetensors
from segmamba.networks.identify import expected_shapes
from segmamba.training.dataset.cache import CachedCase
from segmamba.training.dataset.package import label_set
from segmamba.training.dataset.plan import Plan
from segmamba.training.dataset.validation import mean_dice, validate
from segmamba.utils.atomic import atomic_write
from segmamba.utils.words import counted

START = "start.safetensors"
BEFORE = "before.json"
# Less than a new network gets: its weights are already good.
LEARNING_RATE = 2e-4
ITERATIONS = 5000


@dataclass(frozen=True)
class Start:
    """A model that a training begins from, with the parameters of its import, and its weights."""

    model: Model
    weights: Path


def find_start(model_id: str) -> Start:
    """Return the model of an id as a start.

    Raises
    ------
    ModelError
        There is no such model, it is not installed, or its file is damaged.
    """
    model = load_models().model(model_id)
    found = store.installed(model)
    store.verify(found)
    return Start(store.configured(model, found), found.path)


def plan_from(plan: Plan, start: Start) -> Plan:
    """Return the plan of a data set on the grid of the model that the training begins from.

    Raises
    ------
    ModelError
        The model takes another number of channels, or has two stages.
    """
    model = start.model
    if model.fine is not None:
        raise ModelError(f"'{model.id}' has two stages: train from it with 'segmamba train', or choose another model.")
    volumes, channels = max(1, len(model.input_channels)), len(plan.channels)
    if volumes != channels or len(model.preprocessing.normalization) != channels:
        raise ModelError(
            f"'{model.id}' takes {counted(volumes, 'volume')} in "
            f"{counted(len(model.preprocessing.normalization), 'channel')} and the data set has {channels}: choose "
            "another model with --from, or none."
        )
    theirs = [channel.name.casefold() for channel in model.input_channels]
    ours = [name.casefold() for name in plan.channels]
    if theirs and theirs != ours and sorted(theirs) == sorted(ours):
        raise ModelError(
            f"'{model.id}' takes its channels in the order {', '.join(theirs)}: give the data set's images that order."
        )
    recipe = replace(
        plan.recipe,
        architecture=model.architecture,
        arguments={**model.arguments, "out_channels": plan.outputs},
        start_from=START,
        learning_rate=LEARNING_RATE,
        iterations=ITERATIONS,
    )
    return replace(
        plan,
        orientation=model.preprocessing.orientation,
        spacing=model.preprocessing.spacing,
        crop_nonzero=model.preprocessing.crop_nonzero,
        normalization=model.preprocessing.normalization,
        patch=model.patch,
        recipe=recipe,
        base_model=model.id,
    )


def write_start(plan: Plan, start: Start, folder: Path) -> None:
    """Write the weights that a run begins with: the model's, and new ones for structures that it does not know.

    Raises
    ------
    ModelError
        The model's file is damaged, or its network differs in more than the number of classes.
    OutputError
        The file cannot be written.
    """
    torch.manual_seed(plan.recipe.seed)
    network = build_network(plan.recipe.architecture, **plan.recipe.arguments)
    axes = class_axes(plan.recipe.architecture, plan.recipe.arguments)
    old = load_state_dict(start.weights)
    network.load_state_dict(transferred(network.state_dict(), old, axes, class_map(plan, start)))
    with atomic_write(folder / START, (".safetensors",)) as file:
        save_safetensors(network, file, metadata={"from": start.model.id})


def dice_before(plan: Plan, cases: Sequence[CachedCase], folder: Path) -> float | None:
    """Return the mean Dice of the model that a training begins from on the cases that are held out.

    None where there is none, or where it does not know all the structures. It is measured once, and kept in ``folder``.

    Raises
    ------
    ModelError, DeviceError
        The model is not there any more, or its file is damaged.
    """
    if plan.base_model is None or not cases or not knows_all(plan, find_start(plan.base_model)):
        return None
    kept = folder / BEFORE
    if not kept.is_file():
        network = build_network(plan.recipe.architecture, **plan.recipe.arguments)
        load_weights(network, load_state_dict(plan.recipe.base / plan.recipe.start_from))
        network.to(choose_device(plan.recipe.device).name).eval()
        scores = validate(network, cases, plan.patch, list(plan.labels), plan.region_classes)
        with atomic_write(kept, (".json",)) as file:
            file.write_text(json.dumps({"mean_dice": mean_dice(scores), "scores": scores}, indent=2), encoding="utf-8")
    found: float = json.loads(kept.read_text(encoding="utf-8"))["mean_dice"]
    return found


def class_map(plan: Plan, start: Start) -> dict[int, int]:
    """Return for each output of the plan that the model knows by name the model's output; the background is one.

    Regions are compared as a whole, as what one is depends on those over it.
    """
    if plan.regions or start.model.has_regions:
        ours = [(entry["value"], entry["name"]) for entry in label_set(plan)]
        theirs = sorted((label.value, label.name) for label in start.model.labels)
        same = plan.regions and start.model.has_regions and sorted(ours) == theirs
        order = tuple(plan.labels.values()) == start.model.channel_values
        return {number: number for number in range(plan.outputs)} if same and order else {}
    names = {label.value: label.name.casefold() for label in start.model.labels}
    classes = {names[value]: index for index, value in enumerate(start.model.channel_values) if value in names}
    known = {number: classes.get(name.casefold()) for number, name in enumerate(plan.labels, start=1)}
    return {0: 0, **{number: index for number, index in known.items() if index is not None}}


def knows_all(plan: Plan, start: Start) -> bool:
    """Whether the model has all structures of the plan, so that it can be measured before it is trained."""
    return len(class_map(plan, start)) == plan.outputs


def transferred(
    new: Mapping[str, Tensor],
    old: Mapping[str, Tensor],
    axes: Mapping[str, Sequence[int]],
    classes: Mapping[int, int],
) -> dict[str, Tensor]:
    """Return a network's new weights with the old ones in their place; class by class where they depend on classes.

    Parameters
    ----------
    new, old : mapping of str to Tensor
        Weights of the new network and of the model.
    axes : mapping of str to sequence of int
        From `class_axes`.
    classes : mapping of int to int
        The model's class for each class that it knows; the others keep their new weights.

    Raises
    ------
    ModelError
        The networks differ in more than their classes.
    """
    state = {}
    for name, value in new.items():
        found, along = old.get(name), axes.get(name, ())
        if found is None or _without(found.shape, along) != _without(value.shape, along):
            raise ModelError(f"The model's weights '{name}' do not fit this network: start from another model.")
        kept = [list(classes) if axis in along else list(range(n)) for axis, n in enumerate(value.shape)]
        taken = [list(classes.values()) if axis in along else list(range(n)) for axis, n in enumerate(value.shape)]
        state[name] = value.clone()
        if value.ndim:
            state[name][_cross(kept)] = found[_cross(taken)].to(value.dtype)
        else:
            state[name] = found.to(value.dtype)
    return state


def class_axes(architecture: str, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the axes of a network's weights that are its classes: those that one class more would make longer."""
    more = {**arguments, "out_channels": arguments["out_channels"] + 1}
    shapes, larger = expected_shapes(architecture, arguments), expected_shapes(architecture, more)
    axes = {
        name: tuple(axis for axis, length in enumerate(shape) if larger[name][axis] != length)
        for name, shape in shapes.items()
    }
    return {name: found for name, found in axes.items() if found}


def _without(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    return [length for axis, length in enumerate(shape) if axis not in axes]


def _cross(places: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Return the index of all combinations of places along the axes."""
    shapes = [[-1 if other == axis else 1 for other in range(len(places))] for axis in range(len(places))]
    return tuple(torch.tensor(along).view(shape) for along, shape in zip(places, shapes, strict=True))
