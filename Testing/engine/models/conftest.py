"""A store of models of its own for each test that asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of installed models; there is no shared one."""
    monkeypatch.delenv("SEGMAMBA_SHARED_MODELS", raising=False)
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"
