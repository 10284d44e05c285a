"""What the batch layer costs and withstands.

``python benchmarks/batch.py chaos``: 60 cases, 6 of them broken in different ways, over 2 local workers and over a
Dask cluster with 2 workers: run in peace; with workers killed by SIGKILL every few seconds; with the main process
killed and started again. All must give the same 54 results, byte for byte.
``python benchmarks/batch.py memory``: memory of the main process over 1,000 cases whose engine does nothing but write.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / part) for part in ("Testing", "SegMambaSlicer")]

import psutil  # noqa: E402

COUNT, MANY = 60, 1000
SECONDS_BETWEEN_KILLS = 4.0
CASES_UP_TO_KILLS = (5, 20, 35, 50)
RETRIES = "10"


def chaos(folder: Path) -> dict[str, object]:
    """Run 60 cases in peace and in trouble, and return what came of them."""
    from helpers import many_cases, tiny

    manifest = tiny.write_model(folder)
    real = REPOSITORY.parent / "shared" / "data" / "val" / "ct"
    many_cases.write_cases(folder / "in", COUNT, real if real.is_dir() else None)

    def run(name: str, *more: str) -> list[str]:
        return many_cases.command(folder / "in", folder / name, manifest, "--retries", RETRIES, *more)

    report: dict[str, object] = {}
    local = ("--workers", "2")
    report["in peace"] = _timed(run("peace", *local), 0)
    results, outcomes = many_cases.results(folder / "peace"), many_cases.outcomes(folder / "peace")
    statuses = [status for status, _ in outcomes.values()]
    report["results"] = {status: statuses.count(status) for status in sorted(set(statuses))}
    report["errors"] = sorted(error for _, error in outcomes.values() if error)

    def compare(name: str) -> dict[str, bool]:
        same = many_cases.results(folder / name) == results
        return {"same results": same, "same rows": many_cases.outcomes(folder / name) == outcomes}

    report["workers killed"] = _timed(run("killed", *local), SECONDS_BETWEEN_KILLS) | compare("killed")
    report["main killed"] = _interrupted(run("again", *local), folder / "again") | compare("again")
    report["cluster"] = _cluster(folder, run) | compare("cluster")
    return report


def _timed(command: list[str], between_kills: float) -> dict[str, object]:
    from helpers import many_cases

    started = time.perf_counter()
    process = many_cases.start(command)
    killed = 0
    if between_kills:
        with many_cases.Killer(lambda: many_cases.engines_below(process.pid), between_kills) as killer:
            process.wait()
        killed = killer.killed
    status = process.wait()
    return {"seconds": round(time.perf_counter() - started, 1), "exit status": status, "killed": killed}


def _interrupted(command: list[str], output: Path) -> dict[str, object]:
    """Kill the main process again and again after some more cases, then let it finish."""
    from helpers import many_cases

    def count() -> int:
        return len(list((output / "cases").glob("*")))

    done = []
    for enough in CASES_UP_TO_KILLS:
        process = many_cases.start(command)
        while count() < enough and process.poll() is None:
            time.sleep(0.05)
        process.kill()
        process.wait()
        done.append(count())
    finished = _timed(command, 0)
    stood = sum(not row["this_run"] for row in many_cases.rows(output))
    return finished | {"done at each kill": done, "stood at the last start": stood}


def _cluster(folder: Path, run: object) -> dict[str, object]:
    """Run on a cluster of processes of its own, whose Dask workers are killed."""
    from distributed import LocalCluster
    from helpers import many_cases

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        nannies = list(cluster.workers.values())

        def workers() -> list[psutil.Process]:
            return [psutil.Process(nanny.pid) for nanny in nannies if nanny.pid]

        with many_cases.Killer(workers, 2 * SECONDS_BETWEEN_KILLS) as killer:
            report = _timed(run("cluster", "--scheduler", cluster.scheduler_address), 0)  # type: ignore[operator]
        return report | {"killed": killer.killed}


def memory(folder: Path) -> dict[str, object]:
    """Do many cases whose engine only writes; return the main process's memory along the way."""
    from unittest.mock import patch

    from helpers import tiny
    from helpers.quick_engine import QuickEngine, write_inputs

    from segmamba.batch import engine
    from segmamba.cli.main import main as segmamba
    from segmamba.cli.progress import CaseProgress

    manifest = tiny.write_model(folder)
    write_inputs(folder / "in", MANY)
    taken: list[float] = []
    process = psutil.Process()
    original = CaseProgress.add

    def add(self: CaseProgress, row: dict[str, object]) -> None:
        original(self, row)
        if sum(self.counts.values()) % 100 == 0:
            taken.append(round(process.memory_info().rss / 2**20, 1))

    started = time.perf_counter()
    run = ["batch", str(folder / "in"), str(folder / "out"), "--task", "vertebrae", "--manifest", str(manifest)]
    with patch.object(engine, "Engine", QuickEngine), patch.object(CaseProgress, "add", add):
        segmamba([*run, "--device", "cpu", "--workers", "2", "--quiet"])
    seconds = time.perf_counter() - started
    return {"cases": MANY, "seconds": round(seconds, 1), "MiB after each 100 cases": taken}


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("chaos", "memory"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = {"chaos": chaos, "memory": memory}[options.what](Path(name))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
