"""What the software knows of a model: one entry of the manifest, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from segmamba.errors import ModelError
from segmamba.labels import Label


class Postprocessing(Enum):
    """The rules of `segmamba.inference.postprocessing`, by their names in the manifest."""

    NONE = "none"
    LARGEST_COLUMN = "largest_column"
    BOWEL = "bowel"


@dataclass(frozen=True)
class InputChannel:
    """One of the co-registered volumes that a model takes, where it takes several.

    Not one of the intensity windows that a network may get of a single volume: those are `Preprocessing.normalization`.

    Attributes
    ----------
    name : str
        What users call it, such as "t1c".
    modality : str or None
        "CT" or "MR"; None for any.
    title : str or None
        In words, such as "T1-weighted with contrast agent".
    fill_value : float or None
        Intensity outside the volume; None for that of the model's preprocessing.
    """

    name: str
    modality: str | None = None
    title: str | None = None
    fill_value: float | None = None


@dataclass(frozen=True)
class IntensityNormalization:
    """How one input channel of a network is made from the intensities: clip, subtract ``mean``, divide by ``std``.

    ``scheme`` "clip": ``low`` and ``high`` are intensities (HU for CT).
    ``scheme`` "zscore": as "percentile", but the percentiles are of all voxels; 0 and 100 clip nothing.
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

    ``urls`` are tried in this order; a file with any has a size and a SHA-256. ``page`` is where its authors offer it
    to people.
    """

    name: str
    size: int | None
    sha256: str | None
    bundled: str | None
    note: str | None = None
    urls: tuple[str, ...] = ()
    page: str | None = None


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

    ``channel_values``: the label value of each channel of the network's output.
    ``flip_axes``: what test-time augmentation flips along, 0, 1, 2 for z, y, x.
    ``input_channels``: the co-registered volumes that it takes, one a channel of its input; empty for a single volume.
    ``has_regions``: its output channels are regions that may overlap, each with a probability of its own, and none is
    background. A voxel has the label of the last one that it is in, in the order of ``channel_values``.
    ``regions``: where that is known, the label values that each region is made of, by its name, in the same order.
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
    input_channels: tuple[InputChannel, ...] = ()
    has_regions: bool = False
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def caution(self) -> str | None:
        """What has to be said with each result, as a clause."""
        return self.entry.get("caution")

    @property
    def refinement(self) -> tuple[str, ...]:
        """Steps of `segmamba.spine.refine` that its masks can be refined by."""
        return self.fine.refine if self.fine is not None else ()


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
    >>> from segmamba.models.manifest import load_manifest
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
