"""Which vertebrae of a reference count, what bodies are compared with, and versions of a case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.phantoms import (
    OBLIQUE,
    STRAIGHT,
    VERTEBRAE,
    dice,
    grid_around_patient,
    phantom,
    positions,
    rotation,
    true_labels,
)

from segmamba.errors import InputError
from segmamba.evaluation.bodies import compared_parts
from segmamba.evaluation.metrics import centroids, dice_by_label, dice_foreground
from segmamba.evaluation.names import PERTURBATIONS
from segmamba.evaluation.perturbations import KINDS, crop_starts, perturb, slab_weights, thick_labels
from segmamba.evaluation.references import ineligible_reasons, read_reference
from segmamba.io.volume import Geometry, Volume

GRID = grid_around_patient((1.1, 1.2, 2.3), (1.0, 0, 0, 0, -1.0, 0, 0, 0, -1.0))
CUBE = Geometry((80, 90, 100), (1.0, 1.0, 1.0), (-40.0, -45.0, -50.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def test_only_whole_vertebrae_of_over_1000_voxels_count() -> None:
    labels = np.zeros((40, 40, 60), dtype=np.uint8)
    labels[1:11, 1:11, 1:11] = 20
    labels[1:11, 1:11, 20:30], labels[15, 15, 15] = 21, 21
    labels[0:20, 20:35, 40:50] = 22
    labels[20:35, 20:35, 45:60] = 23
    labels[20:35, 2:15, 30:44] = 26
    assert ineligible_reasons(labels) == {
        20: "not over 1,000 voxels",
        21: None,
        22: "at the volume's border",
        23: "at the volume's border",
        26: "not a single vertebra",
    }


def test_totalsegmentators_classes_become_our_labels(tmp_path: Path) -> None:
    classes = np.zeros((4, 4, 60), dtype=np.uint8)
    classes[0, 0, :60] = np.arange(60)
    sitk.WriteImage(sitk.GetImageFromArray(classes), str(tmp_path / "mask.nii.gz"))
    labels = read_reference(tmp_path / "mask.nii.gz", "totalsegmentator").array[0, 0]
    assert labels[25:51].tolist() == [26, 26, *range(24, 19, -1), *range(19, 7, -1), *range(7, 0, -1)]
    assert not labels[:25].any() and not labels[51:].any()


def test_a_reference_without_vertebrae_or_with_fractions_is_refused(tmp_path: Path) -> None:
    array = np.zeros((4, 4, 4), dtype=np.float32)
    for value, ids, sentence in ((60, "totalsegmentator", "reference-ids"), (0.5, "own", "not a label map")):
        array[0, 0, 0] = value
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "mask.nii.gz"))
        with pytest.raises(InputError, match=sentence):
            read_reference(tmp_path / "mask.nii.gz", ids)


def leaning_column(geometry: Geometry, lean: float) -> tuple[np.ndarray, np.ndarray]:
    """Return three bodies (40 mm wide, 30 deep, 22 high, 30 mm from centre to centre) and three whole vertebrae.

    Vertebra 22 is the lowest. The column leans by ``lean`` degrees towards the back as it goes up; arches begin at
    the bodies' posterior walls.
    """
    angle = np.radians(lean)
    up, back = np.array([0, np.sin(angle), np.cos(angle)]), np.array([0, np.cos(angle), -np.sin(angle)])
    points = positions(geometry) - [0.0, -12.0, 0.0]
    x, depth, height = points[..., 0], points @ back, points @ up
    bodies, whole = np.zeros((2, *geometry.size[::-1]), dtype=np.uint8)
    for value, place in ((20, 30), (21, 0), (22, -30)):
        along = np.abs(height - place) <= 11
        bodies[along & (np.abs(x) <= 20) & (np.abs(depth) <= 15)] = value
        whole[along & (np.abs(x) <= 20) & (depth >= -15) & (depth <= 15)] = value
        whole[along & (np.abs(x) >= 12) & (np.abs(x) <= 18) & (depth > 15) & (depth <= 40)] = value
        whole[along & (np.abs(x) <= 18) & (depth > 40) & (depth <= 50)] = value
    return bodies, whole


@pytest.mark.parametrize("lean", [0, 25])
def test_an_arch_is_not_held_against_us_where_the_reference_has_bodies_only(lean: float) -> None:
    bodies, whole = leaning_column(CUBE, lean)
    assert dice_foreground(whole, bodies) < 0.8
    compared, covered = compared_parts(whole, bodies, CUBE)
    # Half a voxel of the arch at most.
    assert min(dice_by_label(compared, bodies).values()) > 0.98
    assert dice_foreground(covered, bodies) > 0.98


@pytest.mark.parametrize("shift", [(0, -12, 0), (9, 0, 0), (-9, 0, 0), (0, 0, 6), (0, 0, -6)])
def test_too_much_in_front_of_the_posterior_wall_counts_in_full(shift: tuple[int, int, int]) -> None:
    bodies, whole = leaning_column(CUBE, 10)
    moved = np.roll(bodies, shift[::-1], axis=(0, 1, 2))
    too_much = np.where(whole > 0, whole, moved)
    expected = dice_by_label(np.where(bodies > 0, bodies, moved), bodies)
    measured = dice_by_label(compared_parts(too_much, bodies, CUBE)[0], bodies)
    assert max(expected.values()) < 0.92
    assert measured == pytest.approx(expected, abs=0.015)


def test_what_a_body_lacks_counts_in_full_too() -> None:
    bodies, whole = leaning_column(CUBE, 10)
    without_back = np.where(np.roll(bodies, -8, axis=1) > 0, bodies, 0).astype(np.uint8)
    compared, _ = compared_parts(without_back, bodies, CUBE)
    assert np.array_equal(compared, without_back)


def test_a_vertebra_that_the_reference_leaves_out_is_not_held_against_us() -> None:
    bodies, whole = leaning_column(CUBE, 0)
    two = np.where(bodies == 20, 0, bodies).astype(np.uint8)
    compared, covered = compared_parts(whole, two, CUBE)
    assert (compared == 20).any() and not (covered == 20).any()
    assert dice_foreground(covered, two) > 0.98


def test_a_wrong_number_stays_wrong_with_bodies() -> None:
    bodies, whole = leaning_column(CUBE, 0)
    wrong = np.where(whole > 0, whole + 1, 0).astype(np.uint8)
    assert max(dice_by_label(compared_parts(wrong, bodies, CUBE)[0], bodies).values()) < 0.1


@pytest.fixture(scope="module")
def case() -> tuple[Volume, Volume]:
    return phantom(GRID), Volume(true_labels(GRID), GRID)


def test_every_version_has_a_name_and_a_maker() -> None:
    assert tuple(KINDS) == PERTURBATIONS


@pytest.mark.parametrize("kind", ["thick", "noise", "storage", "oblique"])
def test_a_version_shows_the_same_patient(kind: str, case: tuple[Volume, Volume]) -> None:
    (version,) = perturb(kind, *case, {20: None, 21: None, 22: None})
    grid = version.image.geometry
    assert version.reference.geometry == grid and version.image.array.shape == version.reference.array.shape
    assert version.image.array.dtype == np.int16
    truth = true_labels(grid)
    places = centroids(version.reference.array, grid)
    for value, place in VERTEBRAE.items():
        assert dice(version.reference.array == value, truth == value) > 0.92
        assert places[value] == pytest.approx(place, abs=1.0)
        # Bone where the reference says so: the image went the same way.
        assert version.image.array[(version.reference.array == value) & (truth == value)].mean() > 400
    if kind == "storage":
        assert not np.array_equal(grid.direction, case[0].geometry.direction)
        assert np.count_nonzero(version.reference.array) == np.count_nonzero(case[1].array)


def test_thick_slices_are_5_mm_along_the_patient_and_averages(case: tuple[Volume, Volume]) -> None:
    (version,) = perturb("thick", *case, {})
    assert version.image.geometry.spacing == (1.1, 1.2, 5.0)
    weights = slab_weights(7, 2.0, 5.0)
    assert weights == pytest.approx(
        np.array([[2, 2, 1, 0, 0, 0, 0], [0, 0, 1, 2, 2, 0, 0], [0, 0, 0, 0, 0, 5, 5]]) / [[5], [5], [10]]
    )
    labels = np.array([1, 1, 2, 2, 0, 0, 3], dtype=np.uint8)[:, None, None]
    assert thick_labels(labels, weights, 0).ravel().tolist() == [1, 2, 3]


def test_sagittal_slices_are_4_5_mm_from_left_to_right(case: tuple[Volume, Volume]) -> None:
    (version,) = perturb("sagittal", *case, {20: None, 21: None, 22: None})
    grid = version.image.geometry
    axis = int(np.argmax(grid.spacing))
    assert grid.spacing[axis] == 4.5
    assert int(np.abs(np.reshape(grid.direction, (3, 3))[:, axis]).argmax()) == 0
    places = centroids(version.reference.array, grid)
    for value, place in VERTEBRAE.items():
        assert places[value] == pytest.approx(place, abs=1.5)


@pytest.mark.parametrize(("kind", "count"), [("crop", 5), ("crop7", 7), ("crop9", 9)])
def test_crops_show_as_many_vertebrae_as_their_name_says(kind: str, count: int) -> None:
    labels = np.zeros((160, 12, 12), dtype=np.uint8)
    for number in range(12):
        labels[150 - 12 * number : 158 - 12 * number, 2:10, 2:10] = 8 + number
    geometry = Geometry((12, 12, 160), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), STRAIGHT.direction)
    image = Volume(labels.astype(np.int16), geometry)
    crops = list(perturb(kind, image, Volume(labels, geometry), dict.fromkeys(range(8, 20))))
    assert len(crops) == 3
    assert all(len(np.unique(crop.reference.array)) == 1 + count for crop in crops)
    assert crops[0].name == f"{kind} 8-{7 + count}" and crops[-1].name == f"{kind} {20 - count}-19"


def test_slices_that_are_thick_already_are_left_alone() -> None:
    geometry = grid_around_patient((1.5, 1.5, 6.0), rotation(0, 0))
    assert list(perturb("thick", phantom(geometry), Volume(true_labels(geometry), geometry), {})) == []


def test_noise_is_60_hu_and_repeats_with_its_seed(case: tuple[Volume, Volume]) -> None:
    def noisy(seed: int) -> np.ndarray:
        (version,) = perturb("noise", *case, {}, seed)
        return version.image.array

    difference = noisy(3).astype(float) - case[0].array
    assert difference.std() == pytest.approx(60, rel=0.02) and abs(difference.mean()) < 1
    assert np.array_equal(noisy(3), noisy(3)) and not np.array_equal(noisy(3), noisy(4))


def test_crops_show_five_whole_vertebrae_and_cut_ones_do_not_count() -> None:
    labels = np.zeros((100, 20, 20), dtype=np.uint8)
    for number in range(7):
        labels[90 - 12 * number : 99 - 12 * number, 5:15, 5:15] = 8 + number
        # Spines reach down to the next vertebra, as in the chest.
        labels[85 - 12 * number : 90 - 12 * number, 16:18, 8:12] = 8 + number
    geometry = Geometry((20, 20, 100), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), STRAIGHT.direction)
    image = Volume(labels.astype(np.int16) * 30, geometry)
    crops = list(perturb("crop", image, Volume(labels, geometry), dict.fromkeys(range(8, 15))))
    assert [crop.name for crop in crops] == ["crop 8-12", "crop 9-13", "crop 10-14"]
    middle = crops[1]
    assert [
        value for value, reason in middle.reasons.items() if reason is None and value in middle.reference.array
    ] == [*range(9, 14)]
    assert middle.reasons[8] == "cut by the crop"
    # Two slices of margin, and every voxel at its place.
    assert middle.reference.array.shape == (2 + 62 + 2, 20, 20)
    assert middle.image.geometry.origin == (0.0, 0.0, 2.0 * (25 - 2))
    assert np.array_equal(middle.image.array // 30, middle.reference.array)


def test_too_few_whole_vertebrae_give_no_crop() -> None:
    assert crop_starts(dict.fromkeys([1, 2, 3, 4, 6, 7]), 5) == []
    assert crop_starts(dict.fromkeys(range(1, 6)) | {6: "at the volume's border"}, 5) == [1]
    assert crop_starts(dict.fromkeys(range(1, 20)), 5) == [1, 8, 15]
    assert crop_starts(dict.fromkeys(range(1, 20)), 7) == [1, 7, 13]
    # None across a T13, where the numbers do not follow each other.
    assert crop_starts(dict.fromkeys([*range(15, 25), 28]), 5) == [15, 20]


def test_an_oblique_grid_holds_the_whole_volume() -> None:
    volume = phantom(OBLIQUE)
    (version,) = perturb("oblique", volume, Volume(true_labels(OBLIQUE), OBLIQUE), {})
    assert np.count_nonzero(version.reference.array) == pytest.approx(np.count_nonzero(true_labels(OBLIQUE)), rel=0.02)
    assert version.image.array.min() == volume.array.min()
