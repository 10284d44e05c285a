"""Batches of augmented samples from cached cases: crops are read by threads ahead of the device that augments them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmamba.training.dataset.augment import Pose, draw_pose, posed, rescanned
from segmamba.training.dataset.cache import CachedCase

# Batches that are read ahead.
AHEAD = 8


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """Samples: ``image`` (batch, channels, z, y, x) in float32, ``labels`` (batch, z, y, x) in int64."""

    image: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Crop:
    """What was read of a case for one sample: ``image`` (channels, z, y, x), ``labels`` (z, y, x), and its pose."""

    image: Tensor
    labels: Tensor
    pose: Pose


class CaseSource:
    """Random samples of cached cases. What the n-th batch holds depends on the seed and on n alone.

    So a run that goes on draws exactly what it would have drawn.

    Parameters
    ----------
    cases : sequence of CachedCase
    patch : tuple of int
        Voxels along z, y, x.
    flip_axes : sequence of int
    device : device
        Where samples are augmented.
    foreground_share : float
        Part of a batch, at least one sample, that is centred on a structure; each structure equally often.
    seed, first : int
        ``first`` is the number of the first batch.
    readers : int
        Threads that read.
    augment : bool
        Without it crops stay as they are.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        patch: tuple[int, int, int],
        flip_axes: Sequence[int],
        device: torch.device,
        foreground_share: float = 0.33,
        seed: int = 0,
        first: int = 0,
        readers: int = 4,
        augment: bool = True,
    ) -> None:
        self.cases = cases
        self.patch = patch
        self.flip_axes = tuple(flip_axes)
        self.device = device
        self.foreground_share = foreground_share
        self.seed = seed
        self.augment = augment
        self._next = first
        self._generator = torch.Generator(device)
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="crops")
        self._read: deque[tuple[int, int, Future[list[Crop]]]] = deque()

    def batch(self, size: int) -> LabelledBatch:
        """Return the next ``size`` samples."""
        if self._read and self._read[0][1] != size:
            self._read.clear()
        while len(self._read) < AHEAD:
            number = self._read[-1][0] + 1 if self._read else self._next
            self._read.append((number, size, self._pool.submit(self._crops, number, size)))
        number, _, future = self._read.popleft()
        crops = future.result()
        self._next = number + 1
        rng = np.random.default_rng((self.seed, number, 1))
        self._generator.manual_seed(int(rng.integers(2**62)))
        samples = [self._sample(crop, rng) for crop in crops]
        images, labels = zip(*samples, strict=True)
        return LabelledBatch(torch.stack(images), torch.stack(labels).long())

    def _crops(self, number: int, size: int) -> list[Crop]:
        """Read the crops of a batch; in a thread."""
        rng = np.random.default_rng((self.seed, number, 0))
        centred = max(1, round(size * self.foreground_share)) if self.foreground_share else 0
        return [self._crop(rng, index >= size - centred) for index in range(size)]

    def _crop(self, rng: np.random.Generator, on_structure: bool) -> Crop:
        case = self.cases[int(rng.integers(len(self.cases)))]
        spacing = case.grid.geometry.spacing[::-1]
        pose = draw_pose(rng, spacing, self.flip_axes) if self.augment else Pose(np.eye(3))
        reach = pose.reach(self.patch)
        centre = self._place_of_structure(case, rng) if on_structure else None
        start = _start(case.labels.shape, self.patch, reach, centre, rng)
        image = np.stack([cut(part, start, reach, value) for part, value in zip(case.image, case.padding, strict=True)])
        labels = cut(case.labels, start, reach, 0)
        tensors = torch.from_numpy(image), torch.from_numpy(labels)
        if self.device.type == "cuda":
            tensors = tensors[0].pin_memory(), tensors[1].pin_memory()
        return Crop(*tensors, pose)

    @staticmethod
    def _place_of_structure(case: CachedCase, rng: np.random.Generator) -> np.ndarray | None:
        present = [places for places in case.places if len(places)]
        if not present:
            return None
        places = present[int(rng.integers(len(present)))]
        place: np.ndarray = places[int(rng.integers(len(places)))]
        return place

    def _sample(self, crop: Crop, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        image = crop.image.to(self.device, non_blocking=True)
        labels = crop.labels.to(self.device, non_blocking=True)
        image, labels = posed(image, labels, crop.pose, self.patch)
        return rescanned(image, rng, self._generator) if self.augment else image, labels


def cut(volume: np.ndarray, start: Sequence[int], size: Sequence[int], fill: float) -> np.ndarray:
    """Return a box of a volume (z, y, x), which may reach beyond it: there it holds ``fill``."""
    box = np.full(size, fill, volume.dtype)
    inside, taken = [], []
    for first, length, whole in zip(start, size, volume.shape, strict=True):
        low, high = max(0, first), min(whole, first + length)
        if low >= high:
            return box
        taken.append(slice(low, high))
        inside.append(slice(low - first, high - first))
    box[tuple(inside)] = volume[tuple(taken)]
    return box


def _start(
    shape: Sequence[int],
    patch: Sequence[int],
    reach: Sequence[int],
    centre: np.ndarray | None,
    rng: np.random.Generator,
) -> list[int]:
    """Return where a box of ``reach`` voxels begins, so that the patch in its middle is in the volume or around it.

    The patch lies evenly around a smaller volume, as a window does at inference; in a larger one it lies anywhere
    inside, or on a structure's voxel as far as that is possible.
    """
    start = []
    for axis, (whole, width, box) in enumerate(zip(shape, patch, reach, strict=True)):
        if whole <= width:
            first = -((width - whole) // 2)
        elif centre is None:
            first = int(rng.integers(whole - width + 1))
        else:
            first = int(np.clip(int(centre[axis]) - width // 2, 0, whole - width))
        start.append(first - (box - width) // 2)
    return start
