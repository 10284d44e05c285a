"""Do the tests notice when the code is changed? Each change is tried in a process that is forked.

``python benchmarks/mutants.py --part levels --count 60 --seed 1`` changes one place at a time, in memory: a comparison,
an operator, a condition, a constant, a key, a returned value. Prints which changes no test noticed. A change takes
seconds, since nothing is copied or imported again but the engine. Without ``--count`` all places are changed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.machinery
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
ENGINE, TESTS = REPOSITORY / "SegMambaSlicer" / "segmamba", REPOSITORY / "Testing" / "engine"
# Files and the tests that are theirs, from these two folders.
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "levels": {
        "spine/hmm.py": ("spine/test_hmm.py", "spine/test_anchors.py"),
        "spine/anchors.py": ("spine/test_anchors.py",),
        "spine/doubts.py": ("spine/test_doubts.py",),
        "spine/renumber.py": ("spine/test_renumber.py",),
    },
    "report": {
        "reporting/report.py": ("reporting/test_report.py",),
        "reporting/look_first.py": ("reporting/test_look_first.py",),
    },
    "geometry": {
        "io/volume.py": ("io/test_volume.py", "io/test_nifti.py"),
        "io/stored_grid.py": ("io/test_stored_grid.py",),
        "inference/model_grid.py": ("inference/test_model_grid.py",),
    },
    "windows": {
        "inference/preprocess.py": ("inference/test_preprocess_values.py",),
        "inference/windows.py": ("inference/test_windows.py",),
        "inference/blending.py": ("inference/test_windows.py", "inference/test_sliding_window.py"),
        "inference/sliding_window.py": ("inference/test_sliding_window.py", "inference/test_windows.py"),
    },
    "panel": {
        "../SegMambaSlicerLib/messages.py": ("../module/test_messages.py",),
        "../segmamba_mrml/renumber.py": ("../mrml/test_renumber.py", "../mrml/test_anchors.py"),
    },
    "shapes": {
        "networks/shape_prior.py": ("networks/test_shape_prior.py",),
        "spine/shape_model.py": ("spine/test_shape_model.py",),
    },
}
# What tests import besides the engine, once for all changes.
IMPORTED = (
    "hypothesis",
    "nibabel",
    "numpy",
    "pydicom",
    "pytest",
    "scipy.ndimage",
    "scipy.spatial",
    "SimpleITK",
    "torch",
)
LIMIT_SECONDS = 240
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def changed(node: ast.AST) -> ast.AST | None:
    """Return another node for one that can be changed."""
    new: Any = copy.deepcopy(node)
    if isinstance(new, ast.Compare) and type(new.ops[0]) in SWAPS:
        new.ops[0] = SWAPS[type(new.ops[0])]()
    elif isinstance(new, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(new.op) in SWAPS:
        new.op = SWAPS[type(new.op)]()
    elif isinstance(new, ast.UnaryOp) and isinstance(new.op, ast.Not | ast.USub):
        return new.operand  # type: ignore[no-any-return]
    elif isinstance(new, ast.IfExp):
        new.body, new.orelse = new.orelse, new.body
    elif isinstance(new, ast.Constant) and isinstance(new.value, bool):
        new.value = not new.value
    elif isinstance(new, ast.Constant) and isinstance(new.value, int | float):
        new.value += 1
    elif isinstance(new, ast.Constant) and isinstance(new.value, str) and new.value.isidentifier():
        new.value += "_"
    elif isinstance(new, ast.Return) and new.value is not None and ast.unparse(new.value) != "None":
        new.value = ast.Constant(None)
    else:
        return None
    return new  # type: ignore[no-any-return]


def places(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Yield where a function has something to change: parent, field and index; no annotations, texts or docstrings.

    Nor the ``strict`` of a `zip`, which is a check of the code itself.
    """
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.JoinedStr):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or (
                isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            ):
                continue
            within = inside or isinstance(node, ast.FunctionDef)
            if within and changed(child) is not None:
                yield node, name, index
            yield from places(child, within)


def mutant(path: Path, number: int) -> tuple[ast.Module, str]:
    """Return a file with its n-th place changed, and what that is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parent, name, index = list(places(tree))[number]
    holder = getattr(parent, name)
    old = holder if index is None else holder[index]
    new = changed(old)
    assert new is not None
    said = f"{path.relative_to(ENGINE.parent)}:{old.lineno}: {ast.unparse(old)} -> {ast.unparse(new)}"  # type: ignore[attr-defined]
    if index is None:
        setattr(parent, name, new)
    else:
        holder[index] = new
    return ast.fix_missing_locations(tree), said


def notices(path: Path, tree: ast.Module, tests: tuple[str, ...]) -> bool:
    """Run tests with a changed file, in a process of its own, and say whether one fails or none ends."""
    pid = os.fork()
    if pid == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        signal.alarm(LIMIT_SECONDS)
        get_code = importlib.machinery.SourceFileLoader.get_code

        def changed_code(loader: Any, name: str) -> Any:
            return compile(tree, str(path), "exec") if Path(loader.path) == path else get_code(loader, name)

        importlib.machinery.SourceFileLoader.get_code = changed_code  # type: ignore[method-assign]
        import pytest

        os.chdir(REPOSITORY)
        given = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not slow"]
        os._exit(int(pytest.main([*given, *(str(TESTS / test) for test in tests)])))
    _, status = os.waitpid(pid, 0)
    return status != 0


def main() -> None:
    """Run as the command line says, and print the counts as JSON."""
    parser = argparse.ArgumentParser(description="Count which of some random changes the tests notice.")
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--count", type=int, help="how many places, drawn at random; by default all")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for name in IMPORTED:
        __import__(name)
    files = PARTS[options.part]
    found = [(name, k) for name in files for k in range(len(list(places(ast.parse((ENGINE / name).read_text())))))]
    chosen = random.Random(options.seed).sample(found, min(options.count or len(found), len(found)))
    unnoticed = []
    for name, number in chosen:
        path = (ENGINE / name).resolve()
        tree, said = mutant(path, number)
        if not notices(path, tree, files[name]):
            unnoticed.append(said)
            print(said, file=sys.stderr, flush=True)
    noticed = len(chosen) - len(unnoticed)
    share = round(noticed / len(chosen), 3)
    print(json.dumps({"places": len(found), "changes": len(chosen), "noticed": noticed, "share": share}))


if __name__ == "__main__":
    main()
