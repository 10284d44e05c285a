"""All kernels of a network compiled at once, which one after the other take most of a network's first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress

import torch
from torch import Tensor

from segmamba.scan.launching import Launch, listed
from segmamba.utils.parallel import processors

_begun: dict[Hashable, Future[None]] = {}
_beginning = threading.Lock()


@torch.no_grad()
def compile_at_once(
    forward: Callable[[Tensor], Tensor], shapes: Sequence[Sequence[int]], device: torch.device
) -> Callable[[], None]:
    """Begin to compile what a network launches for images of some shapes (B, C, D, H, W), a thread for each kernel.

    The compiler works outside of Python's lock. Which kernels there are is found by a pass without them, on whatever is
    in memory. What goes wrong in it, or cannot be compiled, is left to the network's first real pass, which handles it.

    Returns
    -------
    callable
        Waits until all are compiled.
    """
    with suppress(Exception), listed() as launches:
        for shape in shapes:
            forward(torch.zeros(*shape, device=device))
    threads = ThreadPoolExecutor(processors(), "compiler")
    with _beginning:
        for variant, launch in launches.items():
            if (device, variant) not in _begun:
                _begun[device, variant] = threads.submit(_compile, launch, device)
        futures = [_begun[device, variant] for variant in launches]
    threads.shutdown(wait=False)  # each ends with its last kernel

    def wait() -> None:
        for future in futures:  # some may be another network's, in another thread
            future.result()

    return wait


def _compile(launch: Launch, device: torch.device) -> None:
    with suppress(Exception), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        launch.compile()
