"""Where a network runs, and in which precision."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmamba.errors import DeviceError, InstallationError
from segmamba.utils.memory import system_memory
from segmamba.utils.words import counted

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Device:
    """A device that is there, and the precision that networks run in on it.

    Attributes
    ----------
    name : str
        What ``torch.device`` takes: "cpu", "cuda:0", "mps".
    kind : str
        "cpu", "cuda" or "mps".
    title : str
        The maker's name of it.
    precision : str
        "float32", or the half precision of autocast: "float16" or "bfloat16".
    total_memory, free_memory : int
        Bytes; 0 where the system does not tell.
    """

    name: str
    kind: str
    title: str
    precision: str
    total_memory: int
    free_memory: int

    @property
    def dtype(self) -> torch.dtype:
        """The precision as PyTorch's type."""
        import torch

        dtype = getattr(torch, self.precision)
        assert isinstance(dtype, torch.dtype)
        return dtype


def choose_device(name: str = "auto", precision: str = "auto") -> Device:
    """Return the device of that name, or with "auto" the best one: CUDA, then MPS, then the processor.

    Parameters
    ----------
    name : str
        "auto", "cpu", "cuda", "cuda:N" or "mps".
    precision : str
        "auto", "float32", "float16" or "bfloat16". "auto" is float16 on CUDA; bfloat16 on a processor with
        bfloat16 instructions (4 times faster there, see `cpu_precision`), else float32; float32 on MPS.

    Raises
    ------
    DeviceError
        The device is not there, or cannot run in that precision.
    InstallationError
        PyTorch is missing or broken.
    """
    if precision not in ("auto", *PRECISIONS):
        raise DeviceError(f"There is no precision '{precision}': choose auto, {', '.join(PRECISIONS)}.")
    torch = import_torch()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cpu":
        return _cpu(precision)
    if name == "mps":
        return _mps(precision)
    if name == "cuda" or name.startswith("cuda:"):
        return _cuda(name, precision)
    raise DeviceError(f"There is no device '{name}': choose auto, cpu, cuda, cuda:N (N counts from 0) or mps.")


def import_torch() -> Any:
    """Import PyTorch.

    Raises
    ------
    InstallationError
        It is missing or does not load.
    """
    try:
        import torch
    except ImportError as error:
        raise InstallationError(
            f"PyTorch does not load ({error}): install it with 'pip install torch', then run 'segmamba doctor'."
        ) from error
    return torch


def cpu_precision() -> str:
    """Return "bfloat16" if the processor computes in it, else "float32".

    Measured on two cores of an AMD EPYC with AVX512_BF16, small 3-D U-Net at 64^3: float32 0.69 s, bfloat16
    autocast 0.18 s. Without these instructions PyTorch emulates bfloat16, which is slower than float32.

    oneDNN has to convolve in it, too: where it may not use AVX-512 (``ONEDNN_MAX_CPU_ISA``), PyTorch convolves
    without it, and a narrow SegMamba-V2 took 25 s of an AMD EPYC 7003 at 32^3, in float32 1.5 s.
    """
    torch = import_torch()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bfloat16" if supported is not None and supported() and onednn_has_bfloat16() else "float32"


def onednn_has_bfloat16() -> bool:
    """Say whether oneDNN convolves in bfloat16 here, in units of the processor's own or in AVX-512 without them."""
    supported = getattr(import_torch().ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and supported()


def _cpu(precision: str) -> Device:
    if precision == "float16":
        raise DeviceError("float16 cannot be used on the CPU: choose --precision bfloat16 or float32.")
    total, free = system_memory()
    return Device("cpu", "cpu", _processor(), cpu_precision() if precision == "auto" else precision, total, free)


def _processor() -> str:
    """Return the processor's name and the number of threads that PyTorch uses."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {counted(import_torch().get_num_threads(), 'thread')}"


def _mps(precision: str) -> Device:
    torch = import_torch()
    if not torch.backends.mps.is_available():
        raise DeviceError("PyTorch finds no Apple GPU (mps) here: choose --device auto or cpu.")
    total, free = system_memory()
    return Device("mps", "mps", "Apple GPU", "float32" if precision == "auto" else precision, total, free)


def _cuda(name: str, precision: str) -> Device:
    torch = import_torch()
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        raise DeviceError(
            f"This PyTorch ({torch.__version__}) is built for the CPU only: install the CUDA build named on "
            "pytorch.org for your driver, or choose --device cpu."
        )
    if not torch.cuda.is_available():
        raise DeviceError(
            f"PyTorch {torch.__version__} is built for CUDA {torch.version.cuda} but finds no NVIDIA GPU or driver "
            "for it: update the NVIDIA driver ('nvidia-smi' must work), or choose --device cpu."
        )
    count = torch.cuda.device_count()
    number = name.removeprefix("cuda").removeprefix(":") or "0"
    if not number.isdecimal() or int(number) >= count:
        known = ", ".join(f"cuda:{index}" for index in range(count))
        raise DeviceError(f"There is no device '{name}': choose one of {known}, or cpu.")
    index = int(number)
    free, total = torch.cuda.mem_get_info(index)
    title = torch.cuda.get_device_name(index)
    return Device(f"cuda:{index}", "cuda", title, "float16" if precision == "auto" else precision, total, free)
