"""From what was measured on a data set to a plan: the rules of nnU-Net (Isensee et al. 2021), for our networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from segmamba.errors import DeviceError, ModelError
from segmamba.models.manifest import IntensityNormalization
from segmamba.training.dataset.fingerprint import ChannelIntensities, Fingerprint
from segmamba.training.dataset.layout import Dataset
from segmamba.training.dataset.plan import Plan, Recipe

# The network of each architecture that the command line offers, and what it takes on a GPU to train on a voxel of the
# batch, in bytes (bfloat16; measured on an H200 with 2 x (192, 160, 64), rounded up).
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any], int]] = {
    "segmamba-v2": ("segmamba_v2_release", {}, 9000),
    "segmamba-v2-paper": ("segmamba_v2_paper", {}, 4000),
    "spinemamba": ("spine_mamba", {"features": [16, 32, 64, 128, 192], "shape_prior": False}, 4000),
}
# Of the free memory of a GPU; the rest is for weights, the optimizer and what the allocator does not use.
MEMORY_SHARE = 0.8
BATCH = 2
# A patch has no more voxels than the paper's.
LARGEST_PATCH = 128**3
# Long axes are multiples of the first, so that a U-Net with five strides fits, too; short ones of the second.
LONG_STEP, SHORT_STEP, SHORT_AXIS = 32, 16, 96
SMALLEST_AXIS = 32
# An axis with voxels so many times as long as the others' is taken at the finer spacing of a tenth of the cases.
ANISOTROPY = 3.0
CLIP_PERCENTILES = (0.5, 99.5)
MIRROR_LEFT_RIGHT = (2,)
# SegMamba-V2's paper: patch, batch, 1,000 epochs, SGD. Learning rate, weight decay and the 250 iterations of an epoch
# are nnU-Net's.
PAPER_PATCH = (128, 128, 128)
PAPER_RECIPE: Mapping[str, Any] = {
    "optimizer": "sgd",
    "schedule": "polynomial",
    "learning_rate": 1e-2,
    "weight_decay": 3e-5,
    "warmup": 0,
    "iterations": 250_000,
    "batch": 2,
}
SIDES = ("left", "right")


def make_plan(
    dataset: Dataset,
    fingerprint: Fingerprint,
    architecture: str,
    gpu_memory: int | None = None,
    spacing: tuple[float, float, float] | None = None,
) -> Plan:
    """Return a plan.

    Parameters
    ----------
    dataset : Dataset
    fingerprint : Fingerprint
    architecture : str
        A key of `NETWORKS`.
    gpu_memory : int, optional
        Free bytes of the GPU; None on a processor, where memory does not bound the patch.
    spacing : tuple of float, optional
        In mm along x, y, z, in place of the data set's.

    Raises
    ------
    ModelError
        There is no such architecture.
    DeviceError
        The GPU's memory does not suffice for the smallest patch.
    """
    network = network_of(architecture)
    _, arguments, bytes_per_voxel = NETWORKS[architecture]
    spacing = spacing or target_spacing(fingerprint)
    shape = median_shape(fingerprint, spacing)
    patch = choose_patch(shape, gpu_memory, bytes_per_voxel)
    sides = any(side in name.lower() for name in dataset.labels for side in SIDES)
    outputs = len(dataset.regions) or 1 + len(dataset.labels)
    recipe = Recipe(
        architecture=network,
        arguments={"in_channels": len(dataset.channels), "out_channels": outputs, **arguments},
        batch=BATCH,
    )
    return Plan(
        dataset=dataset.folder.resolve().name,
        channels=dataset.channels,
        labels=dataset.labels,
        ignore=dataset.ignore,
        orientation="LPS",
        spacing=spacing,
        crop_nonzero=False,
        normalization=tuple(map(_channel, dataset.channels, fingerprint.intensities)),
        patch=patch,
        flip_axes=() if sides else MIRROR_LEFT_RIGHT,
        recipe=recipe,
        regions=dataset.regions,
    )


def as_in_paper(plan: Plan) -> Plan:
    """Return a plan with the recipe and the patch of SegMamba-V2's paper."""
    return replace(plan, patch=PAPER_PATCH, recipe=replace(plan.recipe, **PAPER_RECIPE))


def network_of(architecture: str) -> str:
    """Return the network's name in `segmamba.networks`. Raises ModelError where there is no such architecture."""
    if architecture not in NETWORKS:
        raise ModelError(f"There is no architecture '{architecture}' to train: choose one of {', '.join(NETWORKS)}.")
    return NETWORKS[architecture][0]


def target_spacing(fingerprint: Fingerprint) -> tuple[float, float, float]:
    """Return the median spacing along x, y, z in mm; of a much coarser axis that of the finest tenth of the cases."""
    spacings = np.array(fingerprint.spacings)
    median = np.median(spacings, axis=0)
    axis = int(np.argmax(median))
    others = np.delete(median, axis)
    if median[axis] > ANISOTROPY * others.min():
        median[axis] = max(np.percentile(spacings[:, axis], 10), others.max())
    x, y, z = (round(float(step), 4) for step in median)
    return x, y, z


def median_shape(fingerprint: Fingerprint, spacing: Sequence[float]) -> tuple[int, int, int]:
    """Return the median size of the cases on a grid of ``spacing`` (x, y, z), in voxels along z, y, x."""
    sizes = np.array(fingerprint.sizes) * np.array(fingerprint.spacings) / np.array(spacing)
    x, y, z = (max(1, round(float(length))) for length in np.median(sizes, axis=0))
    return z, y, x


def choose_patch(shape: Sequence[int], gpu_memory: int | None, bytes_per_voxel: int) -> tuple[int, int, int]:
    """Return a patch (z, y, x) that covers as much of the shape as memory and `LARGEST_PATCH` allow.

    It begins with the whole shape, and the axis of which most is covered gives way, the later one of two alike.

    Raises
    ------
    DeviceError
        The smallest patch needs more memory.
    """
    voxels: float = LARGEST_PATCH
    if gpu_memory is not None:
        voxels = min(voxels, MEMORY_SHARE * gpu_memory / (BATCH * bytes_per_voxel))
    patch = [_rounded_up(length) for length in shape]
    while math.prod(patch) > voxels:
        reducible = [axis for axis in range(3) if patch[axis] > SMALLEST_AXIS]
        if not reducible:
            needed = math.prod(patch) * BATCH * bytes_per_voxel / MEMORY_SHARE / 2**30
            raise DeviceError(f"Training needs at least {needed:.1f} GiB of free GPU memory: close other programs.")
        covered = max(reducible, key=lambda axis: (patch[axis] / shape[axis], axis))
        patch[covered] -= LONG_STEP if patch[covered] > SHORT_AXIS else SHORT_STEP
    return patch[0], patch[1], patch[2]


def _rounded_up(length: int) -> int:
    step = LONG_STEP if length > SHORT_AXIS else SHORT_STEP
    return max(SMALLEST_AXIS, math.ceil(length / step) * step)


def _channel(name: str, intensities: ChannelIntensities) -> IntensityNormalization:
    """CT: clipped to the structures' percentiles, in their mean and deviation. Others: in each volume's own."""
    if name.upper() == "CT":
        std = round(intensities.std, 3) or 1.0
        return IntensityNormalization(
            "clip", round(intensities.low, 2), round(intensities.high, 2), round(intensities.mean, 3), std
        )
    return IntensityNormalization("percentile", *CLIP_PERCENTILES)
