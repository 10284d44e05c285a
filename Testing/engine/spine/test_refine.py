"""The refinement of masks by anatomy, and the tools for a corrected case."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.modelled_spine import SPACING, hollow, modelled, notch, sure
from helpers.phantoms import dice
from scipy import ndimage

from segmamba.errors import Cancelled, InputError
from segmamba.spine.frames import column_frames
from segmamba.spine.levels import T13
from segmamba.spine.refine import refine, refine_one
from segmamba.spine.shape_model import ShapeModel


@pytest.fixture(scope="module")
def thorax(shapes: ShapeModel) -> np.ndarray:
    """Return T7 to T10."""
    return modelled(shapes, (14, 15, 16, 17))


def rod(labels: np.ndarray, level: int, length_mm: float = 24.0) -> np.ndarray:
    """Return a rod of 6 mm radius that starts at the left transverse process and runs outwards; free voxels only."""
    own = np.argwhere(labels == level)
    tip = own[own[:, 2] >= own[:, 2].max() - 1].mean(axis=0)
    away = (np.moveaxis(np.indices(labels.shape), 0, -1) - tip) * SPACING
    inside = (np.hypot(away[..., 0], away[..., 1]) < 6) & (away[..., 2] > 0) & (away[..., 2] < length_mm)
    return inside & (labels == 0)


def test_a_sound_column_is_left_as_it_is(shapes: ShapeModel, column: np.ndarray) -> None:
    before = column.copy()
    refined, changes, _ = refine(column, sure(column), SPACING, shapes)
    assert np.array_equal(column, before)
    assert np.array_equal(refined, column) and changes == []


def test_t13_is_refined_as_a_vertebra_between_t12_and_l1(shapes: ShapeModel, thorax: np.ndarray) -> None:
    # T7 to T10 as T11, T12, T13 and L1.
    renamed = np.zeros(29, np.uint8)
    renamed[[14, 15, 16, 17]] = 18, 19, T13, 20
    labels = renamed[thorax]
    assert list(column_frames(labels, SPACING)) == [18, 19, T13, 20]
    damaged = labels.copy()
    damaged[hollow(labels, T13)] = 0
    refined, changes, _ = refine(damaged, sure(labels), SPACING, shapes, ("pieces", "split"))
    assert np.array_equal(refined, labels)
    assert [(change["step"], change["level"]) for change in changes] == [("pieces", "T13")]


def test_a_hole_is_filled_and_the_change_is_told(shapes: ShapeModel, column: np.ndarray) -> None:
    damaged = column.copy()
    hole = hollow(column, 20)
    damaged[hole] = 0
    refined, changes, _ = refine(damaged, sure(column), SPACING, shapes, ("pieces",))
    assert np.array_equal(refined, column)
    assert changes == [
        {
            "step": "pieces",
            "level": "L1",
            "added_voxels": int(hole.sum()),
            "removed_voxels": 0,
            "added_ml": round(hole.sum() * 0.008, 3),
            "removed_ml": 0.0,
        }
    ]


def test_a_gap_is_closed_only_where_the_network_is_not_against_it(shapes: ShapeModel, column: np.ndarray) -> None:
    damaged = column.copy()
    missing = notch(column, 21)
    damaged[missing] = 0
    closed, _, _ = refine(damaged, np.where(missing, 0.4, sure(column)), SPACING, shapes, ("close",))
    assert np.mean(closed[missing] == 21) > 0.6
    open_, _, _ = refine(damaged, np.where(missing, 0.1, sure(column)), SPACING, shapes, ("close",))
    assert not open_[missing].any()


def test_small_pieces_go_and_a_cut_off_part_of_the_shape_stays(shapes: ShapeModel, column: np.ndarray) -> None:
    damaged = column.copy()
    damaged[4:7, 4:7, 4:7] = 21
    y_cut = int(column_frames(column, SPACING)[20].centre[1] / SPACING) + 4
    damaged[:, y_cut : y_cut + 2][column[:, y_cut : y_cut + 2] == 20] = 0
    refined, _, _ = refine(damaged, sure(column), SPACING, shapes, ("pieces",))
    assert not refined[4:7, 4:7, 4:7].any()
    behind = np.s_[:, y_cut + 2 :]
    assert np.mean(refined[behind][column[behind] == 20] == 20) > 0.9


def test_two_vertebrae_of_one_number_are_cut_apart_if_a_number_is_free(shapes: ShapeModel, column: np.ndarray) -> None:
    merged = np.where(column == 21, 20, column).astype(np.uint8)
    refined, changes, _ = refine(merged, sure(column), SPACING, shapes, ("split",))
    assert dice(refined == 20, column == 20) > 0.85 and dice(refined == 21, column == 21) > 0.85
    assert {change["level"] for change in changes} == {"L1", "L2"}


def test_what_no_vertebra_looks_like_is_removed(shapes: ShapeModel, column: np.ndarray) -> None:
    damaged = column.copy()
    damaged[column == 19] = 0
    rod = np.zeros_like(column, bool)
    rod[66:76, 6:12, 6:54] = True
    damaged[rod & (damaged == 0)] = 19
    refined, changes, _ = refine(damaged, sure(damaged), SPACING, shapes, ("remove",))
    assert not (refined == 19).any()
    assert np.array_equal(refined[column > 19], column[column > 19])
    assert [change["level"] for change in changes] == ["T12"]


def test_what_reaches_far_along_a_rib_goes_and_the_vertebra_stays(shapes: ShapeModel, thorax: np.ndarray) -> None:
    damaged = thorax.copy()
    stub = rod(thorax, 15)
    damaged[stub] = 15
    refined, changes, _ = refine(damaged, sure(damaged), SPACING, shapes, ("trim",))
    assert dice(damaged == 15, thorax == 15) < 0.97 and dice(refined == 15, thorax == 15) > 0.985
    assert np.mean(refined[stub] == 15) < 0.5
    assert np.mean(refined[thorax > 0] == thorax[thorax > 0]) > 0.999
    assert [(change["step"], change["level"], change["added_voxels"]) for change in changes] == [("trim", "T8", 0)]


def test_a_neighbours_arch_does_not_pull_the_shape_off_the_vertebra(shapes: ShapeModel, thorax: np.ndarray) -> None:
    damaged = thorax.copy()
    behind = int(column_frames(thorax, SPACING)[14].centre[1] / SPACING) + 4
    damaged[:, behind:][thorax[:, behind:] == 14] = 15
    refined, _, _ = refine(damaged, sure(damaged), SPACING, shapes, ("trim",))
    assert np.mean(refined[thorax == 15] == 15) > 0.99
    assert np.mean(refined[(damaged == 15) & (thorax == 14)] == 15) < 0.3


def test_nothing_is_trimmed_where_there_are_no_ribs(shapes: ShapeModel, column: np.ndarray) -> None:
    damaged = column.copy()
    damaged[rod(column, 21)] = 21
    refined, changes, _ = refine(damaged, sure(damaged), SPACING, shapes, ("trim",))
    assert np.array_equal(refined, damaged) and changes == []


def test_what_the_upper_border_cuts_is_not_trimmed(shapes: ShapeModel, thorax: np.ndarray) -> None:
    damaged = thorax.copy()
    damaged[rod(thorax, 14)] = 14
    middle = int(column_frames(thorax, SPACING)[14].centre[0] / SPACING)
    damaged = damaged[: middle + 4]
    assert (damaged[-1] == 14).any()
    refined, _, _ = refine(damaged, sure(damaged), SPACING, shapes, ("trim",))
    assert np.array_equal(refined == 14, damaged == 14)


def test_an_edit_by_hand_is_not_trimmed(shapes: ShapeModel, thorax: np.ndarray) -> None:
    edited = thorax.copy()
    stub = rod(thorax, 15)
    edited[stub] = 15
    refined, _ = refine_one(edited, 15, None, SPACING, shapes)
    assert (refined[stub] == 15).all()


def test_an_unknown_step_is_refused(shapes: ShapeModel, column: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the steps are"):
        refine(column, sure(column), SPACING, shapes, ("polish",))


@pytest.mark.parametrize("step", ["split", "remove", "trim", "close"])
def test_a_refinement_can_be_stopped_between_two_vertebrae(shapes: ShapeModel, thorax: np.ndarray, step: str) -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(0)
        if len(calls) == 2:
            raise Cancelled()

    with pytest.raises(Cancelled):
        refine(thorax, sure(thorax), SPACING, shapes, (step,), check)


def test_an_edited_vertebra_is_tidied_and_the_others_are_not_touched(shapes: ShapeModel, column: np.ndarray) -> None:
    edited = column.copy()
    hole, speck = hollow(column, 20), np.s_[2:5, 2:5, 2:5]
    edited[hole] = 0
    edited[hollow(column, 22)] = 0
    edited[speck] = 20
    refined, changes = refine_one(edited, 20, None, SPACING, shapes)
    assert (refined[hole] == 20).all() and not refined[speck].any()
    assert np.array_equal(refined == 22, edited == 22)
    assert {change["level"] for change in changes} == {"L1"}


def test_what_a_person_added_to_a_vertebra_stays(shapes: ShapeModel, column: np.ndarray) -> None:
    edited = column.copy()
    osteophyte = ndimage.binary_dilation(column == 20, iterations=2) & (column == 0)
    osteophyte[:, 30:] = False
    edited[osteophyte] = 20
    refined, _ = refine_one(edited, 20, None, SPACING, shapes)
    assert (refined[osteophyte] == 20).all()


def test_a_vertebra_that_is_not_there_cannot_be_refined(column: np.ndarray) -> None:
    with pytest.raises(InputError, match="There is no C3"):
        refine_one(column, 3, None, SPACING, None)  # type: ignore[arg-type]


def test_slivers_and_empty_label_maps_are_no_error(shapes: ShapeModel) -> None:
    labels = np.zeros((30, 30, 30), np.uint8)
    refined, changes, _ = refine(labels, sure(labels), SPACING, shapes)
    assert not refined.any() and changes == []
    labels[0, 10, 10] = 5
    labels[29, 3:6, 3:6] = 26
    refined, _, _ = refine(labels, sure(labels), SPACING, shapes)
    assert not (refined == 5).any()
