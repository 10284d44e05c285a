"""The selective scan of Mamba-1 behind one call, with interchangeable backends.

``torch``
    Plain PyTorch, any device.
``triton``
    Triton kernels on CUDA; chosen by itself on CUDA where Triton works.
``mamba_ssm``
    The kernel of the ``mamba-ssm`` package, where a user has built it; chosen by itself only where Triton is missing.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from segmamba.errors import ModelError
from segmamba.scan import torch_scan

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "triton", "mamba_ssm")
ENVIRONMENT_VARIABLE = "SEGMAMBA_SCAN"
# Of the networks' scans.
STATES = 16
_override: str | None = None
_functions: dict[str, Callable[..., Tensor]] = {"torch": torch_scan.selective_scan}


def available_backends() -> tuple[str, ...]:
    """Names of the backends whose packages are installed (whether they run depends on the device)."""
    return tuple(name for name in BACKENDS if name == "torch" or find_spec(name) is not None)


def set_backend(name: str | None) -> None:
    """Use one backend for this whole process; None restores the automatic choice.

    Raises
    ------
    ModelError
        The name is unknown, or its package is not installed.
    """
    global _override
    _override = None if name is None else _validated(name)


def chosen_backend(device: torch.device | str) -> str:
    """Name of the backend that a scan on `device` uses now, for the report.

    Order: :func:`set_backend`, the environment variable SEGMAMBA_SCAN, then the automatic choice.

    Raises
    ------
    ModelError
        SEGMAMBA_SCAN names no installed backend.
    """
    requested = _override or os.environ.get(ENVIRONMENT_VARIABLE)
    if requested and requested != "auto":
        return _validated(requested)
    kind = torch.device(device).type
    if kind != "cuda":
        return "torch"
    return next((name for name in ("triton", "mamba_ssm") if _runs_on_cuda(name)), "torch")


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, backend: str | None = None
) -> Tensor:
    """Mamba-1 selective scan: ``h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t``, ``y_t = <C_t, h_t> + D x_t``.

    Parameters
    ----------
    x, delta : Tensor, shape (batch, channels, length)
        Input and step sizes (softplus already applied, so positive).
    A : Tensor, shape (channels, state)
        Negative decay rates.
    B, C : Tensor, shape (batch, state, length)
        Input and output maps, one for each step.
    D : Tensor, shape (channels,)
        Weight of the direct path.
    backend : str, optional
        One of :data:`BACKENDS`; by default the one that :func:`chosen_backend` names.

    Returns
    -------
    Tensor
        y, shape and dtype of `x`. The computation is in float32 whatever the input's dtype.

    Raises
    ------
    ModelError
        The backend is unknown, not installed, or does not run on the tensors' device.
    """
    name = _backend_constant(x.device.type) if backend is None else _validated(backend)
    if name == "mamba_ssm" and x.device.type != "cuda":
        raise ModelError(f"The scan backend 'mamba_ssm' runs on CUDA only, not on {x.device.type}: use 'torch' there.")
    return _functions[name](x, delta, A, B, C, D)


def allow_compiling() -> None:
    """Let torch.compile trace a scan. Not done on import, where PyTorch's compiler would take a second to load."""
    torch.compiler.assume_constant_result(_backend_constant)


def _backend_constant(device_type: str) -> str:
    """:func:`chosen_backend`, evaluated once while torch.compile traces: see :func:`allow_compiling`."""
    return chosen_backend(device_type)


def _validated(name: str) -> str:
    if name not in BACKENDS:
        raise ModelError(f"There is no scan backend '{name}': choose one of {', '.join(BACKENDS)}.")
    if name not in available_backends():
        raise ModelError(f"The scan backend '{name}' is not installed: install its package, or choose 'torch'.")
    try:
        _load(name)
    except Exception as error:
        raise ModelError(f"The scan backend '{name}' cannot be loaded, choose 'torch': {error}.") from error
    return name


def _load(name: str) -> None:
    """Import a backend on first use only: Triton takes a second, and is not everywhere."""
    if name not in _functions:
        _functions[name] = importlib.import_module(f"segmamba.scan.{name}_scan").selective_scan


@cache
def _runs_on_cuda(name: str) -> bool:
    """Try a tiny scan once: Triton can be importable and still lack the C compiler or the GPU that it needs.

    It has as many states as the networks' scans, which take the same kernel then.
    """
    if name not in available_backends():
        return False
    with ThreadPoolExecutor(1) as beside:
        loading = beside.submit(_load, name)  # takes a second, in which CUDA starts
        tokens, maps = torch.ones(1, 1, 4, device="cuda"), torch.ones(1, STATES, 4, device="cuda")
    try:
        loading.result()
        _functions[name](tokens, tokens, -maps[:, :, 0], maps, maps, tokens[0, 0, :1])
    except Exception as error:
        logger.warning("The scan backend '%s' does not work here and is left out: %s", name, error)
        return False
    return True
