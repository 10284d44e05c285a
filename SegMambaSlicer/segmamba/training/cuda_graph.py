"""Loss and gradients of a batch: computed kernel by kernel, or captured once as a CUDA graph and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Steps before the capture: compilation, choice of algorithms and allocations must not be captured.
WARM_UP = 3

# From the fields of a batch, the image first, to the loss.
Objective = Callable[..., Tensor]


def gradients_of(objective: Objective, network: nn.Module, device: torch.device) -> Objective:
    """Return a function from a batch to its loss, detached, that also leaves the gradients in the network."""

    def compute(*batch: Tensor) -> Tensor:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = objective(*batch)
        loss.backward()
        return loss.detach()

    return compute


class CudaGraphStep:
    """A function from `gradients_of` as one CUDA graph, for batches of one shape.

    A small network's step has a thousand kernels that take the CPU longer to launch than the GPU to run: a colorectal
    one 60 ms on an H200, which computes for 34. A step that cannot be captured is computed as usual, with a warning.

    Parameters
    ----------
    compute : callable
        From `gradients_of`.
    """

    def __init__(self, compute: Objective) -> None:
        self.compute = compute
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: list[Tensor] = []  # the input of the graph
        self._loss = torch.empty(0)

    @property
    def replays(self) -> bool:
        """Whether a step has been captured."""
        return self._graph is not None

    def __call__(self, *batch: Tensor) -> Tensor:
        """Return the loss of a batch and leave its gradients in the network."""
        if not self._batch:
            self._capture(batch)
        if self._graph is None:
            return self.compute(*batch)
        for kept, given in zip(self._batch, batch, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._loss.clone()

    def _capture(self, batch: tuple[Tensor, ...]) -> None:
        self._batch = [field.clone() for field in batch]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.compute(*self._batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads call CUDA meanwhile: they upload batches and watch over the process group.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._loss = self.compute(*self._batch)
        except RuntimeError as error:
            logger.warning("A training step cannot be captured as a CUDA graph, so it is slower: %s", error)
            return
        self._graph = graph
