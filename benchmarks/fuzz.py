"""Random and damaged input, from strangers and from users.

``python benchmarks/fuzz.py --count 2000`` tries so many of each kind from strangers (HTTP of ``segmamba serve``,
uploads, DICOM, answers of a PACS and a server) and prints how they ended, and what must not be: another error than a
sentence, an error 500, a server that is gone, files that stay, anything that takes a minute. ``--what files`` tries
users' files: damaged images, DICOM with odd attributes, odd grids and values, several volumes, folders of data sets.
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

from helpers import tiny  # noqa: E402
from helpers.fuzzed import fuzz  # noqa: E402
from helpers.fuzzed_files import fuzz_files  # noqa: E402
from helpers.running_server import running_server  # noqa: E402


def main() -> int:
    """Run as the command line says, and print the tally as JSON."""
    parser = argparse.ArgumentParser(description="Try random and damaged input, and tell how it ended.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", choices=("strangers", "files"), default="strangers")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.what == "files":
            tally = fuzz_files(folder, options.count, options.seed)
        else:
            (folder / "server").mkdir()
            with running_server(
                folder / "server", tiny.write_model(folder), patience=1.0, upload_bytes=1 << 24
            ) as server:
                tally = fuzz(server, folder, options.count, options.seed)
    seconds = round(time.monotonic() - started)
    print(json.dumps({"ends": dict(sorted(tally.ends.items())), "wrong": tally.wrong, "seconds": seconds}, indent=2))
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
