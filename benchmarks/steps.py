"""Where the time of a run goes, from file to file: ``python benchmarks/steps.py CT [--model ID] [--device cuda]``.

Runs once to warm up, once to time the stages, and once under Python's profiler, and prints the functions of the engine
that took at least ``--least`` seconds with what they call. What runs in threads is done in turn there, as the profiler
would mix it up: such steps are faster than they look. On a GPU kernels run behind the calls: with
``CUDA_LAUNCH_BLOCKING=1`` each counts where it was launched (graphs of the networks count where they are waited for).
Numpy has one thread, as in a worker.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from segmamba.utils.memory import ENVIRONMENT

os.environ.update(ENVIRONMENT | os.environ)

from segmamba.inference import pipeline  # noqa: E402
from segmamba.inference.file_to_file import segment_file  # noqa: E402
from segmamba.request import Options, Request  # noqa: E402
from segmamba.spine import decode  # noqa: E402
from segmamba.utils import parallel  # noqa: E402

ENGINE = "segmamba"


class InTurn:
    """Stands in for a pool of threads: each call is done when it is submitted."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Do a call."""
        done: Future[Any] = Future()
        done.set_result(call(*arguments))
        return done

    def shutdown(self, **_: Any) -> None:
        """Do nothing."""


def rows(profile: cProfile.Profile, least: float) -> Iterator[tuple[float, float, int, str]]:
    """Yield seconds with and without what is called, the number of calls, and the name of functions of the engine."""
    for (path, line, name), (_, calls, own, total, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if f"/{ENGINE}/" in path.replace("\\", "/") and total >= least:
            place = path.replace("\\", "/").rpartition(f"/{ENGINE}/")[2]
            yield total, own, calls, f"{place}:{line} {name}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", metavar="CT")
    parser.add_argument("--model", default="spinemamba", metavar="ID")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--least", type=float, default=0.05, metavar="SECONDS")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            given.volume,
            f"{folder}/labels.nii.gz",
            model=given.model,
            overwrite=True,
            options=Options(device=given.device),
        )
        segment_file(request)
        report = segment_file(request)
        parallel.ThreadPoolExecutor = pipeline.ThreadPoolExecutor = decode.ThreadPoolExecutor = InTurn  # type: ignore[assignment,misc]
        profile = cProfile.Profile()
        profile.runcall(segment_file, request)
    print(report["run"]["device_title"], report["timings_s"])
    print(f"{'s':>8} {'own s':>8} {'calls':>7}  function")
    for total, own, calls, name in sorted(rows(profile, given.least), reverse=True):
        print(f"{total:8.3f} {own:8.3f} {calls:7}  {name}")


if __name__ == "__main__":
    main()
