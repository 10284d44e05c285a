"""Sources of a run's samples: synthesizers in this process, or worker processes that prefetch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from segmamba.errors import InputError
from segmamba.io.modality import CT
from segmamba.tasks import COLORECTAL_TASK
from segmamba.training.colorectal.map_format import load_bowel_maps
from segmamba.training.colorectal.samples import BowelSynthesizer
from segmamba.training.config import Config
from segmamba.training.vertebrae.exams import load_exams
from segmamba.training.vertebrae.samples import RealExams, Shares, VertebraSynthesizer
from segmamba.training.vertebrae.tissue_maps import load_anatomies

# Tissue label maps are upsampled to the samples' spacing, but not below this many mm: they have no more detail.
FINEST_MAP = 1.0
# Batches that each worker process has ready.
AHEAD = 4
# How these processes start; a forked one cannot use CUDA.
CONTEXT = "spawn"


class Source(Protocol):
    """A source of batches: dataclasses of tensors, the image first."""

    def batch(self, size: int) -> Any:
        """Return ``size`` new samples."""


def synthesizer_factory(
    config: Config, device: torch.device
) -> Callable[[int], VertebraSynthesizer | BowelSynthesizer]:
    """Read the tissue label maps and return a function from a seed to a synthesizer of the task's samples.

    Raises
    ------
    InputError
        There are no maps, or one is damaged.
    """
    files = config.files(config.anatomies) if config.anatomies else []
    if config.task == COLORECTAL_TASK:
        maps = load_bowel_maps(files, device)
        return lambda seed: BowelSynthesizer(maps, config.patch, config.spacing, config.channels, seed)
    anatomies = load_anatomies(files, device, max(FINEST_MAP, config.spacing)) if config.anatomies else []
    channels = {"CT": config.channels, "MR": config.mr_channels}
    exam_files = config.files(config.exams) if config.exams else []
    if config.exams and not exam_files:
        raise InputError(f"No exam matches '{config.exams}': correct it, or leave the key out.")
    real = RealExams(load_exams(exam_files, device), config.exam_share, device)
    if any(exam.modality != CT for exam in real.exams) and not config.mr_channels:
        raise InputError("There are exams with MR, and the configuration has no mr_channels: add them.")
    shares = Shares(config.mr_share, config.degraded_share)
    return lambda seed: VertebraSynthesizer(
        anatomies, config.patch, config.spacing, channels, shares, seed=seed, real=real
    )


def source_factory(config: Config, device: torch.device) -> Callable[[int], Source]:
    """Return a function from a seed to a source of batches; parameters and errors as `synthesizer_factory`."""
    if config.num_workers and (config.exam_share == 1 or config.files(config.anatomies)):
        return lambda seed: PrefetchedSource(config, device, seed)
    return synthesizer_factory(config, device)  # which raises if there are no maps


class PrefetchedSource:
    """Batches that ``config.num_workers`` worker processes synthesize on ``device``; they end with this object.

    Synthesis is bound by the CPU: a single core for it and the training limits the GPU. Images are in half precision.
    The same seed gives the same batches for the same number of processes.

    Raises
    ------
    RuntimeError
        From `batch`: a worker process failed; the message has its error.
    """

    def __init__(self, config: Config, device: torch.device, seed: int) -> None:
        self.size = config.batch
        self.device = device
        loader = DataLoader(
            _Stream(config, device, seed),
            batch_size=None,
            num_workers=config.num_workers,
            multiprocessing_context=CONTEXT,
            prefetch_factor=AHEAD,
            pin_memory=device.type == "cuda",
        )
        self._batches = iter(loader)

    def batch(self, size: int) -> _Batch:
        """Return the next samples; ``size`` is that of the configuration."""
        if size != self.size:
            raise ValueError(f"a batch has {self.size} samples, not {size}")
        fields = next(self._batches)
        return _Batch({name: _restored(value, self.device) for name, value in fields.items()})


class _Batch:
    """The fields of a batch as attributes, in their order."""

    def __init__(self, fields: dict[str, Tensor]) -> None:
        vars(self).update(fields)


class _Stream(IterableDataset[dict[str, Tensor]]):
    """The endless batches of one worker process."""

    def __init__(self, config: Config, device: torch.device, seed: int) -> None:
        self.config, self.device, self.seed = config, device, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        assert worker is not None
        synthesizer = synthesizer_factory(self.config, self.device)(self.seed * worker.num_workers + worker.id)
        while True:
            with torch.no_grad():
                batch = synthesizer.batch(self.config.batch)
            yield {name: _compact(value) for name, value in vars(batch).items()}


def _compact(values: Tensor) -> Tensor:
    """Return values in main memory in compact types: half precision, and bytes for labels, which are below 256."""
    kinds = {torch.float32: torch.float16, torch.int64: torch.uint8}
    return values.to(kinds.get(values.dtype, values.dtype)).cpu()


def _restored(values: Tensor, device: torch.device) -> Tensor:
    kinds = {torch.float16: torch.float32, torch.uint8: torch.int64}
    return values.to(device, non_blocking=True).to(kinds.get(values.dtype, values.dtype))
