"""Launches of Triton kernels; or only a list of them, so that all that a network needs can be compiled at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

# Triton compiles a kernel for pointers and numbers that are multiples of it, and another one for others.
ALIGNMENT = 16


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel and what it would have been launched with; tensors are replaced by small ones of their kind."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Sequence[Any]
    options: Mapping[str, Any]

    def compile(self) -> None:
        """Compile the kernel, or find it in Triton's cache, without running it."""
        self.kernel.warmup(*self.arguments, grid=self.grid, **self.options)


Launches = dict[Hashable, Launch]
_listed: ContextVar[Launches | None] = ContextVar("listed", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a Triton kernel; within `listed` only put it on the list."""
    launches = _listed.get()
    if launches is None:
        kernel[grid](*arguments, **options)
        return
    # What goes wrong with the list must not count as a kernel that does not work.
    with suppress(Exception):
        variant = (kernel, _variant(kernel, arguments), tuple(sorted(options.items())))
        if variant not in launches:
            launches[variant] = Launch(kernel, grid, [_stand_in(each) for each in arguments], options)


@contextmanager
def listed() -> Iterator[Launches]:
    """Let this thread launch no kernels in the block; give one launch for each kernel that Triton would compile."""
    launches: Launches = {}
    token = _listed.set(launches)
    try:
        yield launches
    finally:
        _listed.reset(token)


def _variant(kernel: Any, arguments: Sequence[Any]) -> tuple[Hashable, ...]:
    """Return what Triton tells the compiled forms of a kernel apart by."""
    return tuple(_kind(*each) for each in zip(kernel.params, arguments, strict=False))


def _kind(parameter: Any, argument: Any) -> Hashable:
    if isinstance(argument, torch.Tensor):
        return argument.dtype, _is_aligned(argument)
    if isinstance(argument, int) and not parameter.is_constexpr:
        if parameter.do_not_specialize:
            return "number"
        return "one" if argument == 1 else argument % ALIGNMENT == 0
    # Either the parameter is a constant, or what is given for it.
    value: Hashable = getattr(argument, "value", argument)
    return "constant", value


def _stand_in(argument: Any) -> Any:
    """Return a tensor that the compiler cannot tell from another one; anything else as it is."""
    if not isinstance(argument, torch.Tensor):
        return argument
    small = torch.empty(2, dtype=argument.dtype, device=argument.device)
    return small if _is_aligned(argument) else small[1:]


def _is_aligned(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() % ALIGNMENT == 0
