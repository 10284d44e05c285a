"""Who paints a run's samples: this process, or others that paint ahead of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from segmamba.tasks import COLORECTAL_TASK
from segmamba.training.colorectal.map_format import load_bowel_maps
from segmamba.training.colorectal.samples import BowelPainter
from segmamba.training.config import Config
from segmamba.training.vertebrae.samples import Painter
from segmamba.training.vertebrae.tissue_maps import load_anatomies

# The anatomies are made as fine as the samples, but not finer than this many mm: they know no more.
FINEST_MAP = 1.0
# Batches that each painting process has ready.
AHEAD = 4


class Source(Protocol):
    """What gives batches: a dataclass of tensors, the image first."""

    def batch(self, size: int) -> Any:
        """Return ``size`` new samples."""


def painter_maker(config: Config, device: torch.device) -> Callable[[int], Painter | BowelPainter]:
    """Read the anatomies and return what makes of a seed a painter of the task's samples.

    Raises
    ------
    InputError
        There are no anatomies, or one is damaged.
    """
    files = config.files(config.anatomies)
    if config.task == COLORECTAL_TASK:
        maps = load_bowel_maps(files, device)
        return lambda seed: BowelPainter(maps, config.patch, config.spacing, config.channels, seed)
    anatomies = load_anatomies(files, device, max(FINEST_MAP, config.spacing))
    channels = {"CT": config.channels, "MR": config.mr_channels}
    return lambda seed: Painter(anatomies, config.patch, config.spacing, channels, config.mr_share, seed)


def source_maker(config: Config, device: torch.device) -> Callable[[int], Source]:
    """Return what makes of a seed a source of batches; parameters and errors as `painter_maker`."""
    if config.painters and config.files(config.anatomies):
        return lambda seed: PaintedAhead(config, device, seed)
    return painter_maker(config, device)  # which refuses where there are no anatomies


class PaintedAhead:
    """Batches that ``config.painters`` processes paint, each on ``device``; they end with this object.

    Painting asks more of the processor than of the GPU: where one core does both, it and not the GPU sets the pace.
    Images come in half precision. The same seed gives the same batches for the same number of processes.

    Raises
    ------
    RuntimeError
        From `batch`: a painting process failed, with what it said.
    """

    def __init__(self, config: Config, device: torch.device, seed: int) -> None:
        self.size = config.batch
        self.device = device
        loader = DataLoader(
            _Stream(config, device, seed),
            batch_size=None,
            num_workers=config.painters,
            multiprocessing_context="spawn",  # a forked process cannot use CUDA
            prefetch_factor=AHEAD,
            pin_memory=device.type == "cuda",
        )
        self._batches = iter(loader)

    def batch(self, size: int) -> _Batch:
        """Return the next samples; ``size`` is that of the configuration."""
        if size != self.size:
            raise ValueError(f"{self.size} samples at a time are painted, not {size}")
        fields = next(self._batches)
        return _Batch({name: _restored(value, self.device) for name, value in fields.items()})


class _Batch:
    """The fields of a batch as attributes, in their order."""

    def __init__(self, fields: dict[str, Tensor]) -> None:
        vars(self).update(fields)


class _Stream(IterableDataset[dict[str, Tensor]]):
    """The endless batches of one painting process."""

    def __init__(self, config: Config, device: torch.device, seed: int) -> None:
        self.config, self.device, self.seed = config, device, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        assert worker is not None
        painter = painter_maker(self.config, self.device)(self.seed * worker.num_workers + worker.id)
        while True:
            with torch.no_grad():
                batch = painter.batch(self.config.batch)
            yield {name: _small(value) for name, value in vars(batch).items()}


def _small(values: Tensor) -> Tensor:
    """Return values in main memory in the least space that holds them: labels are below 256."""
    kinds = {torch.float32: torch.float16, torch.int64: torch.uint8}
    return values.to(kinds.get(values.dtype, values.dtype)).cpu()


def _restored(values: Tensor, device: torch.device) -> Tensor:
    kinds = {torch.float16: torch.float32, torch.uint8: torch.int64}
    return values.to(device, non_blocking=True).to(kinds.get(values.dtype, values.dtype))
