"""The examples in docstrings are right."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest
from helpers.repository import PACKAGES

ENGINE = PACKAGES / "segmamba"


def with_examples() -> list[str]:
    """Return the modules of the engine whose docstrings have examples."""
    files = [path for path in sorted(ENGINE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    names = [".".join(path.relative_to(PACKAGES).with_suffix("").parts) for path in files]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("name", with_examples())
def test_the_examples_of_a_module_are_right(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(import_module(name))
    assert tried and not failed


def test_what_is_public_has_an_example() -> None:
    public = {"segmamba", "segmamba.api", "segmamba.io.read", "segmamba.io.volume", "segmamba.models.manifest"}
    assert public <= set(with_examples())
