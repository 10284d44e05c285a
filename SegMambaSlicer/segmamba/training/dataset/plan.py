"""The plan of a training: grid, normalization, patch, batch and recipe, as JSON that may be edited before its use."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segmamba.errors import InputError
from segmamba.models.manifest import InputChannel, IntensityNormalization, Preprocessing
from segmamba.training.dataset.layout import values_of
from segmamba.training.run_config import RunConfig
from segmamba.utils.atomic import atomic_write

# The class of voxels that nobody has labelled, in cached labels.
IGNORED = 255
# What lies outside a volume: air, or the dark of an MR.
CT_FILL, OTHER_FILL = -1024.0, 0.0
# What the names of MR channels begin with.
MR_NAMES = re.compile(r"(mr|t1|t2|pd|flair|dwi|adc|swi)", re.IGNORECASE)
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("polynomial", "cosine")


@dataclass(frozen=True, kw_only=True)
class Recipe(RunConfig):
    """How a network is trained; see `segmamba.training.config.Config` for what it has in common with that.

    Attributes
    ----------
    optimizer : str
        "adamw", or "sgd" with Nesterov momentum 0.99.
    schedule : str
        "polynomial" (exponent 0.9, to zero) or "cosine".
    foreground_share : float
        Part of a batch's samples that are centred on a structure, each structure equally often; at least one sample.
    evaluate_every : int
        In iterations.
    record : bool
        A step is recorded as a CUDA graph, without being compiled.
    readers : int
        Threads that read crops ahead of the GPU.
    """

    folder: str = "."
    warmup: int = 50
    optimizer: str = "adamw"
    schedule: str = "polynomial"
    foreground_share: float = 0.33
    log_every: int = 50
    evaluate_every: int = 1000
    record: bool = True
    readers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}")
        if not isinstance(self.readers, int) or self.readers < 1:
            raise ValueError("readers must be a whole number of at least 1")
        if not 0 <= self.foreground_share <= 1:
            raise ValueError("foreground_share must be from 0 to 1")


@dataclass(frozen=True)
class Plan:
    """What a data set's images are turned into, and how a network is trained on them.

    Attributes
    ----------
    dataset : str
        Its name, for the reader.
    channels : tuple of str
        What each image of a case is.
    labels : mapping of str to int
        Structures and their values in the label maps; the network's classes in this order, after the background. Of
        regions the value that the result has in each, later ones over earlier ones, in the order of the outputs.
    ignore : int or None
        The value of voxels that nobody has labelled.
    orientation : str
        Directions in which x, y and z grow, as in a model's entry.
    spacing : tuple of float
        Of the network's grid in mm along x, y, z.
    crop_nonzero : bool
        Volumes are cropped to what is not zero.
    normalization : tuple of IntensityNormalization
        How each channel of the network's input is made.
    patch : tuple of int
        Voxels along z, y, x.
    flip_axes : tuple of int
        Axes (0, 1, 2 for z, y, x) along which samples are mirrored.
    recipe : Recipe
    base_model : str or None
        Id of the model that the training begins from.
    regions : mapping of str to tuple of int
        Where the structures are regions that may overlap: the label values that each is made of. Else empty.
    """

    dataset: str
    channels: tuple[str, ...]
    labels: Mapping[str, int]
    ignore: int | None
    orientation: str
    spacing: tuple[float, float, float]
    crop_nonzero: bool
    normalization: tuple[IntensityNormalization, ...]
    patch: tuple[int, int, int]
    flip_axes: tuple[int, ...]
    recipe: Recipe = field(repr=False)
    base_model: str | None = None
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.regions and list(self.regions) != list(self.labels):
            raise ValueError("regions must have the names of labels, in their order")
        if len(self.normalization) != len(self.channels):
            raise ValueError("normalization must be as many as channels")
        if len(self.patch) != 3 or not all(isinstance(n, int) and n > 0 for n in self.patch):
            raise ValueError("patch must be three whole numbers")
        if len(self.spacing) != 3 or not all(step > 0 for step in self.spacing):
            raise ValueError("spacing must be three positive numbers")
        if not set(self.flip_axes) <= {0, 1, 2}:
            raise ValueError("flip_axes must be of 0, 1 and 2")
        if self.recipe.arguments.get("in_channels") != len(self.channels):
            raise ValueError("recipe.arguments.in_channels must be the number of channels")
        if self.recipe.arguments.get("out_channels") != self.outputs:
            what = "one a region" if self.regions else "background and labels"
            raise ValueError(f"recipe.arguments.out_channels must be {self.outputs}: {what}")

    @property
    def values(self) -> tuple[int, ...]:
        """The values of label maps that become classes 1, 2, ... of cached labels."""
        return values_of(self.labels, self.regions)

    @property
    def classes(self) -> int:
        """Number of classes of cached labels, with the background; without regions also those of the network."""
        return 1 + len(self.values)

    @property
    def outputs(self) -> int:
        """Number of the network's output channels."""
        return len(self.regions) or self.classes

    @property
    def region_classes(self) -> tuple[tuple[int, ...], ...]:
        """The classes of cached labels that each region is made of; empty without regions."""
        return tuple(tuple(1 + self.values.index(value) for value in values) for values in self.regions.values())

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class of cached labels from 1 on: of regions the last one that has it."""
        if not self.regions:
            return tuple(self.labels)
        last = {value: name for name, values in self.regions.items() for value in values}
        return tuple(last[value] for value in self.values)

    @property
    def preprocessing(self) -> Preprocessing:
        """How volumes are brought to the network's grid; ``input_channels`` says what differs among several."""
        return Preprocessing(
            orientation=self.orientation,
            spacing=self.spacing,
            interpolation="linear",
            crop_threshold=None,
            fill_value=fill_value(self.channels[0]),
            normalization=self.normalization,
            crop_nonzero=self.crop_nonzero,
        )

    @property
    def input_channels(self) -> tuple[InputChannel, ...]:
        """The volumes that a trained model takes, by names that differ; empty for one."""
        if len(self.channels) == 1:
            return ()
        alike = len({name.casefold() for name in self.channels}) < len(self.channels)
        names = [f"{name}-{number}" if alike else name for number, name in enumerate(self.channels)]
        return tuple(
            InputChannel(name.replace("=", "-"), modality_of(channel), fill_value=fill_value(channel))
            for name, channel in zip(names, self.channels, strict=True)
        )

    def data(self) -> dict[str, Any]:
        """Return all that the cached cases depend on, ready for JSON."""
        names = ("channels", "labels", "ignore", "orientation", "spacing", "crop_nonzero")
        content = {name: getattr(self, name) for name in names}
        if self.regions:
            content["regions"] = self.regions
        return {**content, "normalization": [dataclasses.asdict(channel) for channel in self.normalization]}


def fill_value(channel: str) -> float:
    """Return what lies outside a channel's volumes."""
    return CT_FILL if modality_of(channel) == "CT" else OTHER_FILL


def modality_of(channel: str) -> str | None:
    """Return the modality that a channel's name in a data set says, or None."""
    if channel.upper() == "CT":
        return "CT"
    return "MR" if MR_NAMES.match(channel) else None


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan as JSON. Raises OutputError where that cannot be."""
    recipe = {f.name: getattr(plan.recipe, f.name) for f in dataclasses.fields(Recipe) if f.name not in RUN_FIELDS}
    rest = {"dataset": plan.dataset, "base_model": plan.base_model, **plan.data()}
    rest |= {"patch": plan.patch, "flip_axes": plan.flip_axes}
    with atomic_write(path, (".json",)) as file:
        file.write_text(json.dumps({**rest, "recipe": recipe}, indent=2) + "\n", encoding="utf-8")


# Where a run is, which its plan does not say.
RUN_FIELDS = ("folder", "base")


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises
    ------
    InputError
        The file is missing, is not JSON, has unknown or missing keys, or values that cannot be.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["normalization"] = tuple(IntensityNormalization(**channel) for channel in content["normalization"])
        for key in ("channels", "spacing", "patch", "flip_axes"):
            content[key] = tuple(content[key])
        content["regions"] = {name: tuple(values) for name, values in content.get("regions", {}).items()}
        recipe = Recipe(**content.pop("recipe"), base=path.resolve().parent)
        return Plan(**content, recipe=recipe)
    except OSError as error:
        raise InputError(f"The training plan {path} cannot be read: check the path.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"The training plan {path} is not valid ({error}): correct it, or delete it.") from error
