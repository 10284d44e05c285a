"""Curves, discs and slips of columns whose angles are known."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.measured_spine import Vertebra, painted, turned

from segmamba.io.volume import Geometry
from segmamba.measurements.alignment import CURVES
from segmamba.measurements.vertebrae import masks_of, measure_spine
from segmamba.models.manifest import load_manifest
from segmamba.spine.levels import L1, L5, SACRUM, T12

LABELS = load_manifest().default("vertebrae").labels
SPACING = (1.0, 1.0, 1.0)
SMALL = {"anterior": 20.0, "posterior": 20.0, "depth": 28.0, "width": 36.0}
# Kyphosis and lordosis: how far each body leans backwards, T4 to the sacrum, and their centres in front.
T4 = 11
LEANS = {
    level: float(lean)
    for level, lean in zip(range(T4, L5 + 1), [-20, -16, -12, -7, -2, 3, 8, 12, 15, 12, 5, -4, -14, -24], strict=True)
}
LEANS[SACRUM] = -38.0


def spine(
    leans: dict[int, float], coronal: dict[int, float], step: float = 27.0
) -> tuple[dict[int, Vertebra], Geometry]:
    """Return vertebrae that stand on each other as they lean, and a grid around them."""
    found, centre, before = {}, np.zeros(3), None
    for level in sorted(leans):
        axes = turned(leans[level], coronal.get(level, 0.0))
        if before is not None:
            centre = centre - step / 2 * (before[0] + axes[0])
        found[level], before = Vertebra(tuple(centre.tolist()), axes, **SMALL), axes
    centres = np.array([vertebra.centre for vertebra in found.values()])
    low, high = centres.min(axis=0) - [42, 32, 32], centres.max(axis=0) + [42, 75, 32]
    size = np.ceil((high - low) / SPACING).astype(int).tolist()
    return found, Geometry(tuple(size), SPACING, tuple(low.tolist()), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def curves_of(vertebrae: dict[int, Vertebra], geometry: Geometry) -> tuple[list[dict], dict[str, dict]]:
    labels, ct = painted(vertebrae, geometry)
    masks = masks_of(labels, geometry, LABELS)
    found = measure_spine(masks, ct, {label.value: label.name for label in LABELS})
    rows, curves = found["measurements"], found["curves"]
    assert tuple(curve["name"] for curve in curves) == CURVES
    return rows, {curve["name"]: curve for curve in curves}


def test_kyphosis_lordosis_and_sacral_slope_are_those_of_the_plates() -> None:
    _, curves = curves_of(*spine(LEANS, {}))
    kyphosis, lordosis, slope = (curves[name] for name in ("thoracic_kyphosis", "lumbar_lordosis", "sacral_slope"))
    assert kyphosis["angle_deg"] == pytest.approx(LEANS[T12] - LEANS[T4], abs=1)
    assert (kyphosis["upper"], kyphosis["lower"]) == ("T4", "T12")
    assert lordosis["angle_deg"] == pytest.approx(LEANS[L1] - LEANS[SACRUM], abs=1)
    assert (lordosis["upper"], lordosis["lower"]) == ("L1", "sacrum")
    assert slope["angle_deg"] == pytest.approx(38, abs=1)
    assert abs(curves["coronal_cobb"]["angle_deg"]) < 1


@pytest.mark.parametrize("side", [1, -1])
def test_the_largest_coronal_curve_and_its_ends(side: int) -> None:
    # From T10 down: the bodies lean to the right and then to the left.
    tilts = dict(zip(range(17, 24), [-4.0, -14.0, -9.0, 0.0, 8.0, 13.0, 5.0], strict=True))
    coronal = {level: side * tilt for level, tilt in tilts.items()}
    cobb = curves_of(*spine(dict.fromkeys(tilts, 0.0), coronal))[1]["coronal_cobb"]
    assert cobb["angle_deg"] == pytest.approx(side * 27, abs=1)
    assert (cobb["upper"], cobb["lower"]) == ("T11", "L3")


def test_a_leaning_patient_has_no_curves() -> None:
    leans = dict.fromkeys(range(L1, L5 + 1), 14.0)
    _, curves = curves_of(*spine(leans, dict.fromkeys(leans, 9.0)))
    assert curves["lumbar_lordosis"]["angle_deg"] == pytest.approx(0, abs=1)
    assert curves["lumbar_lordosis"]["lower"] == "L5"
    assert curves["coronal_cobb"]["angle_deg"] == pytest.approx(0, abs=1)


def test_what_is_not_in_view_has_no_angle_and_says_so() -> None:
    _, curves = curves_of(*spine({L1: 0.0, L1 + 1: 0.0}, {}))
    assert [curve["angle_deg"] for curve in curves.values()] == [None] * 4
    assert curves["thoracic_kyphosis"]["note"] == "T4 and T12 cannot be measured."
    assert curves["coronal_cobb"]["note"] == "Fewer than 3 vertebrae can be measured."


@pytest.mark.parametrize("turn", [(0, 0, 0), (10, -12, 8)], ids=["upright", "turned"])
def test_discs_and_slips_between_neighbours(turn: tuple[float, float, float]) -> None:
    axes = turned(*turn)
    # 32 mm apart: a disc of 6 mm; the upper one lies 7 mm in front.
    centres = 16 * axes[0] - 7 * axes[1], -16 * axes[0]
    vertebrae = {
        level: Vertebra(tuple(centre.tolist()), axes) for level, centre in zip((L1, L1 + 1), centres, strict=True)
    }
    geometry = Geometry((120, 130, 120), SPACING, (-60.3, -45.1, -60.2), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    (row, last), _ = curves_of(vertebrae, geometry)
    assert row["slip_mm"] == pytest.approx(7, abs=0.8) and row["slip_percent"] == pytest.approx(22, abs=3)
    assert [row[f"disc_{place}_mm"] for place in ("anterior", "middle", "posterior")] == pytest.approx([6] * 3, abs=0.6)
    assert row["disc_angle_deg"] == pytest.approx(0, abs=1)
    assert last["slip_mm"] is None and last["disc_angle_deg"] is None


def test_a_disc_that_is_higher_in_front_is_lordotic() -> None:
    vertebrae = {L1: Vertebra((0, 0, 17.0), turned(5)), L1 + 1: Vertebra((0, 0, -17.0), turned(-4))}
    geometry = Geometry((100, 120, 110), SPACING, (-50.3, -40.1, -55.2), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    row = curves_of(vertebrae, geometry)[0][0]
    assert row["disc_angle_deg"] == pytest.approx(-9, abs=1)
    assert row["disc_anterior_mm"] > row["disc_posterior_mm"] + 3
