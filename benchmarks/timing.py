"""What the benchmarks of speed share: timing, errors, and results kept as dated files."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
# Volumes that do not count: with the second one helper processes start, which takes seconds where a disk is slow.
WARM_UP = 3


def milliseconds(run: Callable[[], Any], times: int = 7) -> float:
    """Return the median time of a call on the current CUDA device, after two that do not count."""
    run()
    run()
    torch.cuda.synchronize()
    taken = []
    for _ in range(times):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end))
    return statistics.median(taken)


def seconds(run: Callable[[], Any], times: int = 3) -> float:
    """Return the least time of a call by the clock, after one that does not count."""
    return _least(time.perf_counter, run, times)


def core_seconds(run: Callable[[], Any], times: int = 2) -> float:
    """Return the least time of a call in seconds of the processor's cores together, after one that does not count."""
    return _least(time.process_time, run, times)


def _least(clock: Callable[[], float], run: Callable[[], Any], times: int) -> float:
    run()
    taken = []
    for _ in range(times):
        begin = clock()
        run()
        taken.append(clock() - begin)
    return min(taken)


def relative_error(measured: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the L2 norm of the difference over that of ``expected``."""
    return float((measured.double() - expected.double()).norm() / expected.double().norm())


def peak_gib(run: Callable[[], Any]) -> float:
    """Return the most GPU memory in use during a call, in GiB, with what was in use before."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def keep(rows: list[dict[str, Any]], machine: str) -> None:
    """Print rows as a table and keep them under `RESULTS`, in a file with the day and the machine in its name."""
    for row in rows:
        print("  ".join(f"{key}: {_shown(value)}" for key, value in row.items()))
    RESULTS.mkdir(exist_ok=True)
    day = datetime.now(UTC).date().isoformat()
    name = "-".join(machine.lower().replace("(r)", "").replace("(", "").replace(")", "").replace(",", "").split())
    record = {"day": day, "machine": machine, "torch": torch.__version__, "python": platform.python_version()}
    path = RESULTS / f"{day}-{name}.json"
    path.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")
    print(f"kept in {path}")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
