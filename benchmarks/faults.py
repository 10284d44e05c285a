"""What is lost when things go wrong: faults at random moments of jobs, in real processes with a stand-in network.

``python benchmarks/faults.py --count 500``: workers killed, crashed, stopped and hung, memory limited by the system,
GPU lost (simulated), disk full (simulated), folders deleted, inputs cut, jobs cancelled, parents killed, installations
killed. Prints how many of each there were, how the jobs ended, and what must be 0: orphans, half-written results, stuck
locks, unclear errors, failures of the next run.
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

from helpers import random_faults  # noqa: E402


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> int:
    """Run as the command line says, and print the tally as JSON."""
    parser = argparse.ArgumentParser(description="Inject random faults and count what is lost.")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = random_faults.inject(
            Path(folder), options.count, options.seed, lambda text: print(text, file=sys.stderr)
        )
    print(json.dumps({**tally, "seconds": round(time.monotonic() - started)}, indent=2))
    return 0 if tally["sound"] else 1


if __name__ == "__main__":
    sys.exit(main())
