"""Vertebrae of the shape model that lose height by a known part: their heights, grades, and what is not judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from helpers.broken_spine import Whole, sampled, true_heights, whole
from helpers.phantoms import rotation
from scipy import ndimage

from segmamba.io.volume import Geometry, Volume
from segmamba.measurements import fractures
from segmamba.measurements.end_plates import end_plates
from segmamba.measurements.fractures import LARGEST_TORN, TORN, is_graded, losses
from segmamba.measurements.heights import Heights, heights_of
from segmamba.measurements.vertebrae import COLUMNS, IMPLANT, flat, measure
from segmamba.measurements.vertebral_body import Mask, find_body
from segmamba.models.resources import SHAPES, resource_root
from segmamba.spine.grades import grade_of
from segmamba.spine.levels import DISTANCES_MM, L1, L4, L5, L6, ORDER, T12, T13, level_name
from segmamba.spine.shape_model import load_shapes, region_of
from segmamba.utils.morphology import connected_components

LEVELS = tuple(range(T12, L4 + 1))
BROKEN, T4 = L1, 11
UP = np.array([0.0, 0.0, 1.0])
POSE = np.reshape(rotation(12, -8), (3, 3))
FINE, THICK = (0.8, 0.8, 1.0), (0.8, 0.8, 5.0)


def modelled(level: int) -> Mask:
    """Return the shape model's mean of a level, in voxels of about 1 mm, where it is in a straight column."""
    model = load_shapes(resource_root() / SHAPES)
    half = model.half_extents[region_of(level)]
    mean = model.means[level - 1]
    fine = ndimage.zoom(mean, 2 * half / (np.array(mean.shape) - 1), order=1)
    to_lps = np.diag([*(2 * half / (np.array(fine.shape) - 1))[::-1], 1.0])
    to_lps[:3, 3] = -half[::-1] - [0, 0, DISTANCES_MM[T12 - 1 : level - 1].sum()]
    return Mask(fine < 0, to_lps)


@pytest.fixture(scope="module")
def column() -> dict[int, Whole]:
    found = {level: whole(modelled(level), UP) for level in LEVELS}
    return {level: vertebra for level, vertebra in found.items() if vertebra is not None}


@pytest.fixture(scope="module")
def masks(column: dict[int, Whole]) -> dict[int, Mask]:
    """The whole column in a pose, in voxels of 0.8 x 0.8 x 1 mm."""
    return {level: sampled(vertebra, POSE, FINE) for level, vertebra in column.items()}


@pytest.fixture(scope="module")
def heights(masks: dict[int, Mask]) -> dict[int, Heights]:
    return {level: measured(mask) for level, mask in masks.items()}


def measured(mask: Mask) -> Heights:
    body = find_body(mask, POSE @ UP)
    plates = None if body is None else end_plates(body, mask)
    assert body is not None and plates is not None
    return heights_of(body, plates, mask)


def test_what_the_shape_model_draws_has_lost_nothing(heights: dict[int, Heights]) -> None:
    found = losses(heights)
    assert sorted(found) == list(LEVELS)
    assert [loss.grade for loss in found.values()] == [0] * len(LEVELS)
    assert all(loss.shape == "" and loss.part < 0.12 for loss in found.values())


@pytest.mark.parametrize("kind", ["anterior", "middle", "posterior", "left", "anterior rim", "crush"])
def test_heights_and_grade_of_a_known_loss(kind: str, column: dict[int, Whole], heights: dict[int, Heights]) -> None:
    broken = sampled(column[BROKEN], POSE, FINE, (kind, 0.45), np.random.default_rng(0))
    found = measured(broken)
    truth = true_heights(column[BROKEN], kind, 0.45)
    # The surface has noise of 0.4 mm, and says so. A loss at the rim alone makes the plate steep where it is read.
    assert (np.abs(found.mm - truth) <= 3 * found.sd).all() and found.sd.max() < 1.6
    assert np.abs(found.mm - truth).mean() < (0.9 if kind == "anterior rim" else 0.6)
    loss = losses({**heights, BROKEN: found})[BROKEN]
    exact = losses({**heights, BROKEN: replace(found, mm=truth)})[BROKEN]
    assert loss.grade == exact.grade and loss.grade in (2, 3)
    assert loss.part == pytest.approx(0.45 * (0.85 if kind == "left" else 1), abs=0.08)
    shapes = {"anterior": "wedge", "anterior rim": "wedge", "middle": "biconcave", "posterior": "posterior wedge"}
    assert loss.shape == {**shapes, "left": "lateral wedge", "crush": "crush"}[kind]


def test_rims_beside_a_deep_hollow_stay_at_the_bone(column: dict[int, Whole]) -> None:
    found = measured(sampled(column[BROKEN], POSE, FINE, ("middle", 0.65)))
    assert found.mm == pytest.approx(true_heights(column[BROKEN], "middle", 0.65), abs=1.2)


def test_grades_are_those_of_genant() -> None:
    assert [grade_of(part) for part in (-0.1, 0.19, 0.2, 0.24, 0.25, 0.39, 0.4, 0.9)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_only_levels_with_a_norm_are_graded(heights: dict[int, Heights]) -> None:
    assert [level for level in ORDER if is_graded(level)] == [*range(T4, T12 + 1), T13, *range(L1, L5 + 1)]
    found = losses({L6 if level == L4 else level: each for level, each in heights.items()})
    assert L6 not in found and set(found) == set(LEVELS) - {L4}


def test_a_crushed_neighbour_does_not_lower_what_is_expected(heights: dict[int, Heights]) -> None:
    crushed = replace(heights[BROKEN], mm=heights[BROKEN].mm * 0.5)
    before, after = losses(heights), losses({**heights, BROKEN: crushed})
    assert after[BROKEN].grade == 3 and after[BROKEN].shape == "crush"
    for level in set(LEVELS) - {BROKEN}:
        assert after[level].expected_mm == pytest.approx(before[level].expected_mm, rel=0.02)


def test_small_and_large_people_have_no_fractures(heights: dict[int, Heights]) -> None:
    for size in (0.75, 1.25):
        scaled = {level: replace(each, mm=each.mm * size) for level, each in heights.items()}
        assert {loss.grade for loss in losses(scaled).values()} == {0}


def test_a_vertebra_alone_is_not_judged_by_its_size(heights: dict[int, Heights]) -> None:
    crushed = replace(heights[BROKEN], mm=heights[BROKEN].mm * 0.7)
    alone = losses({BROKEN: crushed})[BROKEN]
    # Its places agree with each other: nothing tells a crushed body from a small one, and the range says so.
    assert alone.grade is None or alone.lowest < alone.highest


def test_thick_slices_widen_the_range(column: dict[int, Whole]) -> None:
    thin, thick = (measured(sampled(column[BROKEN], np.eye(3), spacing)) for spacing in (FINE, THICK))
    assert (thick.sd > 2 * thin.sd).all()
    assert (np.abs(thick.mm - column[BROKEN].heights) <= 3 * thick.sd).all()


def in_volume(masks: Mapping[int, Mask], **fields: object) -> Volume:
    """Return an empty image around masks, with some room."""
    ends = np.concatenate(
        [mask.to_lps[:3, 3] + np.outer([0, 1], np.multiply(mask.array.shape[::-1], FINE)) for mask in masks.values()]
    )
    first, size = ends.min(axis=0) - 10, np.ceil((np.ptp(ends, axis=0) + 20) / 2).astype(int)
    geometry = Geometry(tuple(size.tolist()), (2.0, 2.0, 2.0), tuple(first.tolist()), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    return Volume(np.zeros(size[::-1], np.int16), geometry, **fields)


def named(masks: Mapping[int, Mask]) -> dict[int, str]:
    return {level: level_name(level) for level in masks}


def test_the_table_says_the_same_as_the_loss(masks: dict[int, Mask], column: dict[int, Whole]) -> None:
    all_masks = {**masks, BROKEN: sampled(column[BROKEN], POSE, FINE, ("anterior", 0.5))}
    rows = measure(all_masks, in_volume(all_masks, modality="MR"), named(all_masks))
    row = {each["value"]: each for each in rows}[BROKEN]
    assert (row["fracture_grade"], row["fracture_shape"], row["height_loss_place"]) == (3, "wedge", "anterior")
    assert row["fracture_grade_lowest"] <= 3 <= row["fracture_grade_highest"] and row["not_judged"] is None
    assert row["height_loss_percent"] == pytest.approx(50, abs=6)
    assert row["anterior_height_mm"] == pytest.approx(true_heights(column[BROKEN], "anterior", 0.5)[0], abs=1.5)
    assert [each["fracture_grade"] for each in rows if each["value"] != BROKEN] == [0] * (len(LEVELS) - 1)
    assert list(flat(row)) == list(COLUMNS)


def test_a_body_with_cement_is_not_judged_and_expects_nothing(masks: dict[int, Mask]) -> None:
    volume = in_volume(masks, modality="CT")
    body = find_body(masks[L4], POSE @ UP)
    assert body is not None
    x, y, z = np.round((body.centre - volume.geometry.origin) / 2).astype(int)
    volume.array[z - 4 : z + 5, y - 4 : y + 5, x - 4 : x + 5] = 1600
    rows = {row["value"]: row for row in measure(masks, volume, named(masks))}
    assert rows[L4]["not_judged"] == IMPLANT and rows[L4]["fracture_grade"] is None
    assert rows[L4]["anterior_height_mm"] is not None
    assert rows[BROKEN]["not_judged"] is None and rows[BROKEN]["fracture_grade"] == 0


def test_what_is_not_judged_says_why(masks: dict[int, Mask]) -> None:
    volume = in_volume(masks, modality="MR")
    # The image ends in the middle of T12, and one vertebra is called C7.
    bottom = find_body(masks[T12], POSE @ UP).centre[2]
    size = int((bottom - volume.geometry.origin[2]) / 2)
    cut = Volume(volume.array[:size], replace(volume.geometry, size=(*volume.geometry.size[:2], size)), "MR")
    renamed = {7 if level == L4 else level: mask for level, mask in masks.items()}
    rows = {row["value"]: row for row in measure(renamed, cut, named(renamed))}
    assert rows[T12]["not_judged"] == "The image ends within the body."
    assert rows[7]["not_judged"] == fractures.OTHER_LEVEL
    assert rows[T12]["fracture_grade"] is rows[7]["fracture_grade"] is None


def with_holes(mask: Mask) -> Mask:
    """Return a mask in which every second 5 mm of the body's front are missing, from side to side."""
    body = find_body(mask, POSE @ UP)
    assert body is not None
    k, j, i = np.nonzero(mask.array)
    points = np.stack([i, j, k], axis=1) @ mask.to_lps[:3, :3].T + mask.to_lps[:3, 3]
    up, back, left = ((points - body.centre) @ body.axes.T).T
    gone = (up > 0) & (back < 0) & ((left // 5) % 2 == 0)
    array = mask.array.copy()
    array[k[gone], j[gone], i[gone]] = False
    return Mask(array, mask.to_lps)


def test_a_torn_mask_is_not_judged_and_expects_nothing(masks: dict[int, Mask], heights: dict[int, Heights]) -> None:
    torn = {**masks, BROKEN: with_holes(masks[BROKEN])}
    assert measured(torn[BROKEN]).torn > LARGEST_TORN > 3 * max(each.torn for each in heights.values())
    rows = {row["value"]: row for row in measure(torn, in_volume(torn, modality="MR"), named(torn))}
    assert rows[BROKEN]["not_judged"] == TORN and rows[BROKEN]["fracture_grade"] is None
    assert [rows[level]["fracture_grade"] for level in LEVELS if level != BROKEN] == [0] * (len(LEVELS) - 1)


def test_a_body_in_pieces_is_torn_and_an_arch_that_is_apart_is_not(masks: dict[int, Mask]) -> None:
    whole_mask = masks[BROKEN]
    body = find_body(whole_mask, POSE @ UP)
    assert body is not None
    places = np.argwhere(whole_mask.array)
    lps = places[:, ::-1] @ whole_mask.to_lps[:3, :3].T + whole_mask.to_lps[:3, 3]
    up, back, _ = ((lps - body.centre) @ body.axes.T).T

    def without(gap: np.ndarray) -> Mask:
        array = whole_mask.array.copy()
        array[tuple(places[gap].T)] = False
        return Mask(array, whole_mask.to_lps)

    cracked = without((np.abs(up) < 1.5) & (back < body.size[1] / 2))
    apart = without(np.abs(back - body.size[1] / 2 - 4) < 1.5)
    assert connected_components(apart.array, corners=True)[1] > 1
    assert measured(cracked).torn > LARGEST_TORN > max(measured(apart).torn, measured(whole_mask).torn)
