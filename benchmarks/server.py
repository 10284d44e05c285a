"""Many clients at one server, with killed workers and broken connections: ``python benchmarks/server.py``.

The defaults are 200 jobs of 16 clients, 5 killed workers and 5 dropped connections. Prints what came of it as JSON:
wrong results, files and processes that are left, and the memory of the server's own process on its way.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / part) for part in ("Testing", "SegMambaSlicer")]

from helpers.server_load import Load, sound  # noqa: E402


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Load a server.")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--drops", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        load = Load(
            Path(folder),
            options.jobs,
            options.clients,
            options.kills,
            options.drops,
            lambda text: print(text, file=sys.stderr, flush=True),
        )
        tally = load.run()
    print(json.dumps(tally, indent=2))
    return 0 if sound(tally) else 1


if __name__ == "__main__":
    raise SystemExit(main())
