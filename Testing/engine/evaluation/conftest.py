"""What all tests of evaluations share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pictures show is tested elsewhere, and drawing them at their full size takes most of an evaluation."""
    monkeypatch.setattr("segmamba.reporting.slice_planes.LONGEST_SIDE", 150)
    monkeypatch.setattr("segmamba.reporting.preview.PIXELS_PER_INCH", 25)
