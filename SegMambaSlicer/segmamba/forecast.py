"""What a run will take, told before it starts: its grid, its windows and its memory. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from segmamba.grid import Box, model_grid
from segmamba.manifest import Model
from segmamba.modality import for_volume
from segmamba.request import Options
from segmamba.volume import Volume
from segmamba.windows import window_count

FLOAT = 4
# Per voxel of the input: the copy that is read, its resampled parts, and the answer's labels and confidence.
BYTES_PER_INPUT_VOXEL = 12
# Python, torch and the weights, without a window's own memory.
BASE_MEMORY = 2**29
# Of what a window needs on a GPU, where the allocator keeps more than is in use.
WINDOW_SHARE_ON_PROCESSOR = 0.5
# Logits are summed up before they become probabilities, in which both are there.
COPIES_OF_CLASSES = 2
# The first of two stages answers without a copy. What is made of its answer, and the second stage, which runs around
# the column, are reckoned as so many channels of the first one's size.
BESIDE_FIRST_ANSWER = 8


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes
    ----------
    size : tuple of int
        Voxels of the model's grid along x, y, z.
    windows : int
        Times that the network runs, mirrorings included; of a model with two stages the first one, for only its
        answer tells where the second one runs.
    memory : int
        Bytes of main memory that the worker needs on the processor; a rough figure. On a GPU it is somewhat less: the
        answer comes to main memory there too.
    window_memory : int
        Bytes that a window needs on a GPU; 0 where the manifest does not tell.
    device_memory : int
        Bytes for a window and for the answer on a GPU. With less, the answer is put together in main memory.
    """

    size: tuple[int, int, int]
    windows: int
    memory: int
    window_memory: int
    device_memory: int


def forecast(volume: Volume, model: Model, options: Options, input_voxels: int | None = None) -> Forecast:
    """Say what segmenting a volume will take.

    Parameters
    ----------
    volume : Volume
        The volume, or one with fewer and larger voxels of the same patient, which is enough and much faster.
    model : Model
    options : Options
    input_voxels : int, optional
        Of the volume itself, where ``volume`` is a coarser one.

    Raises
    ------
    InputError
        There is no body in the volume, or the region of interest lies outside it.
    """
    model = for_volume(volume, model)
    grid = model_grid(volume, model.preprocessing, Box(*options.roi) if options.roi else None)
    size = grid.geometry.size
    overlap = model.overlap if options.overlap is None else options.overlap
    mirrorings = 2 ** len(model.mirror_axes) if options.mirror else 1
    window_memory = round((model.entry.get("memory_gib") or 0) * 2**30)
    if model.fine is None:
        answer = len(model.channel_values)
        beside = (COPIES_OF_CLASSES - 1) * answer
    else:
        answer, beside = model.arguments["coarse"]["out_channels"], BESIDE_FIRST_ANSWER
    channel = FLOAT * math.prod(max(pair) for pair in zip(size, reversed(model.patch), strict=True))
    memory = (
        BASE_MEMORY
        + round(WINDOW_SHARE_ON_PROCESSOR * window_memory)
        + channel * (answer + beside + len(model.preprocessing.channels))
        + BYTES_PER_INPUT_VOXEL * (input_voxels or volume.array.size)
    )
    return Forecast(
        size,
        mirrorings * window_count(size[::-1], model.patch, overlap),
        memory,
        window_memory,
        window_memory + channel * answer if window_memory else 0,
    )
