"""Availability of the Triton kernels, and the fallbacks that were used."""

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

# First compute capability whose tensor cores Triton uses.
OLDEST = (8, 0)

# Sentences for the report, one for each kernel that does not work here.
fallbacks: dict[str, str] = {}


@cache
def triton_kernels() -> tuple[ModuleType, ModuleType] | None:
    """Return the modules with the kernels of convolutions and of norms, or None if Triton is missing."""
    if find_spec("triton") is None:
        return None
    from segmamba.fast import conv_kernels, norm_kernels

    return conv_kernels, norm_kernels


def missing(device: torch.device) -> str:
    """Return a sentence why the kernels cannot run on a CUDA device, or an empty text."""
    if triton_kernels() is None:
        return "Triton is not installed: the network ran with PyTorch's own operations, several times slower."
    if torch.cuda.get_device_capability(device) < OLDEST:
        return "The GPU is too old for the fast kernels: the network ran with PyTorch's own operations."
    return ""


@cache
def interpreted() -> bool:
    """Say whether Triton's kernels are interpreted, as on the CPU."""
    import triton  # type: ignore[import-untyped, import-not-found]

    modules = triton_kernels()
    return modules is not None and not isinstance(modules[1].sums_kernel, triton.JITFunction)


def specialize(*counts: int) -> tuple[Any, ...]:
    """Return numbers of channels as arguments of a kernel; those that are not multiples of 16 as constants.

    Triton assumes nothing about the divisibility of such a number and would read one value at a time, so the kernel is
    compiled for it.
    """
    import triton.language as tl  # type: ignore[import-untyped, import-not-found]

    return tuple(count if count % 16 == 0 or interpreted() else tl.constexpr(count) for count in counts)


def run(name: str, kernel: Callable[[], Answer], plain: Callable[[], Answer], device: torch.device) -> Answer:
    """Call ``kernel``, or the equivalent ``plain`` if Triton is missing or the kernel does not work here."""
    if name in fallbacks or triton_kernels() is None or not (device.type == "cuda" or interpreted()):
        return plain()
    try:
        return kernel()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise
        logger.warning("The %s kernel does not work here and is not used: %s", name, error)
        fallbacks[name] = f"the fast {name} does not work here, so PyTorch's was used: {_first_line(error)}"
        return plain()


def _first_line(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
