"""What is lost when things go wrong: faults at random moments of jobs, in real processes.

``python benchmarks/faults.py --count 500``: workers killed, crashed, stopped and hung, memory limited by the system,
GPU lost (simulated), disk full (simulated), folders deleted, inputs cut, jobs cancelled, parents killed, installations
killed, with a stand-in network. ``--what service`` (a server, its clients and the panel's process), ``training``,
``compare``, ``page`` and ``pacs`` do such things to these. Prints how many of each there were, how the jobs ended, and
what must be 0: orphans, half-written results, stuck locks, unclear errors, failures of the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / part) for part in ("Testing", "SegMambaSlicer")]

from helpers import random_faults, strikes, struck_files, struck_service  # noqa: E402

SCENES = {
    "service": struck_service.struck_service,
    "training": lambda folder, seed: contextlib.nullcontext(struck_files.Training(folder, seed)),
    "compare": lambda folder, seed: contextlib.nullcontext(struck_files.Comparison(folder, seed)),
    "page": lambda folder, seed: contextlib.nullcontext(struck_files.CasePage(folder, seed)),
    "pacs": struck_files.struck_pacs,
}


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> int:
    """Run as the command line says, and print the tally as JSON."""
    parser = argparse.ArgumentParser(description="Inject random faults and count what is lost.")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", choices=("worker", *SCENES), default="worker", help="what the faults happen to")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "worker":
            tally = random_faults.inject(Path(folder), options.count, options.seed, _say)
        else:
            with SCENES[options.what](Path(folder), options.seed) as scene:
                tally = strikes.inject([scene], options.count, options.seed, _say)
    print(json.dumps({**tally, "seconds": round(time.monotonic() - started)}, indent=2))
    return 0 if tally["sound"] else 1


if __name__ == "__main__":
    sys.exit(main())
