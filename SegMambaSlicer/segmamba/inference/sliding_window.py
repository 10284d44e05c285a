"""Running a network over a volume that is larger than its patch: overlapping windows, blended."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch.nn import functional

from segmamba import scan
from segmamba.errors import DeviceError, ModelError
from segmamba.fast import FastNetwork, fast_network, forget, kernels, release_memory
from segmamba.inference.blending import Blender, WindowGrid
from segmamba.inference.context import RunContext
from segmamba.inference.device import cpu_precision
from segmamba.inference.windows import LARGEST_ON_GPU, Windows, most_at_a_time

# What a voxel of a window takes on a GPU at most, and the share of the free memory that the windows may take.
BYTES_PER_VOXEL = 700
WINDOW_SHARE = 0.5
# A smaller window is this part of the model's, in steps of the networks' stride.
SMALLER_WINDOW, WINDOW_STEP = 0.75, 32

Axes = tuple[int, ...]
Activation = Callable[[torch.Tensor], torch.Tensor]
Found = TypeVar("Found")


def flip_combinations(axes: Sequence[int]) -> list[Axes]:
    """Return all combinations of axes to flip along, the one without any first."""
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


@dataclass(frozen=True, eq=False)
class NetworkOutput:
    """What a network gives for a volume.

    Attributes
    ----------
    values : Tensor
        Shape (channels, z, y, x), on the context's device, or on the CPU after a fallback.
    device : device
        What the network ran on: not the context's device where its memory did not suffice.
    warnings : tuple of str
        One sentence for each step that was taken because memory ran out or half precision overflowed.
    window : tuple of int or None
        Voxels of its windows along z, y, x.
    """

    values: torch.Tensor
    device: torch.device
    warnings: tuple[str, ...]
    window: tuple[int, ...] | None = None


def softmax(logits: torch.Tensor) -> torch.Tensor:
    """Return class probabilities."""
    return logits.softmax(dim=0)


def region_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return the probability of each region, which may overlap, after a channel of one half: the background.

    A voxel is in a region that has more than this first channel, and in none where no region has.
    """
    return torch.cat([torch.full_like(logits[:1], 0.5), logits.sigmoid()])


def identity(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits themselves."""
    return logits


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """Return the most probable class, uint8 (1, z, y, x).

    The classes of the whole volume are never held then: memory grows with the slab of a window's length.
    """
    # A tenth of the time of PyTorch's own `argmax` on a processor.
    return logits.max(dim=0, keepdim=True).indices.to(torch.uint8)


@torch.no_grad()
def predict(
    network: torch.nn.Module,
    image: torch.Tensor,
    windows: Windows,
    context: RunContext,
    activation: Activation = softmax,
) -> NetworkOutput:
    """Return what a network gives for a volume.

    The windows' logits are averaged with gaussian weights, and over flips with equal weights, and go through the
    activation once at the end: the way the released networks were evaluated, and cheaper than a softmax a window.

    Parameters
    ----------
    network : Module
        Takes (1, channels, z, y, x) and gives logits (1, classes, z, y, x).
    image : Tensor
        Shape (channels, z, y, x), float32. A volume smaller than the patch is padded on both sides: networks that
        normalise over the window, as these do, answer worse in windows of another size than they were trained on.
    windows : Windows
    context : RunContext
        Its ``overlap`` and ``tta`` are not looked at: ``windows`` has them.
    activation : callable
        Applied to the blended logits (classes, z, y, x): `softmax`, `region_probabilities`, `identity` or `argmax`.

    Returns
    -------
    NetworkOutput
        Its values are float32, or what ``activation`` gives.

    Raises
    ------
    Cancelled
        ``context.cancelled`` said so.
    DeviceError
        There is not enough memory, not even on the CPU.
    ModelError
        The network gives NaN or infinity in float32.
    """
    device = context.device
    warnings: list[str] = []
    for step in _steps(device, context.dtype, windows.patch):
        if step.sentence:
            warnings.append(step.sentence)
        if step.compute.type != device.type:
            scan.set_backend("torch")  # one that was chosen for the GPU may not run here
        try:
            values, more = _attempt(network, image, windows, step, context, activation)
            return NetworkOutput(values, step.compute, tuple(dict.fromkeys([*warnings, *more])), step.window)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only here, with the error and so its frames gone, can their tensors and graphs be freed.
        if device.type == "cuda" and torch.cuda.is_available():
            forget(network)
            gc.collect()  # frames that refer to each other
            release_memory()
    raise DeviceError(
        "There is not enough memory for this volume: close other programs, or give a region of interest (--roi)."
    )


def _attempt(
    network: torch.nn.Module,
    image: torch.Tensor,
    windows: Windows,
    step: _Step,
    context: RunContext,
    activation: Activation,
) -> tuple[torch.Tensor, list[str]]:
    """Return what `predict` gives, and warnings, by one of its steps."""
    padded, inside = _pad(image, step.window, windows.pad_values)
    run = _WindowRun.prepare(network, step, image.shape[0], windows.flip_axes)
    grid = WindowGrid.over(padded.shape[1:], step.window, windows.overlap)
    values = _blend(run, padded, grid, activation, context)[inside]
    return values, [*run.warnings, *(kernels.fallbacks.values() if run.fast is not None else ())]


@dataclass(frozen=True)
class _Step:
    """What to try when memory ran out before.

    ``compute`` is the network's device and ``storage`` where its windows are blended; ``batch`` is the number of
    windows at a time, and ``sentence`` goes to the report.
    """

    compute: torch.device
    storage: torch.device
    dtype: torch.dtype
    window: tuple[int, ...]
    batch: int
    sentence: str = ""


def _steps(device: torch.device, dtype: torch.dtype, patch: Sequence[int]) -> list[_Step]:
    """Return what to try in turn."""
    window = tuple(patch)
    batch = windows_at_a_time(device, window)
    steps = [_Step(device, device, dtype, window, batch)]
    if device.type != "cpu":
        cpu = torch.device("cpu")
        short = f"{device} ran out of memory"
        if batch > 1:
            steps.append(
                replace(steps[0], batch=1, sentence=f"{short}: one window at a time was run instead of {batch}.")
            )
        blended = f"{short}: the windows were blended in main memory instead."
        steps.append(_Step(device, cpu, dtype, window, 1, blended))
        smaller = tuple(
            min(width, max(WINDOW_STEP, int(width * SMALLER_WINDOW) // WINDOW_STEP * WINDOW_STEP)) for width in window
        )
        if smaller != window:
            size = " x ".join(map(str, smaller))
            sentence = f"{short}: windows of {size} voxels were used, which makes the result less accurate."
            steps.append(_Step(device, cpu, dtype, smaller, 1, sentence))
        precision = getattr(torch, cpu_precision())
        steps.append(_Step(cpu, cpu, precision, window, 1, f"{short}: the network ran on the CPU."))
    return steps


def windows_at_a_time(device: torch.device, window: Sequence[int]) -> int:
    """Return how many windows run at a time: on a GPU as many as fill it and fit into its free memory."""
    if device.type != "cuda":
        return 1
    fitting = int(torch.cuda.mem_get_info(device)[0] * WINDOW_SHARE) // (math.prod(window) * BYTES_PER_VOXEL)
    return max(1, min(most_at_a_time(window), fitting))


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a device's memory did not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # What Apple's GPU and the CPU's allocator raise has no type of its own.
    text = str(error)
    return "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text


def with_room(compute: Callable[[torch.device], Found], place: torch.device) -> Found:
    """Return what a function computes on a device; on the processor where a GPU has no room for it."""
    try:
        return compute(place)
    except RuntimeError as error:
        if place.type != "cuda" or not is_out_of_memory(error):
            raise
    release_memory()
    return compute(torch.device("cpu"))


@dataclass
class _WindowRun:
    """A network on its device, applied to some windows at a time."""

    network: torch.nn.Module
    fast: FastNetwork | None
    step: _Step
    dtype: torch.dtype
    flip_axes: Sequence[int]
    warnings: list[str]

    @classmethod
    def prepare(cls, network: torch.nn.Module, step: _Step, channels: int, flip_axes: Sequence[int]) -> _WindowRun:
        """Bring a network to its device, in its fast form where there is one."""
        fast, warnings = fast_network(network, step.compute, step.dtype, (channels, *step.window), step.batch)
        if fast is None:
            network.to(step.compute)
        return cls(network, fast, step, step.dtype, flip_axes, list(warnings))

    def logits(self, windows: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (B, classes, z, y, x) of windows (B, channels, z, y, x), averaged over flips."""
        logits = self._mean_logits(windows)
        finite = _is_finite(logits)
        if self.dtype != torch.float32 and not finite:
            precision = str(self.dtype).removeprefix("torch.")
            self.warnings.append(f"{precision} overflowed: the network ran in float32 from then on.")
            self.dtype, self.fast = torch.float32, None
            self.network.to(self.step.compute)
            logits = self._mean_logits(windows)
            finite = _is_finite(logits)
        if not finite:
            raise ModelError("The network returned NaN or infinity: its checkpoint is damaged, get the file again.")
        return logits

    def _mean_logits(self, windows: torch.Tensor) -> torch.Tensor:
        # The first one is not flipped: a flip along no axis would copy.
        flips = flip_combinations(self.flip_axes)
        # To be added to, it must be a copy: the next call of a recorded graph overwrites what this one gave.
        total = self._forward(windows).to(torch.float32, memory_format=torch.contiguous_format, copy=len(flips) > 1)
        if len(flips) == 1:
            return total
        for axes in flips[1:]:
            spatial = [axis + 2 for axis in axes]
            total.add_(self._forward(windows.flip(spatial)).flip(spatial))
        return total.div_(len(flips))

    def _forward(self, windows: torch.Tensor) -> torch.Tensor:
        if self.fast is not None:
            return self.fast(windows)
        half = torch.autocast(self.step.compute.type, self.dtype) if self.dtype != torch.float32 else nullcontext()
        with half:
            logits: torch.Tensor = self.network(windows)
        return logits


def _is_finite(values: torch.Tensor) -> bool:
    """Tell whether no value is NaN or infinite: their sum tells it, at a fraction of the time of asking each."""
    return bool(values.sum().isfinite())


def _blend(
    run: _WindowRun,
    image: torch.Tensor,
    grid: WindowGrid,
    activation: Activation,
    context: RunContext,
) -> torch.Tensor:
    """Run all windows and return the activated sum of their logits; see `_empty_answer` for where that lies."""
    answer: torch.Tensor | None = None

    def keep_slab(first: int, logits: torch.Tensor) -> None:
        nonlocal answer
        slab = activation(logits)
        if answer is None:
            answer = _empty_answer(slab, grid.lengths, run.step.storage)
        answer.narrow(grid.axis + 1, first, slab.shape[grid.axis + 1]).copy_(slab, non_blocking=True)

    # In main memory, logits that stay as they are need no place beside their sum.
    in_place = activation is identity and run.step.storage.type == "cpu"
    blender = Blender(grid, run.step.storage, None if in_place else keep_slab)
    groups = list(grid.groups())
    count = sum(map(len, groups))
    done = 0
    source = _on_device(image, run.step)
    starts = [*grid.starts[grid.axis], grid.lengths[grid.axis]]
    for number, group in enumerate(groups):
        for first in range(0, len(group), run.step.batch):
            context.check_cancelled()
            places = group[first : first + run.step.batch]
            # A batch that is not full repeats its last window: a recorded graph has one shape.
            filled = places + places[-1:] * (run.step.batch - len(places)) if run.fast is not None else places
            windows = torch.stack([source[(slice(None), *grid.box(place))] for place in filled]).to(run.step.compute)
            for place, logits in zip(places, run.logits(windows), strict=False):
                blender.add(place, logits)
                done += 1
                context.progress(done / count)
            del windows, logits  # or they would take memory while the next windows run
        blender.finish(starts[number], starts[number + 1])
    if in_place:
        answer = blender.total
    assert answer is not None
    if answer.device.type == "cpu" and run.step.storage.type == "cuda":
        torch.cuda.synchronize(run.step.storage)
    return answer


def _pad(
    image: torch.Tensor, patch: Sequence[int], fill: Sequence[float] | None
) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """Return the image filled up evenly to at least one patch, and where in it the image lies."""
    missing = [max(0, width - length) for length, width in zip(image.shape[1:], patch, strict=True)]
    before = [amount // 2 for amount in missing]
    inside = tuple(slice(first, first + length) for first, length in zip(before, image.shape[1:], strict=True))
    if any(missing):
        values = fill if fill is not None else [float(channel.min()) for channel in image]
        amounts = [(first, total - first) for first, total in zip(before, missing, strict=True)]
        pad = [amount for axis in reversed(amounts) for amount in axis]
        image = torch.stack(
            [functional.pad(channel, pad, value=value) for channel, value in zip(image, values, strict=True)]
        )
    return image, (slice(None), *inside)


def _on_device(image: torch.Tensor, step: _Step) -> torch.Tensor:
    """Return the image where the windows are cut: on the network's device, if that blends them too."""
    return image.to(step.compute) if step.compute == step.storage else image


def _empty_answer(slab: torch.Tensor, lengths: Sequence[int], storage: torch.device) -> torch.Tensor:
    """Return a tensor (channels, *lengths) on ``storage``, or, instead of much memory of a GPU, in main memory."""
    shape = (len(slab), *lengths)
    if storage.type == "cuda" and math.prod(shape) * slab.itemsize > LARGEST_ON_GPU:
        return torch.empty(shape, dtype=slab.dtype, pin_memory=True)
    return torch.empty(shape, dtype=slab.dtype, device=storage)
