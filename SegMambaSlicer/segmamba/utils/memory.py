"""How much memory this computer has."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# What a process that runs the engine has in its environment; each is read once, before PyTorch or numpy is imported.
# PyTorch asks Linux for pages of 2 MB for its tensors with the first, and the first use of a feature map is 500 times
# fewer page faults: a quarter of a network's time in float32. The second keeps numpy's products, which are small here
# and run in threads of our own, from waking threads for each: measuring took seven times as long with them.
ENVIRONMENT = {"THP_MEM_ALLOC_ENABLE": "1", "OPENBLAS_NUM_THREADS": "1"}


def system_memory() -> tuple[int, int]:
    """Return the total and the free main memory in bytes; (0, 0) where the system does not tell.

    Free is what a program can get without the system swapping, caches included.
    """
    if sys.platform == "win32":
        return _windows_memory()
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0, 0
    free = _linux_available() if sys.platform == "linux" else 0
    return total, free or total


def peak_memory() -> int:
    """Return the most main memory in bytes that this process has had; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def current_memory() -> int:
    """Return the main memory in bytes that this process has now; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


def gibibytes(size: float) -> str:
    """Write bytes as text.

    Examples
    --------
    >>> gibibytes(3.1 * 2**30)
    '3.1 GiB'
    """
    return f"{size / 2**30:.1f} GiB"


def _linux_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = [
        ("length", ctypes.c_ulong),
        ("load", ctypes.c_ulong),
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("total_page", ctypes.c_ulonglong),
        ("free_page", ctypes.c_ulonglong),
        ("total_virtual", ctypes.c_ulonglong),
        ("free_virtual", ctypes.c_ulonglong),
        ("free_extended", ctypes.c_ulonglong),
    ]


def _windows_memory() -> tuple[int, int]:
    status = _MemoryStatus()
    status.length = ctypes.sizeof(status)
    if not getattr(ctypes, "windll").kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # noqa: B009
        return 0, 0
    return status.total, status.free
