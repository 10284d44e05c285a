"""Density over the lumbar vertebrae, and the phase of painted scans with and without contrast medium."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.measured_spine import TRABECULAR_HU, Vertebra, painted, turned
from helpers.phantoms import positions

from segmamba.io.volume import Geometry, Volume
from segmamba.measurements.bone_density import calibrated, scanner_check
from segmamba.measurements.vertebrae import flat, masks_of, measure_spine
from segmamba.models.manifest import load_manifest
from segmamba.spine.levels import L1

LABELS = load_manifest().default("vertebrae").labels
SPACING = (2.0, 2.0, 2.0)
NOISE_HU, FAT_HU = 15.0, -100


def scan(aorta_hu: float | None, around_hu: float = 45, levels: int = 4) -> tuple[np.ndarray, Volume]:
    """Return labels and CT of vertebrae from L1 on, with an aorta in front of them to the left, or without one."""
    vertebrae = {L1 + step: Vertebra((0, 0, 100.0 - 34 * step), turned()) for step in range(levels)}
    geometry = Geometry((60, 75, 92), SPACING, (-60.3, -75.2, -40.1), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    labels, ct = painted(vertebrae, geometry)
    array = np.where(ct.array == 40, around_hu, ct.array).astype(float)
    x, y, _ = np.moveaxis(positions(geometry), -1, 0)
    if aorta_hu is not None:
        array[np.hypot(x - 10, y + 32) <= 10] = aorta_hu
    array += np.random.default_rng(0).normal(0, NOISE_HU, array.shape)
    return labels, replace(ct, array=np.round(array).astype(np.int16))


def bone_of(labels: np.ndarray, ct: Volume) -> dict | None:
    return measure_spine(masks_of(labels, ct.geometry, LABELS), ct, {each.value: each.name for each in LABELS})["bone"]


@pytest.mark.parametrize("aorta_hu", [150.0, 350.0], ids=["venous", "arterial"])
def test_contrast_medium_in_the_aorta_is_found(aorta_hu: float) -> None:
    bone = bone_of(*scan(aorta_hu))
    assert bone["phase"] == "contrast" and bone["aorta_hu"] == pytest.approx(aorta_hu, abs=10)


@pytest.mark.parametrize("aorta_hu", [40.0, None], ids=["blood", "muscle only"])
def test_without_contrast_medium_none_is_seen(aorta_hu: float | None) -> None:
    bone = bone_of(*scan(aorta_hu))
    assert (bone["phase"], bone["aorta_hu"]) == ("no contrast seen", None)


def test_what_is_dense_at_one_level_only_is_no_aorta() -> None:
    labels, ct = scan(None)
    x, y, z = np.moveaxis(positions(ct.geometry), -1, 0)
    array = ct.array.copy()
    array[(np.hypot(x - 10, y + 32) <= 12) & (np.abs(z - 66) < 15)] = 300
    assert bone_of(labels, replace(ct, array=array))["phase"] == "no contrast seen"


@pytest.mark.parametrize("levels", [2, 4])
def test_too_little_in_view_is_not_assessed(levels: int) -> None:
    # Fat alone says nothing of blood, and neither do two levels.
    bone = bone_of(*scan(None, around_hu=45 if levels == 2 else FAT_HU, levels=levels))
    assert (bone["phase"], bone["aorta_hu"]) == ("not assessed", None)


def test_density_is_the_mean_of_l1_to_l4_and_there_is_none_on_mr() -> None:
    labels, ct = scan(None)
    bone = bone_of(labels, ct)
    assert bone["lumbar_levels"] == ["L1", "L2", "L3", "L4"] and bone["levels"] == 4
    assert bone["lumbar_hu"] == pytest.approx(TRABECULAR_HU, abs=3) and bone["l1_hu"] == bone["l1_hu"]
    assert bone_of(labels, replace(ct, modality="MR")) is None


def test_density_in_mg_cm3_needs_a_phantom_and_is_its_line() -> None:
    labels, ct = scan(None)
    found = measure_spine(masks_of(labels, ct.geometry, LABELS), ct, {each.value: each.name for each in LABELS})
    assert calibrated(found, None) == found and found["bone"]["calibration"] is None
    assert {flat(row)["trabecular_mg_cm3"] for row in found["measurements"]} == {None}
    after = calibrated(found, (0.8, -5.0))
    for row in after["measurements"]:
        assert flat(row)["trabecular_mg_cm3"] == pytest.approx(0.8 * row["trabecular_hu"] - 5, abs=0.05)
    bone = after["bone"]
    for hu, name in (("lumbar_hu", "lumbar_mg_cm3"), ("mean_hu", "mean_mg_cm3"), ("l1_hu", "l1_mg_cm3")):
        assert bone[name] == pytest.approx(0.8 * bone[hu] - 5, abs=0.05)
    assert bone["calibration"]["slope_mg_cm3_per_hu"] == 0.8 and bone["calibration"]["intercept_mg_cm3"] == -5
    on_mr = {**found, "bone": None}
    assert calibrated(on_mr, (0.8, -5.0)) == on_mr


def with_air_and_fat(fat_hu: float | None) -> np.ndarray:
    """Return a scan with muscle, a layer of fat, air around them, and padding at its corners."""
    _, ct = scan(None)
    x, y, _ = np.moveaxis(positions(ct.geometry), -1, 0)
    array, out = ct.array.astype(float), np.hypot(x, y)
    noise = np.random.default_rng(1).normal(0, NOISE_HU, array.shape)
    if fat_hu is not None:
        array = np.where(out > 40, fat_hu + noise, array)
    array = np.where(out > 52, -1000 + noise, array)
    array[out > 75] = -2048
    return array


def checked(array: np.ndarray) -> dict:
    _, ct = scan(None)
    return scanner_check(replace(ct, array=np.round(array).astype(np.int16)))


def test_air_and_fat_of_a_scan_in_hounsfield_units_are_found_and_right() -> None:
    for fat_hu in (-115, -75):
        found = checked(with_air_and_fat(fat_hu))
        assert (found["air_hu"], found["fat_hu"]) == (pytest.approx(-1000, abs=4), pytest.approx(fat_hu, abs=6))
        assert found["scanner"] is None


def test_a_scan_whose_numbers_are_off_is_told() -> None:
    array = with_air_and_fat(-100)
    assert checked(array * 0.94)["scanner"].startswith("Air has -9")
    assert checked(np.maximum(array, -300) * 2)["scanner"].startswith("Fat has -2")
    assert "do not rely on densities" in checked(array + 60)["scanner"]


def test_without_fat_or_air_none_is_made_up() -> None:
    found = checked(np.maximum(with_air_and_fat(None), -30))
    assert found == {"air_hu": None, "fat_hu": None, "scanner": None}


def test_lung_without_air_beside_it_is_not_taken_for_air() -> None:
    rng = np.random.default_rng(2)
    scan_of_lung = np.where(with_air_and_fat(-100) < -900, rng.normal(-860, 60, with_air_and_fat(-100).shape), 40)
    found = checked(scan_of_lung)
    assert found["air_hu"] is None and found["scanner"] is None
