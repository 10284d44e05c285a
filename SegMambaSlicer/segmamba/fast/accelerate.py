"""Make an equivalent fast network from a trained one."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from segmamba.fast import kernels
from segmamba.fast.compiling import compile_at_once
from segmamba.fast.segmamba_v2 import FastSegMambaV2
from segmamba.fast.segmamba_v2_paper import FastSegMambaV2Paper
from segmamba.fast.spine_mamba import FastSpineMamba
from segmamba.networks.mamba import SelectiveSSM
from segmamba.networks.segmamba_v2 import SegMambaV2
from segmamba.networks.segmamba_v2_paper import SegMambaV2Paper
from segmamba.networks.spine_mamba import SpineMamba

# Relative difference: half precision alone gives up to 0.003, a kernel that a GPU or compiler gets wrong 0.1 and more.
LARGEST_DIFFERENCE = 0.05

# Half of a window has a multiple of so many voxels: the networks' stride, twice.
HALVED = 32

FAST: dict[type[nn.Module], type] = {
    SegMambaV2: FastSegMambaV2,
    SegMambaV2Paper: FastSegMambaV2Paper,
    SpineMamba: FastSpineMamba,
}


class _Capturing:
    """Keeps apart, between threads, the capture of a graph and what CUDA does not allow meanwhile."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._others = 0

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Do something, perhaps beside others, that must not coincide with a capture."""
        with self._changed:
            self._others += 1
        try:
            yield
        finally:
            with self._changed:
                self._others -= 1
                self._changed.notify_all()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Capture, once nothing else is done; what begins meanwhile waits."""
        with self._changed:
            self._changed.wait_for(lambda: not self._others)
            yield


_capturing = _Capturing()


def release_memory() -> None:
    """Give the GPU memory that PyTorch holds and does not use back; never while a graph is captured."""
    with _capturing.excluded():
        torch.cuda.empty_cache()


class FastNetwork:
    """A network for inference in half precision, on CUDA as a CUDA graph for each shape.

    It maps images (B, C, D, H, W) of any floating type to logits (B, classes, D, H, W), which the next call with that
    shape overwrites.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], dtype: torch.dtype, graphs: bool) -> None:
        self.forward = forward
        self.dtype = dtype
        self.graphs = graphs
        self._captured: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        if not (self.graphs and image.device.type == "cuda"):
            return self.run(image)
        with self._precision(image.device):
            return self._replay(image.to(self.dtype))

    def run(self, image: Tensor) -> Tensor:
        """Return logits without recording or replaying anything."""
        with self._precision(image.device):
            return self.forward(image.to(self.dtype))

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Autocast for the layers that are not replaced: their norms and scans stay in float32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(device.type, self.dtype)

    def _replay(self, image: Tensor) -> Tensor:
        shape = tuple(image.shape)
        if shape not in self._captured:
            self._captured.clear()  # a graph keeps its memory: one shape at a time
            self._captured[shape] = self._capture(image)
        graph, given, answer = self._captured[shape]
        given.copy_(image)
        graph.replay()
        return answer

    def _capture(self, image: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        given, stream = image.clone(), _capture_stream(image.device)
        current = torch.cuda.current_stream(image.device)
        with _capturing.excluded():  # another thread may capture on the same stream
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self.forward(given)  # compiles the kernels, and finds those that do not work
            current.wait_stream(stream)
        release_memory()
        graph = torch.cuda.CUDAGraph()
        # Another case of a batch may use the GPU meanwhile, in a thread of its own, but not give memory back.
        with _capturing.capture(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            answer = self.forward(given)
        return graph, given, answer


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream that a GPU's graphs are captured on; one, as cuBLAS keeps 32 MiB for each that it has seen."""
    return torch.cuda.Stream(device)


# Fast networks with the state of their weights; None if its output differed from the network's.
_fast_networks: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], FastNetwork | None]] = WeakKeyDictionary()


def accelerate(
    network: nn.Module,
    dtype: torch.dtype = torch.float16,
    graphs: bool = True,
    device: torch.device | None = None,
) -> FastNetwork:
    """Return a network with the output of ``network``, to half precision, that is several times faster on CUDA.

    Parameters
    ----------
    network : Module
        A trained `SegMambaV2`, `SegMambaV2Paper` or `SpineMamba`, on its device; it is not changed.
    dtype : dtype
        float16 or bfloat16.
    graphs : bool
        Capture the kernels of a shape once as a CUDA graph and replay them.
    device : device, optional
        Of the fast network; by default that of ``network``.
    """
    half = _converted(network, dtype).to(device)
    if type(half) not in FAST:
        raise TypeError(f"there is no fast path for {type(network).__name__}")
    return FastNetwork(FAST[type(half)](half), dtype, graphs)


def fast_network(
    network: nn.Module, device: torch.device, dtype: torch.dtype, window: Sequence[int], batch: int = 1
) -> tuple[FastNetwork | None, tuple[str, ...]]:
    """Return the fast form of a network on a CUDA device, or None if there is none, and warnings.

    It is made once for its weights: its kernels are compiled for a ``batch`` of windows (channels, z, y, x), and it is
    compared with the network on one window of noise.
    There is a warning if the kernels are not available, or if their output differs.
    """
    if device.type != "cuda" or dtype == torch.float32 or type(network) not in FAST:
        return None, ()
    missing = kernels.missing(device)
    if missing:
        return None, (missing,)
    # The weights may have been trained since the last call.
    state = (str(device), dtype, *(parameter._version for parameter in network.parameters()))
    known = _fast_networks.get(network)
    if known is None or known[0] != state:
        forget(network)
        with _capturing.excluded():  # it compiles and loads kernels
            fast = accelerate(network, dtype, device=device)
            compiled = compile_at_once(fast.run, [(1, *_half(window)), (batch, *window)], device)
            known = _fast_networks[network] = state, fast if agrees(network, fast, window, device, compiled) else None
            compiled()
    if known[1] is None:
        sentence = "The fast kernels give different results on this GPU: the network ran with PyTorch's own operations."
        return None, (sentence,)
    return known[1], ()


@torch.no_grad()
def agrees(
    network: nn.Module,
    fast: FastNetwork,
    window: Sequence[int],
    device: torch.device,
    ready: Callable[[], None] = lambda: None,
) -> bool:
    """Say whether a fast network has the output of the network on noise; True if memory does not suffice.

    ``window`` is (channels, z, y, x); a half of it is looked at. A copy of ``network`` runs on ``device`` first, then
    ``ready`` waits for the kernels of the fast one.
    """
    noise = torch.randn((1, *_half(window)), generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.autocast(device.type, fast.dtype, enabled=fast.dtype != torch.float32):
            expected = copy.deepcopy(network).to(device)(noise).float()
        ready()
        answer = fast.run(noise).float()
        difference = float((answer - expected).norm() / expected.norm())
    except torch.OutOfMemoryError:
        return True
    finally:
        if device.type == "cuda":
            release_memory()
    return difference < LARGEST_DIFFERENCE


def _half(window: Sequence[int]) -> tuple[int, ...]:
    """Return a window (channels, z, y, x) of half the height where that is one of the networks.

    The plain network takes three times the memory of the fast one: on a whole window it was the peak of a run.
    """
    channels, depth, *others = window
    return (channels, depth // 2 if depth % (2 * HALVED) == 0 else depth, *others)


def forget(network: nn.Module) -> None:
    """Free the memory of the fast form of a network."""
    _fast_networks.pop(network, None)


def _converted(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy in a precision, except for layer norms and the step sizes of the scans."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    kept = set()
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            kept |= {module.weight, module.bias}
        elif isinstance(module, SelectiveSSM):
            kept |= {module.A_log, module.D, module.dt_proj.bias}
    for parameter in network.parameters():
        if parameter not in kept:
            parameter.data = parameter.data.to(dtype)
    return network
