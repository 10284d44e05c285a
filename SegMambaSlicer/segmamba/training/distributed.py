"""Several GPUs train one network: ``torchrun`` starts a process for each, and this is what they tell one another.

Every process paints samples of its own; gradients are averaged, so that all take the same steps. The first one alone
writes the log and the weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The processes agree about going on at every so manieth step: asking waits for all GPUs.
ASK_EVERY = 10


@dataclass(frozen=True)
class Team:
    """The processes of a training, and which of them this is (0 to ``size`` - 1)."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and measures."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors on one device by their mean over all processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    def all_go_on(self, mine: bool, iteration: int, device: torch.device) -> bool:
        """Return whether no process wants to stop; a team is asked at every `ASK_EVERY`-th iteration only."""
        if self.size == 1:
            return mine
        return iteration % ASK_EVERY > 0 or not self._number_of(not mine, device)

    def wait(self, device: torch.device) -> None:
        """Return when all have come here: what one that ends has not computed yet, the others would wait for."""
        if self.size > 1:
            self._number_of(True, device)

    @staticmethod
    def _number_of(mine: bool, device: torch.device) -> int:
        count = torch.tensor(float(mine), device=device)
        torch.distributed.all_reduce(count)
        return int(count.item())


ALONE = Team()


def join_team(device: torch.device) -> tuple[Team, torch.device]:
    """Return the team that ``torchrun`` started, and this process's device in it; alone without ``torchrun``."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE, device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Team(torch.distributed.get_rank(), size), device
