"""Whether Triton's kernels run here, and what was done without them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar

import torch

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

# Compute capability from which on Triton uses the tensor cores.
OLDEST = (8, 0)

# Sentences for the report: one for each kernel that does not work here.
fallbacks: dict[str, str] = {}


@cache
def triton_kernels() -> tuple[ModuleType, ModuleType] | None:
    """Return the modules with the kernels of convolutions and of norms, or None where Triton is missing."""
    if find_spec("triton") is None:
        return None
    from segmamba.fast import conv_kernels, norm_kernels

    return conv_kernels, norm_kernels


def missing(device: torch.device) -> str:
    """Say in a sentence why the kernels cannot run on a CUDA device; an empty one if they can."""
    if triton_kernels() is None:
        return "Triton is not installed: the network ran in PyTorch's own operations, several times slower."
    if torch.cuda.get_device_capability(device) < OLDEST:
        return "The GPU is too old for the fast kernels: the network ran in PyTorch's own operations."
    return ""


@cache
def interpreted() -> bool:
    """Tell whether Triton's kernels are interpreted, which they are on the processor."""
    import triton  # type: ignore[import-untyped, import-not-found]

    modules = triton_kernels()
    return modules is not None and not isinstance(modules[1].sums_kernel, triton.JITFunction)


def hinted(*counts: int) -> tuple[Any, ...]:
    """Return numbers of channels as a kernel takes them.

    Triton assumes nothing of a number that is no multiple of 16, and would read one value at a time; so the kernel is
    compiled for it.
    """
    import triton.language as tl  # type: ignore[import-untyped, import-not-found]

    return tuple(count if count % 16 == 0 or interpreted() else tl.constexpr(count) for count in counts)


def run(name: str, kernel: Callable[[], Answer], plain: Callable[[], Answer], device: torch.device) -> Answer:
    """Call ``kernel``, or ``plain``, which gives the same, where Triton is missing or this kernel does not work."""
    if name in fallbacks or triton_kernels() is None or not (device.type == "cuda" or interpreted()):
        return plain()
    try:
        return kernel()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise
        logger.warning("The %s kernel does not work here and is left out: %s", name, error)
        fallbacks[name] = f"the fast {name} does not work here and PyTorch's was used: {_first_line(error)}"
        return plain()


def _first_line(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
