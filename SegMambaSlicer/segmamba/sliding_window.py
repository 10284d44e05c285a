"""Running a network over a volume that is larger than its patch: overlapping windows, blended."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.nn import functional

from segmamba import scan
from segmamba.device import cpu_precision
from segmamba.errors import Cancelled, DeviceError, ModelError
from segmamba.windows import window_starts

# Width of the gaussian as a part of the window: at the border of a window the weight is exp(-8).
SIGMA = 1 / 8

Axes = tuple[int, ...]


def blend_weights(length: int, window: int, starts: Sequence[int]) -> torch.Tensor:
    """Return the weight of each window's voxels along one axis, shape (windows, window).

    At each voxel of the axis the weights of the windows that cover it sum to one. Windows lie on a grid, so the
    weight in 3-D is the product of the three axes' weights, and no map of weights is needed.
    """
    position = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    gaussian = torch.exp(-0.5 * (position / (window * SIGMA)) ** 2)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + window] += gaussian
    return torch.stack([gaussian / total[start : start + window] for start in starts]).float()


def mirrorings(axes: Sequence[int]) -> list[Axes]:
    """Return all combinations of mirrored axes, the unmirrored one first."""
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


@torch.no_grad()
def predict(
    network: torch.nn.Module,
    image: torch.Tensor,
    patch: Sequence[int],
    overlap: float,
    device: torch.device | str,
    dtype: torch.dtype,
    mirror: Sequence[int] = (),
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    fallbacks: list[str] | None = None,
    fill: Sequence[float] | None = None,
    softmax: bool = True,
) -> torch.Tensor:
    """Return the class probabilities of a volume.

    The windows' logits are averaged with gaussian weights, and over mirrorings with equal weights, and go through
    one softmax at the end: the way the released networks were evaluated, and cheaper than a softmax a window.

    Parameters
    ----------
    network : Module
        Takes (1, channels, z, y, x) and gives logits (1, classes, z, y, x).
    image : Tensor
        Shape (channels, z, y, x), float32. A volume smaller than the patch is padded on both sides: networks that
        normalise over the window, as these do, answer worse in windows of another size than they were trained on.
    patch : sequence of int
        Window in voxels along z, y, x.
    overlap : float
        Part of a window that its neighbour covers at least.
    device : device
        Where the network runs.
    dtype : dtype
        float32, or the half precision of autocast.
    mirror : sequence of int
        Axes (0, 1, 2 for z, y, x) to mirror; n axes cost 2 to the n as much time.
    progress : callable, optional
        Called with the fraction done after each window.
    cancelled : callable, optional
        Asked between windows.
    fallbacks : list of str, optional
        Gets one sentence for each step that was taken because memory ran out or half precision overflowed.
    fill : sequence of float, optional
        Value of each channel beyond the volume; by default its lowest.
    softmax : bool
        Without it the blended logits are returned.

    Returns
    -------
    Tensor
        Shape (classes, z, y, x), float32, on ``device``, or on the CPU after a fallback.

    Raises
    ------
    Cancelled
        ``cancelled`` said so.
    DeviceError
        Memory does not suffice, on the CPU neither.
    ModelError
        The network gives NaN or infinity in float32.
    """
    notes = fallbacks if fallbacks is not None else []
    padded, inside = _pad(image, patch, fill)
    device = torch.device(device)
    for compute, storage, precision, sentence in _steps(device, dtype):
        if sentence:
            notes.append(sentence)
        if compute.type != device.type:
            scan.set_backend("torch")  # one that was chosen for the GPU may not run here
        try:
            run = _WindowRun(network.to(compute), compute, precision, mirror, notes)
            logits = _blend(run, padded, patch, overlap, storage, progress, cancelled)[inside]
            return _softmax_in_place(logits) if softmax else logits
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only here, with the error and so its frames gone, can their tensors be freed.
        if device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise DeviceError(
        "There is not enough memory for this volume: close other programs, or give a region of interest (--roi)."
    )


def _steps(device: torch.device, dtype: torch.dtype) -> list[tuple[torch.device, torch.device, torch.dtype, str]]:
    """Return what to try in turn: the network's device, where its windows are blended, the precision, and a note."""
    steps = [(device, device, dtype, "")]
    if device.type != "cpu":
        cpu = torch.device("cpu")
        short = f"{device} ran out of memory"
        steps.append((device, cpu, dtype, f"{short}: the windows were blended in main memory instead."))
        steps.append((cpu, cpu, getattr(torch, cpu_precision()), f"{short}: the network ran on the CPU."))
    return steps


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a device's memory did not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # What Apple's GPU and the CPU's allocator raise has no type of its own.
    text = str(error)
    return "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text


@dataclass
class _WindowRun:
    """A network on its device, applied to one window at a time."""

    network: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    mirror: Sequence[int]
    notes: list[str]

    def logits(self, window: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (classes, z, y, x) of a window (channels, z, y, x), the mean over all mirrorings."""
        window = window.to(self.device)
        logits = self._mean_logits(window)
        if self.dtype != torch.float32 and not logits.isfinite().all():
            precision = str(self.dtype).removeprefix("torch.")
            self.notes.append(f"{precision} overflowed: the network ran in float32 from there on.")
            self.dtype = torch.float32
            logits = self._mean_logits(window)
        if not logits.isfinite().all():
            raise ModelError("The network gives NaN or infinity: its checkpoint is damaged, get the file again.")
        return logits

    def _mean_logits(self, window: torch.Tensor) -> torch.Tensor:
        flips = mirrorings(self.mirror)
        total: torch.Tensor | None = None
        for axes in flips:
            spatial = [axis + 2 for axis in axes]
            half = torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()
            with half:
                logits = self.network(window[None].flip(spatial))
            logits = logits.float().flip(spatial)[0]
            total = logits if total is None else total.add_(logits)
        assert total is not None
        return total / len(flips)


def _blend(
    run: _WindowRun,
    image: torch.Tensor,
    window: Sequence[int],
    overlap: float,
    storage: torch.device,
    progress: Callable[[float], None] | None,
    cancelled: Callable[[], bool] | None,
) -> torch.Tensor:
    lengths = image.shape[1:]
    starts = [window_starts(*axis, overlap) for axis in zip(lengths, window, strict=True)]
    weights = [blend_weights(*axis).to(storage) for axis in zip(lengths, window, starts, strict=True)]
    places = list(itertools.product(*(range(len(axis)) for axis in starts)))
    total: torch.Tensor | None = None
    for done, place in enumerate(places, start=1):
        if cancelled is not None and cancelled():
            raise Cancelled()
        corner = [axis[number] for axis, number in zip(starts, place, strict=True)]
        box = (slice(None), *(slice(first, first + width) for first, width in zip(corner, window, strict=True)))
        z, y, x = (axis[number] for axis, number in zip(weights, place, strict=True))
        logits = run.logits(image[box]).to(storage)
        logits *= (z[:, None, None] * y[:, None]) * x
        if total is None:
            total = torch.zeros((len(logits), *lengths), dtype=torch.float32, device=storage)
        total[box] += logits
        if progress is not None:
            progress(done / len(places))
    assert total is not None
    return total


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


def _softmax_in_place(logits: torch.Tensor) -> torch.Tensor:
    # A slice at a time: a softmax of the whole would need all of the memory a second time.
    for index in range(logits.shape[1]):
        logits[:, index] = logits[:, index].softmax(dim=0)
    return logits
