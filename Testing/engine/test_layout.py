"""What a reader of the tree may rely on: few modules beside the packages, and functions with few arguments."""

from __future__ import annotations

import ast
from pathlib import Path

from helpers.repository import PACKAGES

ENGINE = PACKAGES / "segmamba"
MOST_MODULES, MOST_ARGUMENTS = 6, 7
# A kernel's or a network's arguments are its mathematics.
MATHEMATICS = ("networks", "scan", "fast")


def _public_functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    holders = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    functions = [node for holder in holders for node in holder.body if isinstance(node, ast.FunctionDef)]
    return [node for node in functions if not node.name.startswith("_")]


def test_few_modules_lie_beside_the_packages() -> None:
    modules = sorted(path.name for path in ENGINE.glob("*.py") if not path.name.startswith("__"))
    assert len(modules) <= MOST_MODULES, modules


def test_no_public_function_takes_more_than_seven_arguments() -> None:
    long = [
        f"{path.relative_to(PACKAGES)}: {function.name}"
        for path in sorted(PACKAGES.rglob("*.py"))
        if path.relative_to(ENGINE if path.is_relative_to(ENGINE) else PACKAGES).parts[0] not in MATHEMATICS
        for function in _public_functions(path)
        if len([each for each in (*function.args.posonlyargs, *function.args.args) if each.arg not in ("self", "cls")])
        + len(function.args.kwonlyargs)
        > MOST_ARGUMENTS
    ]
    assert not long
