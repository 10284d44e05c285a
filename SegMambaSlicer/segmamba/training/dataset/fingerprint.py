"""What a plan follows from: sizes, spacings and intensities of a data set, measured on each case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segmamba.io.read import read_image
from segmamba.io.volume import Geometry, Volume
from segmamba.training.dataset.checks import check_case, digest, refuse_copies
from segmamba.training.dataset.images import read_images
from segmamba.training.dataset.layout import Case, Dataset
from segmamba.utils.parallel import at_once

# Voxels of structures that are looked at in each case.
SAMPLED = 10_000


@dataclass(frozen=True)
class ChannelIntensities:
    """Of the labelled structures' voxels: percentiles 0.5 and 99.5, mean and standard deviation, over all cases."""

    low: float
    high: float
    mean: float
    std: float


@dataclass(frozen=True)
class Fingerprint:
    """What was measured on a data set.

    Attributes
    ----------
    sizes : tuple of tuple of int
        Voxels of each case along the patient's x, y, z (left-right, front-back, up-down).
    spacings : tuple of tuple of float
        Their size in mm, likewise.
    intensities : tuple of ChannelIntensities
        One a channel.
    voxels : mapping of str to int
        Of each structure, in all cases together.
    cases_with : mapping of str to int
        In how many cases each structure is.
    """

    sizes: tuple[tuple[int, int, int], ...]
    spacings: tuple[tuple[float, float, float], ...]
    intensities: tuple[ChannelIntensities, ...]
    voxels: Mapping[str, int]
    cases_with: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class _Measured:
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    samples: np.ndarray  # (channels, n)
    counts: np.ndarray  # (256,)
    digest: str


def take_fingerprint(dataset: Dataset) -> Fingerprint:
    """Check and measure all cases, one on each processor.

    Raises
    ------
    InputError, DeviceError
        A file cannot be read, or a case cannot be trained on; the sentence names it.
    """
    by_case = at_once(lambda case: _measure(case, dataset), dataset.cases)
    refuse_copies({case: found.digest for case, found in by_case.items()})
    measured = list(by_case.values())
    samples = np.concatenate([case.samples for case in measured], axis=1)
    if not samples.shape[1]:
        samples = np.zeros((len(dataset.channels), 1), np.float32)
    made_of = {name: list(dataset.regions.get(name, (value,))) for name, value in dataset.labels.items()}
    counts = np.sum([case.counts for case in measured], axis=0)
    return Fingerprint(
        tuple(case.size for case in measured),
        tuple(case.spacing for case in measured),
        tuple(_intensities(channel) for channel in samples),
        {name: int(counts[values].sum()) for name, values in made_of.items()},
        {name: sum(bool(case.counts[values].any()) for case in measured) for name, values in made_of.items()},
    )


def along_patient_axes(geometry: Geometry) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Return the size in voxels and the spacing in mm along the patient's x, y, z, of the axes nearest to them."""
    towards = np.abs(np.reshape(geometry.direction, (3, 3)))
    axes = [0, 0, 0]
    left = [0, 1, 2]
    for axis in np.argsort(-towards.max(axis=0)):
        patient = max(left, key=lambda row: towards[row, axis])
        left.remove(patient)
        axes[patient] = int(axis)
    x, y, z = axes
    return (
        (geometry.size[x], geometry.size[y], geometry.size[z]),
        (geometry.spacing[x], geometry.spacing[y], geometry.spacing[z]),
    )


def _measure(case: Case, dataset: Dataset) -> _Measured:
    labels = read_image(case.labels)
    volumes = read_images(case, len(dataset.channels))
    check_case(case, volumes, labels, dataset)
    array = labels.array.astype(np.intp, copy=False)
    counts = np.bincount(array[(array > 0) & (array < 256)], minlength=256)
    inside = np.flatnonzero(np.isin(array, list(dataset.values)))
    if len(inside) > SAMPLED:
        inside = np.random.default_rng(0).choice(inside, SAMPLED, replace=False)
    samples = _at(volumes, inside)
    size, spacing = along_patient_axes(labels.geometry)
    return _Measured(size, spacing, samples, counts, digest(volumes[0]))


def _at(volumes: Sequence[Volume], places: np.ndarray) -> np.ndarray:
    return np.stack([volume.array.reshape(-1)[places].astype(np.float32) for volume in volumes])


def _intensities(values: np.ndarray) -> ChannelIntensities:
    low, high = np.percentile(values, (0.5, 99.5))
    return ChannelIntensities(float(low), float(high), float(values.mean()), float(values.std()))
