"""The degraded test set: what is done to an image is what is said, and the mask stays the truth."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.repository import REPOSITORY

from segmamba.io.read import read_image
from segmamba.io.volume import Geometry, Volume, to_image

GRID = Geometry((44, 48, 60), (1.5, 1.5, 1.5), (-33.0, -40.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
BONE, FLESH, CANAL_RADIUS, HEIGHT = 350, 40, 8.0, 21.0


@pytest.fixture(scope="module")
def degraded() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        import degraded

        yield degraded
        sys.modules.pop("degraded")


@pytest.fixture
def case(degraded: ModuleType) -> object:
    """Three rings of bone round a canal, with a body in front (smaller y), 9 mm apart."""
    z, y, x = np.meshgrid(
        *(np.arange(n) * 1.5 + o for n, o in zip((60, 48, 44), (0, -40, -33), strict=True)), indexing="ij"
    )
    radius = np.hypot(x, y)
    body = np.hypot(x, y + 20) < 15
    shape = (body | (radius < CANAL_RADIUS + 5)) & ~(radius < CANAL_RADIUS)
    labels = np.zeros(x.shape, np.uint8)
    for level, low in ((22, 3.0), (21, 33.0), (20, 63.0)):
        labels[shape & (z >= low) & (z < low + HEIGHT)] = level
    array = np.where(labels > 0, BONE, FLESH).astype(np.int16)
    return degraded.Case(Volume(array, GRID, "CT"), Volume(labels, GRID), "CT")


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("thickness", [3.0, 5.0, 7.0])
def test_slices_are_as_thick_as_said_and_lie_in_place(degraded: ModuleType, case: object, thickness: float) -> None:
    made = degraded.degrade(case, f"thick{thickness:g}", rng())
    assert made.image.geometry.spacing == (1.5, 1.5, thickness) and made.reference is case.reference
    # The first slice begins at the outer face of the first voxel, and a ramp keeps its values.
    assert made.image.geometry.origin[2] - thickness / 2 == pytest.approx(GRID.origin[2] - 0.75)
    height = np.broadcast_to(np.arange(60, dtype=np.float32)[:, None, None] * 1.5, case.image.array.shape)
    ramp = degraded.in_slices(replace(case, image=replace(case.image, array=height)), 0, thickness).image
    middle = slice(3, -3)
    positions = ramp.geometry.origin[2] + thickness * np.arange(len(ramp.array))
    np.testing.assert_allclose(ramp.array[middle, 0, 0], positions[middle], atol=0.05)
    # An edge is as wide as the profile: from 12 to 88 % within its full width at half maximum.
    weights = degraded.profile_weights(600, 0.1, thickness)[3]
    inside = weights[np.abs((np.arange(600) + 0.5) * 0.1 - 3.5 * thickness) < thickness / 2].sum()
    assert inside == pytest.approx(0.761, abs=0.01)


def test_noise_has_the_strength_that_its_name_says_and_is_the_same_again(degraded: ModuleType, case: object) -> None:
    for hounsfield in (40, 120):
        made = degraded.degrade(case, f"noise{hounsfield}", rng())
        assert np.std(made.image.array - case.image.array) == pytest.approx(hounsfield, rel=0.02)
    again = degraded.degrade(case, "noise120", rng())
    np.testing.assert_array_equal(made.image.array, again.image.array)


def test_canal_is_what_a_vertebra_surrounds_and_contrast_fills_it(degraded: ModuleType, case: object) -> None:
    box, canal = degraded.canal_of(case.reference, 21)
    area = canal.sum(axis=(1, 2)).max() * 2.25
    assert area == pytest.approx(np.pi * CANAL_RADIUS**2, rel=0.1) and not canal[case.reference.array[box] > 0].any()
    made = degraded.degrade(case, "contrast", rng())
    changed = made.image.array != case.image.array
    assert not changed[case.reference.array > 0].any()
    column = case.reference.array.any(axis=(1, 2))
    heights = np.flatnonzero(changed.any(axis=(1, 2)))
    # From the first to the last vertebra, also between them.
    assert set(heights) == set(range(np.flatnonzero(column)[0], np.flatnonzero(column)[-1] + 1))
    assert made.image.array[changed].max() > 200


def test_screws_lie_in_the_bone_beside_the_canal_and_streaks_darken_it(degraded: ModuleType, case: object) -> None:
    made = degraded.degrade(case, "metal", rng())
    metal = np.argwhere(made.image.array >= 2900)
    x = metal[:, 2] * 1.5 - 33
    assert len(metal) > 100 and (np.abs(x) > 3).all() and (x > 0).any() and (x < 0).any()
    levels = set(np.unique(case.reference.array[made.image.array >= 2900])) - {0}
    assert levels and levels < {20, 21, 22}
    for level in levels:
        box, canal = degraded.canal_of(case.reference, level)
        assert made.image.array[box][canal].min() < FLESH - 300
    # The other vertebrae are as they were.
    for level in {20, 21, 22} - levels:
        np.testing.assert_array_equal(made.image.array[case.reference.array == level], BONE)


def test_a_third_of_the_end_vertebrae_is_outside_and_not_asked_for(degraded: ModuleType, case: object) -> None:
    made = degraded.degrade(case, "cut", rng())
    counts, before = (np.bincount(labels.array.ravel(), minlength=23) for labels in (made.reference, case.reference))
    assert counts[21] == before[21]
    for level in (20, 22):
        assert counts[level] / before[level] == pytest.approx(2 / 3, abs=0.04)
    assert made.image.array.shape[0] < 60 and made.reference.geometry == GRID


def test_what_does_not_suit_a_modality_is_not_made(degraded: ModuleType, case: object) -> None:
    mr = replace(case, modality="MR")
    assert all(degraded.degrade(mr, kind, rng()) is None for kind in ("metal", "contrast", "noise40"))
    assert degraded.degrade(case, "sagittal", rng()) is None
    made = degraded.degrade(mr, "sagittal", rng())
    assert 4 <= made.image.geometry.spacing[0] <= 5 and made.image.geometry.spacing[1:] == (1.5, 1.5)


def test_scores_are_of_the_fine_grid_and_count_bone_in_the_canal(degraded: ModuleType, case: object) -> None:
    labels = case.reference.array.copy()
    perfect = degraded.scores(labels, case.reference)
    assert set(perfect) == {"L1", "L2", "L3"}
    assert perfect["L2"] == {"dice": 1.0, "assd_mm": 0.0, "matched_assd_mm": 0.0, "canal": 0.0}
    box, canal = degraded.canal_of(case.reference, 21)
    labels[box][canal] = 21
    found = degraded.scores(labels, case.reference)
    assert found["L2"]["canal"] == pytest.approx(canal.sum() / (case.reference.array == 21).sum())
    assert found["L2"]["dice"] < 1 and found["L1"]["canal"] == 0
    labels[labels == 20] = 0
    assert degraded.scores(labels, case.reference)["L1"]["assd_mm"] > 50


def test_matched_surface_distance_does_not_depend_on_the_level(degraded: ModuleType, case: object) -> None:
    labels = case.reference.array.copy()
    labels[labels == 22] = 0
    labels[labels > 0] += 1
    found = degraded.scores(labels, case.reference)
    assert found["L1"]["assd_mm"] > 10 and found["L2"]["dice"] == 0
    assert [found[name]["matched_assd_mm"] for name in ("L1", "L2", "L3")] == [0.0, 0.0, degraded.MISSED_MM]


def test_files_hold_what_was_made_and_differences_are_paired(
    degraded: ModuleType, case: object, tmp_path: Path
) -> None:
    pairs, out = tmp_path / "pairs", tmp_path / "out"
    pairs.mkdir()
    sitk.WriteImage(to_image(case.image.array, GRID), str(pairs / "a_ct.nii.gz"))
    sitk.WriteImage(to_image(case.reference.array, GRID), str(pairs / "a_vertebrae.nii.gz"))
    degraded._make(
        argparse.Namespace(first=pairs, second=out, kinds="thick7,sagittal", part="0/1", reference_ids="own", seed=0)
    )
    assert {path.name for path in out.iterdir()} == {
        f"a-{kind}_{what}.nii.gz" for kind in ("clean", "thick7") for what in ("ct", "vertebrae")
    }
    thick, reference = read_image(out / "a-thick7_ct.nii.gz"), read_image(out / "a-thick7_vertebrae.nii.gz")
    assert thick.geometry.spacing[2] == pytest.approx(7) and reference.geometry.size == GRID.size
    rows = [
        [{"case": f"{n}-thick7", "levels": {"L1": {"dice": d, "assd_mm": 1.0, "canal": 0.0}}} for n, d in pair]
        for pair in ([("a", 0.8), ("b", 0.6)], [("b", 0.7), ("a", 0.85), ("c", 0.1)])
    ]
    found = degraded.differences(*json.loads(json.dumps(rows)))["thick7"]["dice"]
    assert found["cases"] == 2 and found["difference"] == pytest.approx(0.075)
    assert found["interval"][0] == pytest.approx(0.05) and found["interval"][1] == pytest.approx(0.1)
