"""Do the tests notice when the code is changed? Mutations of grids, the way there and back, windows, shape priors.

``python benchmarks/mutation.py``: mutmut (3.8 or later) changes these files in a copy of the tree, one place at a time,
and runs the tests that pass through it. Prints for each file how many changes there were and how many the tests
noticed. It takes 20 to 35 minutes on two cores. ``--only grid windows`` takes some files; ``--folder F`` keeps the
copy, in which ``mutmut show NAME`` shows a change that survived.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# Each file with the tests that are its own.
FILES = {
    "grid": ("segmamba/inference/model_grid.py", ("inference/test_model_grid.py",)),
    "preprocess": ("segmamba/inference/preprocess.py", ("inference/test_preprocess_values.py",)),
    "windows": ("segmamba/inference/windows.py", ("inference/test_windows.py",)),
    "sliding_window": (
        "segmamba/inference/sliding_window.py",
        ("inference/test_sliding_window.py", "inference/test_windows.py"),
    ),
    "blending": ("segmamba/inference/blending.py", ("inference/test_windows.py", "inference/test_sliding_window.py")),
    "shape_prior": ("segmamba/networks/shape_prior.py", ("networks/test_shape_prior.py",)),
    "shape_model": ("segmamba/spine/shape_model.py", ("spine/test_shape_model.py",)),
}
SETTINGS = """
[tool.mutmut]
source_paths = ["segmamba"]
only_mutate = {files}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-p", "no:cacheprovider"]
use_git_change_detection = false
track_dependencies = false
timeout_constant = 10.0

[tool.pytest.ini_options]
addopts = "--import-mode=importlib"
pythonpath = ["tests"]
markers = ["gpu: needs a CUDA device", "slow: takes more than half a minute"]
"""
# What mutmut calls a change that was noticed: the tests failed, hung, or crashed.
NOTICED = {"killed", "timeout", "segfault", "suspicious", "caught by type check"}


def lay_out(folder: Path, names: list[str]) -> None:
    """Copy what the tests need to where mutmut finds it."""
    shutil.copytree(REPOSITORY / "SegMambaSlicer" / "segmamba", folder / "segmamba")
    for part in ("engine", "helpers"):
        shutil.copytree(REPOSITORY / "Testing" / part, folder / "tests" / part)
    shutil.copy(REPOSITORY / "Testing" / "conftest.py", folder / "tests")
    shutil.copytree(REPOSITORY / "Resources", folder / "Resources")
    shutil.copy(REPOSITORY / "weights_manifest.json", folder)
    files = [FILES[name][0] for name in names]
    tests = sorted({f"tests/engine/{test}" for name in names for test in FILES[name][1]})
    settings = SETTINGS.format(files=json.dumps(files), tests=json.dumps(tests))
    (folder / "pyproject.toml").write_text(settings, encoding="utf-8")


def mutate(folder: Path, children: int) -> dict[str, Counter[str]]:
    """Run mutmut and return how many changes of each file ended in which way."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "mutmut"]
    run = [*command, "run", "--max-children", str(children)]
    subprocess.run(run, cwd=folder, env=environment, stdout=sys.stderr, check=False)
    done = subprocess.run(
        [*command, "results", "--all", "true"], cwd=folder, capture_output=True, text=True, check=True
    )
    counts: dict[str, Counter[str]] = {}
    for module, state in re.findall(r"^\s*([\w.]+)\.x\S+: (.+)$", done.stdout, re.MULTILINE):
        counts.setdefault(module, Counter())[state.strip()] += 1
    return counts


def main() -> None:
    """Run as the command line says, and print the counts as JSON."""
    parser = argparse.ArgumentParser(description="Count which changes of the code the tests notice.")
    parser.add_argument("--only", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--children", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "segmamba").exists():
            lay_out(folder, options.only)
        report = {}
        for module, states in mutate(folder, options.children).items():
            judged = sum(states.values()) - states["not checked"] - states["skipped"]
            noticed = sum(states[state] for state in NOTICED)
            share = round(noticed / judged, 3) if judged else None
            report[module] = {**states, "changes": judged, "noticed": noticed, "share": share}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
