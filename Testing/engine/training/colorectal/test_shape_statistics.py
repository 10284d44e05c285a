"""Statistics of shapes that are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segmamba.training.colorectal import shape_statistics as shapes
from segmamba.training.colorectal.labels import TUMOUR_LABEL


def test_a_ball_is_a_ball_whatever_the_slices() -> None:
    z, y, x = np.mgrid[:12, :40, :40]
    ball = ((z - 6) * 4.0) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 < 15**2
    result = shapes.shape_statistics(ball, (4.0, 1.0, 1.0))
    assert result["ml"] == pytest.approx(4 / 3 * np.pi * 1.5**3, rel=0.05)
    assert result["extents_mm"] == pytest.approx([28, 28, 28], abs=4)
    assert result["sphericity"] > 0.9 and result["filled"] > 0.93
    assert result["thickest_mm"] == pytest.approx(30, abs=4)


def test_a_ring_is_long_thin_and_hollow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z, y, x = np.mgrid[:20, :40, :40]
    ring = np.hypot(np.hypot(y - 20, x - 20) - 12, z - 10) < 4
    labels = np.where(ring, TUMOUR_LABEL, 0).astype(np.uint8)
    labels[0, 0, 0] = TUMOUR_LABEL  # a speck does not count
    np.savez(tmp_path / "scan.npz", image=np.zeros(labels.shape, np.int16), labels=labels)
    assert shapes.main([str(tmp_path / "scan.npz"), "--spacing", "1"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["file"] == "scan.npz" and row["sphericity"] < 0.7 and row["filled"] < 0.97
    assert row["thickest_mm"] == pytest.approx(8, abs=2)
    (tmp_path / "bad.npz").write_bytes(b"x")
    assert shapes.main([str(tmp_path / "bad.npz")]) != 0
    assert "render_scans" in capsys.readouterr().err
