"""Two commits in turn, from file to file in warm workers: ``python benchmarks/in_turn.py OTHER_TREE CT [CT ...]``.

OTHER_TREE is a checkout of the commit to compare with (``git worktree add OTHER_TREE COMMIT``). Each round runs a file
in both, now the one and now the other first, so that a slow minute of the computer counts for both; what is printed
are medians, and the median of the differences of the rounds. ``--cold`` times new processes instead of warm workers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

OWN = Path(__file__).resolve().parents[1]
SERVE = "--serve"


class Tree:
    """Segments files with the engine of a checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Of another checkout than this script's, too: that is what makes its Python import `segmamba` from there.
        paths = [str(root.resolve() / "SegMambaSlicer"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        line = [sys.executable, __file__, SERVE]
        self._child = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, request: dict[str, Any]) -> tuple[dict[str, float], str]:
        """Return the times of a run, and the SHA-256 of its labels' voxels."""
        assert self._child.stdin is not None and self._child.stdout is not None
        print(json.dumps(request), file=self._child.stdin, flush=True)
        answer = self._child.stdout.readline()
        if not answer:
            raise SystemExit(f"The engine of {self.root} ended: see what it said above.")
        told = json.loads(answer)
        return told["times"], told["labels"]

    def end(self) -> None:
        """End the child process."""
        self._child.communicate()


def serve() -> None:
    """Run the requests that come in, in one worker."""
    import hashlib

    import SimpleITK as sitk

    from segmamba.request import Options, Request
    from segmamba.worker.client import WorkerProcess

    with WorkerProcess() as warm:
        for line in sys.stdin:
            asked = json.loads(line)
            options = Options(device=asked["device"], fast=asked["fast"])
            request = Request(asked["input"], asked["output"], model=asked["model"], overwrite=True, options=options)
            begun = time.perf_counter()
            with WorkerProcess() if asked["cold"] else nullcontext(warm) as worker:
                stages = worker.run(request)["timings_s"]
            times = {**stages, "clock": time.perf_counter() - begun}
            voxels = sitk.GetArrayFromImage(sitk.ReadImage(asked["output"])).tobytes()
            print(json.dumps({"times": times, "labels": hashlib.sha256(voxels).hexdigest()}), flush=True)


def compared(trees: list[Tree], request: dict[str, Any], rounds: int) -> None:
    """Print the times of a file in two trees, and whether their labels are the same."""
    times: dict[Path, list[dict[str, float]]] = {tree.root: [] for tree in trees}
    labels = {tree.root: tree.run(request)[1] for tree in trees}
    for number in range(rounds):
        for tree in trees if number % 2 else reversed(trees):
            times[tree.root].append(tree.run(request)[0])
    print(f"{request['input']}, {request['model']}: labels {'equal' if len(set(labels.values())) == 1 else 'DIFFER'}")
    for root, runs in times.items():
        stages = "  ".join(f"{stage} {median(run[stage] for run in runs):.3f}" for stage in runs[0])
        print(f"  {root}: {stages}")
    before, after = (times[tree.root] for tree in trees)
    pairs = [new["clock"] - old["clock"] for old, new in zip(before, after, strict=True)]
    print(f"  difference: {median(pairs):+.3f} s ({min(pairs):+.3f} to {max(pairs):+.3f}, {rounds} rounds)", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of the commit to compare with")
    parser.add_argument("files", type=Path, nargs="+", help="images")
    parser.add_argument("--model", default="spinemamba")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--cold", action="store_true", help="a new process for each run")
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    settings = {name: getattr(given, name) for name in ("model", "device", "fast", "cold")}
    with tempfile.TemporaryDirectory() as folder:
        trees = [Tree(root) for root in (given.other, OWN)]
        for path in given.files:
            files = {"input": str(path.resolve()), "output": f"{folder}/labels.nii.gz"}
            compared(trees, settings | files, given.rounds)
        for tree in trees:
            tree.end()


if __name__ == "__main__":
    if sys.argv[1:] == [SERVE]:
        serve()
    else:
        main()
