"""How long a user waits, from file to file: warm runs of one case, a batch, and the first use of a computer.

``python benchmarks/waiting.py CHEST_CT.nii.gz [--lumbar CT MR] [--device cuda] [--steps files batch first]``

- *files*: the chest CT by both bundled models and lumbar crops by that of vertebrae, in a worker that is warm, as the
  panel and a batch have it: medians of 5 after 3 that do not count.
- *batch*: ``segmamba batch`` over 20 copies of the chest CT, with previews: the mean of a case once all stations of the
  engine are busy, and the median that a case spent in each stage.
- *first*: ``segmamba segment`` of the chest CT in a new process, with an empty cache of kernels and with a full one.

Other programs on the computer count as well: it should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from segmamba.utils.memory import ENVIRONMENT

os.environ.update(ENVIRONMENT | os.environ)

from timing import WARM_UP, keep  # noqa: E402

from segmamba.inference.device import choose_device  # noqa: E402
from segmamba.request import Options, Request  # noqa: E402
from segmamba.worker.client import WorkerProcess  # noqa: E402

VERTEBRAE, COLORECTAL = "spinemamba", "segmamba-v2-colorectal"
Row = dict[str, Any]
Say = Callable[[Row], None]


def warm(path: Path, model: str, worker: WorkerProcess, device: str, runs: int, kept: Path) -> Row:
    """Return the median of the stages' times, and of the whole, of runs in a warm worker; keep the labels."""
    output = kept / f"{path.name.split('.')[0]}-{model}.nii.gz"
    request = Request(str(path), str(output), model=model, overwrite=True, options=Options(device=device))
    times = []
    for _ in range(WARM_UP + runs):
        begun = time.perf_counter()
        stages = worker.run(request)["timings_s"]
        times.append({**stages, "clock": time.perf_counter() - begun})
    warm_times = times[WARM_UP:]
    medians = {stage: round(median(run[stage] for run in warm_times), 3) for stage in times[0]}
    return {"what": f"{path.name}, {model}", **medians, "each": [round(run["clock"], 2) for run in times]}


def batch(path: Path, device: str, count: int, workers: int | None, folder: Path) -> Row:
    """Return the seconds a case of a batch of copies, once the first ones are through."""
    source, results = folder / "in", folder / "out"
    source.mkdir()
    content = path.read_bytes()
    for number in range(count):
        (source / f"case{number:02}.nii.gz").write_bytes(content)
    begun = time.time()
    asked = ["batch", source, results, "--task", "vertebrae", "--device", device, "--quiet"]
    command([*asked, *(["--workers", workers] if workers else [])])
    records = sorted(results.glob("cases/*/case.json"), key=lambda record: record.stat().st_mtime)
    ends = [record.stat().st_mtime for record in records]
    # The first case goes alone, and the next ones find the stations empty.
    first = count // 4
    stages = [json.loads(record.read_text())["run"]["timings_s"] for record in records[first:]]
    return {
        "what": f"batch of {len(records)} copies of {path.name}, {workers or 'default'} workers",
        "s a case": round((ends[-1] - ends[first]) / (len(ends) - 1 - first), 3),
        "first case s": round(ends[0] - begun, 1),
        "all s": round(ends[-1] - begun, 1),
        "between the ends": [round(later - end, 2) for end, later in zip(ends, ends[1:], strict=False)],
        **{stage: round(median(case[stage] for case in stages), 3) for stage in stages[0]},
    }


def first_use(path: Path, device: str, folder: Path, say: Say) -> None:
    """Time new processes, the first with an empty cache of kernels."""
    cache = {"TRITON_CACHE_DIR": str(folder / "kernels"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    for what in ("empty", "full"):
        report = folder / "report.json"
        begun = time.perf_counter()
        asked = ["segment", path, "--task", "vertebrae", "--output", folder / "first.nii.gz", "--device", device]
        command([*asked, "--report", report, "--overwrite", "--quiet"], cache)
        taken = round(time.perf_counter() - begun, 2)
        say({"what": f"new process, {what} cache", "s": taken, **json.loads(report.read_text())["timings_s"]})


def command(arguments: list[Any], environment: dict[str, str] | None = None) -> None:
    """Run ``segmamba`` in a process of its own."""
    line = [sys.executable, "-m", "segmamba", *map(str, arguments)]
    subprocess.run(line, check=True, env=os.environ | (environment or {}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path, help="a chest CT, .nii.gz")
    parser.add_argument("--lumbar", type=Path, nargs="*", default=[], help="lumbar crops, CT or MR")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", nargs="+", default=["files", "batch", "first"], choices=["files", "batch", "first"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--workers", type=int, help="engines of the batch")
    parser.add_argument("--keep", type=Path, help="folder for the labels of the warm runs")
    given = parser.parse_args()
    rows: list[Row] = []

    def say(row: Row) -> None:
        print(row, flush=True)
        rows.append(row)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = given.keep or folder
        # New processes before this one takes a GPU's memory.
        if "first" in given.steps:
            first_use(given.ct, given.device, folder, say)
        if "batch" in given.steps:
            say(batch(given.ct, given.device, given.cases, given.workers, folder))
        if "files" in given.steps:
            cases = [(given.ct, VERTEBRAE), (given.ct, COLORECTAL), *((each, VERTEBRAE) for each in given.lumbar)]
            with WorkerProcess() as worker:
                for path, model in cases:
                    say(warm(path, model, worker, given.device, given.runs, kept))
    keep(rows, f"waiting {choose_device(given.device).title}")


if __name__ == "__main__":
    main()
