"""Training on several GPUs: ``torchrun`` starts a process for each, and this is their communication.

Every process synthesizes its own samples; gradients are averaged, so that all take the same steps. Only the main
process writes the log and the weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The processes agree to continue at every n-th step only, because that waits for all GPUs.
AGREE_EVERY = 10


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training run, and the rank of this one (0 to ``size`` - 1)."""

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and evaluates."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors on one device by their mean over all processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    def agree_to_continue(self, mine: bool, iteration: int, device: torch.device) -> bool:
        """Return whether all processes want to continue; a group is asked at every `AGREE_EVERY`-th iteration only."""
        if self.size == 1:
            return mine
        return iteration % AGREE_EVERY > 0 or self._count(not mine, device) == 0

    def mean(self, mine: float, device: torch.device) -> float:
        """Return the mean of a number of all processes, the same in each."""
        return mine if self.size == 1 else self._count(mine, device) / self.size

    def wait(self, device: torch.device) -> None:
        """Wait for all processes: the others would wait forever for results of one that has ended."""
        if self.size > 1:
            self._count(True, device)

    @staticmethod
    def _count(mine: float, device: torch.device) -> float:
        count = torch.tensor(float(mine), device=device)
        torch.distributed.all_reduce(count)
        return float(count.item())


SINGLE = ProcessGroup()


def join_process_group(device: torch.device) -> tuple[ProcessGroup, torch.device]:
    """Return the process group of ``torchrun`` and this process's device; `SINGLE` without ``torchrun``."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return SINGLE, device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return ProcessGroup(torch.distributed.get_rank(), size), device
