"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from segmamba.manifest import Manifest, load_manifest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data beside the repository; a test that needs them is skipped where they are not."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data are not here")
    return folder


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """The list of models that comes with the software."""
    return load_manifest()
