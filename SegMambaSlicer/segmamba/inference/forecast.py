"""Forecast of a run before it starts: its grid, its windows and its memory. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from segmamba.inference.model_grid import Box, isotropic_spacing, model_grid, with_coarser_grid
from segmamba.inference.windows import LARGEST_ON_GPU, SHRUNK, fitted_patch, most_at_a_time, window_count
from segmamba.io.modality import model_for_modality
from segmamba.io.volume import Volume
from segmamba.models.manifest import Model
from segmamba.request import Options

FLOAT = 4
# Python and torch; measured, as all values here (Docs/speed.md).
BASE_MEMORY = 0.35 * 2**30
# CUDA's libraries and context.
CUDA_MEMORY = 1.1 * 2**30
# What each further window at a time takes on a GPU, as a part of what the first one takes.
FURTHER_WINDOW = 0.5
# Per voxel of the input, on top of the volume itself: what smoothing and resampling take (13 for an oblique volume).
PREPARING = 9
# What is made of the answer of the first of two stages, in channels of its size.
BESIDE_FIRST_ANSWER = 8
# Per voxel of isotropic labels: they, their confidence, the intensities there, and what postprocessing makes of them.
ISOTROPIC = 8
# A vertebral column is not wider or deeper than this.
COLUMN_MM = 200.0
# Windows of the second stage, which follow the column from end to end, across it at most, and the time of one as a
# part of the first stage's.
FINE_ACROSS, FINE_TIME = 2, 0.5


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes
    ----------
    size : tuple of int
        Voxels of the model's grid along x, y, z.
    windows : int
        Number of network runs, flips included; of a model with two stages those of the first one, because only its
        output says where the second one runs. On a processor (``device="cpu"``) these may be fewer and of another size.
    work : float
        The time of the networks, in windows of the first stage of the model's own size: those of a second one are
        estimated from the height of the grid.
    memory : int
        Bytes of main memory that the worker needs on the processor, in bfloat16.
    memory_beside_gpu : int
        The same where a CUDA GPU runs the networks.
    window_memory : int
        Bytes of a GPU that a window needs; 0 where the manifest does not say.
    device_memory : int
        Bytes of a GPU for a window, the sum of windows and the answer. With less, the answer is put together in main
        memory.
    device_memory_with_room : int
        The same for as many windows at a time as a GPU with room runs.
    """

    size: tuple[int, int, int]
    windows: int
    work: float
    memory: int
    memory_beside_gpu: int
    window_memory: int
    device_memory: int
    device_memory_with_room: int


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
    model = model_for_modality(volume, model, options.modality)
    if options.fast:
        model = with_coarser_grid(model)
    grid = model_grid(volume, model.preprocessing, Box(*options.roi) if options.roi else None)
    size = grid.geometry.size
    overlap = model.overlap if options.overlap is None else options.overlap
    flips = 2 ** len(model.flip_axes) if options.tta else 1
    window_memory = round((model.entry.get("memory_gib") or 0) * 2**30)
    finer = isotropic_voxels(volume, model, size, options, input_voxels)
    voxels = input_voxels or volume.array.size
    windows = window_count(size[::-1], model.patch, overlap)
    beside_gpu = main_memory(model, size, windows, voxels, True, finer)
    on_cpu = with_fitted_window(model, size, overlap, options.fast)
    fitted = window_count(size[::-1], on_cpu.patch, overlap)
    memory = main_memory(on_cpu, size, fitted, voxels, False, finer)
    work = float(windows)
    if options.device == "cpu":
        windows, work = fitted, fitted * math.prod(on_cpu.patch) / math.prod(model.patch)
    device_memory = window_memory + _answer_on_gpu(model, size) if window_memory else 0
    further = FURTHER_WINDOW * (most_at_a_time(model.patch) - 1)
    return Forecast(
        size,
        flips * windows,
        flips * work + FINE_TIME * fine_windows(size, model, options),
        memory,
        beside_gpu,
        window_memory,
        device_memory,
        round(device_memory + further * window_memory),
    )


def with_fitted_window(model: Model, size: tuple[int, int, int], overlap: float, fast: bool = False) -> Model:
    """Return a model with the window that its first of two stages has on a processor, and what that takes."""
    if model.fine is None:
        return model
    patch = fitted_patch(size[::-1], model.patch, overlap, SHRUNK if fast else 1.0)
    grown = math.prod(patch) / math.prod(model.patch)
    memory = (model.entry.get("main_memory_gib") or 0) * grown
    return replace(model, patch=patch, entry={**model.entry, "main_memory_gib": memory})


def main_memory(
    model: Model,
    size: tuple[int, int, int],
    windows: int,
    input_voxels: int,
    beside_gpu: bool = False,
    isotropic: int = 0,
) -> int:
    """Return the bytes of main memory that a run takes at its peak, on the processor in bfloat16.

    Parameters
    ----------
    model : Model
        Where its manifest entry does not tell ``main_memory_gib``, what a window takes is missing.
    size : tuple of int
        Voxels of the model's grid along x, y, z.
    windows : int
        Over that grid.
    input_voxels : int
        Of each volume that the model takes.
    beside_gpu : bool
        A CUDA GPU runs the networks: the windows' maps are there, but the answer comes to main memory.
    isotropic : int
        Voxels of the isotropic labels, which are made when the networks are done.
    """
    channel = _channel(model, size)
    running = 0 if beside_gpu else (model.entry.get("main_memory_gib") or 0) * 2**30
    base = BASE_MEMORY + (CUDA_MEMORY if beside_gpu else 0)
    if windows > 1:
        # Beside a window's maps: the answer, and the sum of the windows in a ring of a window's length. On the
        # processor, logits that stay as they are have their sum in the answer.
        length, width = max((max(pair), pair[1]) for pair in zip(size, reversed(model.patch), strict=True))
        answer = channel * _answer(model)
        ring = 0 if model.fine is not None and not beside_gpu else answer * width / length
        running = answer + max(running + ring, channel * BESIDE_FIRST_ANSWER)
    running += channel * len(model.preprocessing.normalization)
    weights = FLOAT * (model.entry.get("parameters") or 0)
    volumes = max(1, len(model.input_channels))
    finishing = ISOTROPIC * isotropic + channel * _answer(model) if isotropic else 0
    return round(base + weights + FLOAT * volumes * input_voxels + max(PREPARING * input_voxels, running, finishing))


def isotropic_voxels(
    volume: Volume, model: Model, size: tuple[int, int, int], options: Options, input_voxels: int | None = None
) -> int:
    """Return the voxels of the isotropic labels at most, 0 where none are asked for.

    Parameters
    ----------
    volume : Volume
    model : Model
    size : tuple of int
        Voxels of its grid along x, y, z, outside which nothing is labelled.
    options : Options
    input_voxels : int, optional
        As for `forecast`.
    """
    if options.output_spacing is None:
        return 0
    lengths = [n * step for n, step in zip(size, model.preprocessing.spacing, strict=True)]
    if model.fine is not None:
        # The axes of a model with two stages are those of the patient.
        lengths[:2] = [min(length, COLUMN_MM) for length in lengths[:2]]
    # Of every n-th voxel of a volume.
    step = ((input_voxels or volume.array.size) / volume.array.size) ** (1 / 3)
    x, y, z = (length / step for length in volume.geometry.spacing)
    spacing = isotropic_spacing(replace(volume.geometry, spacing=(x, y, z)), options.output_spacing)
    return round(math.prod(lengths) / spacing**3)


def fine_windows(size: tuple[int, int, int], model: Model, options: Options) -> int:
    """Estimate the windows of the second stage, if there is one; the first one's axes are those of the patient."""
    if model.fine is None:
        return 0
    overlap = model.fine.overlap if options.overlap is None else options.overlap
    steps = zip(size, model.preprocessing.spacing, model.fine.spacing, strict=True)
    x, y, z = (round(length * coarse / fine) for length, coarse, fine in steps)
    upwards, *across = (
        window_count([length], [width], overlap) for length, width in zip((z, y, x), model.fine.patch, strict=True)
    )
    return upwards * min(FINE_ACROSS, math.prod(across))


def _answer(model: Model) -> int:
    """Return the channels of the first network's answer."""
    return len(model.channel_values) if model.fine is None else model.arguments["coarse"]["out_channels"]


def _answer_on_gpu(model: Model, size: tuple[int, int, int]) -> int:
    """Return the bytes of a GPU for the sum of the windows, in a ring of a window's length, and for the answer."""
    answer = _channel(model, size) * _answer(model)
    length, width = max((max(pair), pair[1]) for pair in zip(size, reversed(model.patch), strict=True))
    return answer * width // length + (answer if answer <= LARGEST_ON_GPU else 0)


def _channel(model: Model, size: tuple[int, int, int]) -> int:
    """Return the bytes of one channel over a grid, which is padded to a window at least."""
    return FLOAT * math.prod(max(pair) for pair in zip(size, reversed(model.patch), strict=True))
