"""Kernels of a network are listed without running, told apart as Triton does, and compiled once, all at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from segmamba.fast import fast_network, kernels
from segmamba.fast.compiling import compile_at_once
from segmamba.networks.spine_mamba import SpineMamba
from segmamba.scan import triton_scan
from segmamba.scan.launching import launch, listed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Parameter:
    is_constexpr: bool = False
    do_not_specialize: bool = False


@dataclass(eq=False)
class Kernel:
    """Takes a pointer, a number, a constant and a size, for which it is not compiled anew."""

    params: tuple[Parameter, ...] = (Parameter(), Parameter(), Parameter(True), Parameter(False, True))
    ran: list[Any] = field(default_factory=list)
    compiled: list[Any] = field(default_factory=list)
    together: threading.Barrier | None = None

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self.ran.append((grid, arguments, options))

    def warmup(self, *arguments: Any, grid: tuple[int, ...], **options: Any) -> None:
        if self.together is not None:
            self.together.wait(30)
        self.compiled.append((arguments, options))


def test_a_launch_runs_a_kernel_and_within_a_list_none() -> None:
    kernel, numbers = Kernel(), torch.zeros(32)
    launch(kernel, (2, 1), numbers, 5, 16, num_warps=4)
    assert kernel.ran == [((2, 1), (numbers, 5, 16), {"num_warps": 4})]
    with listed() as launches:
        launch(kernel, (2, 1), numbers, 5, 16, num_warps=4)
    assert len(kernel.ran) == 1 and len(launches) == 1 and not kernel.compiled
    launch(kernel, (2, 1), numbers, 5, 16, num_warps=4)
    assert len(kernel.ran) == 2


def test_launches_are_told_apart_by_what_is_compiled_for_and_by_nothing_else() -> None:
    kernel, numbers = Kernel(), torch.zeros(64)
    with listed() as launches:
        for arguments in (
            (numbers, 5, 16),
            (numbers[4:], 7, 16),  # as aligned, and as odd
            (numbers[1:], 5, 16),  # not aligned
            (numbers.half(), 5, 16),
            (numbers, 48, 16),  # a multiple of 16
            (numbers, 96, 16),
            (numbers, 1, 16),
            (numbers, 5, 32),  # another constant
        ):
            launch(kernel, (1,), *arguments, 1)
            launch(kernel, (9,), *arguments, 32)
        launch(kernel, (1,), numbers, 5, 16, 1, num_warps=8)
    assert len(launches) == 7
    for each in launches.values():
        each.compile()
    # No map is kept in memory for the compiler: it gets a small one of the same kind.
    pointers = {(each.dtype, each.data_ptr() % 16 == 0) for (each, *_), _ in kernel.compiled}
    assert pointers == {(torch.float32, True), (torch.float32, False), (torch.float16, True)}
    assert max(each.numel() for (each, *_), _ in kernel.compiled) <= 2


def test_kernels_are_compiled_at_the_same_time_and_once_for_two_networks() -> None:
    together = threading.Barrier(2)
    ours = [Kernel(together=together), Kernel(together=together), Kernel()]

    def forward(image: torch.Tensor) -> torch.Tensor:
        for kernel in ours:
            launch(kernel, (1,), image, 16 * image.shape[0], 2)
        return image

    with ThreadPoolExecutor(2) as networks:
        for begun in [networks.submit(compile_at_once, forward, [(1, 8), (2, 8)], CPU) for _ in range(2)]:
            begun.result()()
    assert [len(kernel.compiled) for kernel in ours] == [1, 1, 1]
    assert not any(kernel.ran for kernel in ours)


def test_what_cannot_be_compiled_or_listed_is_left_to_the_real_pass() -> None:
    class Broken(Kernel):
        def warmup(self, *arguments: Any, grid: tuple[int, ...], **options: Any) -> None:
            raise RuntimeError("no such instruction")

    good = Kernel()

    def forward(image: torch.Tensor) -> torch.Tensor:
        launch(Broken(), (1,), image, 16, 2)
        launch(object(), (1,), image)
        launch(good, (1,), image, 16, 2)
        raise RuntimeError("out of memory")

    compile_at_once(forward, [(1, 8)], CPU)()
    assert len(good.compiled) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_network_that_was_made_ready_compiles_nothing_when_it_runs() -> None:
    def compiled() -> int:
        conv_kernels, norm_kernels = kernels.triton_kernels() or ()
        ours = [each for module in (conv_kernels, norm_kernels, triton_scan) for each in vars(module).values()]
        return sum(len(caches[0]) for each in ours for caches in getattr(each, "device_caches", {}).values())

    network = SpineMamba(2, 5, (16, 32, 32, 48, 64), (1, 1)).eval()
    fast, warnings = fast_network(network, torch.device("cuda"), torch.float16, (2, 64, 64, 64), 2)
    assert fast is not None and not warnings
    before = compiled()
    assert before
    fast(torch.randn(2, 2, 64, 64, 64, device="cuda"))
    assert compiled() == before
