"""A batch from a real PACS (Orthanc) that is killed again and again: ``python benchmarks/pacs.py``.

The defaults are 20 studies (four orientations; even, tilted, uneven and enhanced; two character sets) and 30 kills at
random moments. Prints what came of it as JSON: results that the PACS has of each kind, how far they are from their
sources, wrong names, and what is lost or there twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / part) for part in ("Testing", "SegMambaSlicer")]

from helpers import tiny  # noqa: E402
from helpers.orthanc import PASSWORD, USER, Pacs, orthanc  # noqa: E402
from helpers.pacs_studies import read, shift_of, source_positions, write_studies  # noqa: E402

from segmamba.worker.client import worker_environment  # noqa: E402

KINDS = ("SEG", "RTSTRUCT", "SR")


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Kill batches from a PACS.")
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--longest", type=float, default=1.5, help="seconds from the first results to the kill")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, orthanc(Path(name)) as pacs:
        tally = _run(Path(name), pacs, options)
    print(json.dumps(tally, indent=2))
    return 0 if tally["sound"] else 1


def _run(folder: Path, pacs: Pacs, options: argparse.Namespace) -> dict[str, Any]:
    sources = {}
    for place, tags in write_studies(folder / "in", options.studies):
        pacs.add(sorted(place.iterdir()))
        sources[tags["StudyInstanceUID"]] = place, tags
    moments = random.Random(options.seed)
    begun = time.monotonic()
    killed, finished_early = 0, 0
    for number in range(options.kills):
        process = _start(folder, pacs)
        _wait_for_work(folder, process)
        try:
            process.wait(moments.uniform(0.0, options.longest))
            finished_early += 1
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        print(f"{number}: {len(list((folder / 'out' / 'cases').glob('*')))} cases", file=sys.stderr, flush=True)
    status = _start(folder, pacs).wait()
    with contextlib.suppress(OSError):
        rows = [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]
    return _tally(pacs, sources, rows) | {
        "killed": killed,
        "finished_early": finished_early,
        "seconds": round(time.monotonic() - begun),
        "status": status,
    }


def _wait_for_work(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process writes its first results: before that there is nothing to lose."""
    begun = time.time()
    while process.poll() is None:
        for place in (folder / "out" / ".working").glob("*/results/*"):
            with contextlib.suppress(OSError):
                if place.stat().st_mtime > begun:
                    return
        time.sleep(0.01)


def _start(folder: Path, pacs: Pacs) -> subprocess.Popen[bytes]:
    manifest = folder / "manifest.json"
    if not manifest.exists():
        tiny.write_model(folder)
    model = ["--task", "vertebrae", "--manifest", str(manifest), "--device", "cpu", "--quiet"]
    command = ["batch", pacs.address, str(folder / "out"), "--query", "Modality=CT", *model]
    access = {"SEGMAMBA_PACS_USER": USER, "SEGMAMBA_PACS_PASSWORD": PASSWORD}
    return subprocess.Popen([sys.executable, "-m", "segmamba", *command], env=worker_environment() | access)


def _tally(pacs: Pacs, sources: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    results = {kind: [read(content) for content in pacs.instances(kind)] for kind in KINDS}
    shifts, wrong_names, of_study = [], 0, Counter[tuple[str, str]]()
    for kind, found in results.items():
        for result in found:
            place, tags = sources[result.StudyInstanceUID]
            of_study[kind, result.StudyInstanceUID] += 1
            shifts.append(shift_of(result, source_positions(place)))
            wrong_names += str(result.PatientName) != tags["PatientName"]
    wanted = [(kind, study) for kind in KINDS for study in sources]
    tally = {
        "results": {kind: len(found) for kind, found in results.items()},
        "largest_shift_mm": round(max(shifts, default=0.0), 6),
        "wrong_names": wrong_names,
        "lost": sum(of_study[key] == 0 for key in wanted),
        "twice": sum(of_study[key] > 1 for key in wanted),
        "rows": dict(Counter(row["status"] for row in rows)),
    }
    bad = tally["wrong_names"] or tally["lost"] or tally["twice"] or tally["largest_shift_mm"] > 0.001
    return tally | {"sound": not bad and tally["rows"] == {"done": len(sources)}}


if __name__ == "__main__":
    raise SystemExit(main())
