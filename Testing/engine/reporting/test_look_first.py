"""What is to be looked at first: the gravest before the rest, each at the threshold where it begins."""

from __future__ import annotations

from typing import Any

import pytest

from segmamba.reporting.look_first import look_first
from segmamba.spine.grades import grade_text


def row(value: int, **changes: Any) -> dict[str, Any]:
    """Return the measurements of a vertebra that has nothing."""
    whole = {"fracture_grade": 0, "fracture_grade_lowest": 0, "fracture_grade_highest": 0, "fracture_shape": "none"}
    loss = {"height_loss_percent": 2.0, "height_loss_place": "middle", "height_loss_sd_percent": 1.5}
    return {"value": value, "name": f"L{value - 19} vertebra", **whole, **loss, "slip_mm": None, **changes}


def graded(value: int, grade: int, lowest: int, highest: int, loss: float) -> dict[str, Any]:
    grades = {"fracture_grade": grade, "fracture_grade_lowest": lowest, "fracture_grade_highest": highest}
    return row(value, **grades, fracture_shape="wedge", height_loss_percent=loss)


def told(rows: list[dict[str, Any]] | None = None, **more: Any) -> list[tuple[int | None, str]]:
    return [(each["value"], each["text"]) for each in look_first({"measurements": rows, "segments": [], **more})]


def test_nothing_is_said_of_a_spine_that_has_nothing() -> None:
    assert told([row(20), row(21)]) == []
    assert told(None) == []
    assert told([row(20, fracture_grade=None, fracture_grade_lowest=None, fracture_grade_highest=None)]) == []


def test_certain_losses_of_height_come_before_possible_ones_and_the_larger_one_first() -> None:
    rows = [
        graded(20, 1, 0, 2, 23.0),
        graded(21, 1, 1, 1, 22.5),
        graded(22, 3, 2, 3, 45.0),
        graded(23, 0, 0, 2, 18.0),
        graded(24, 0, 0, 1, 17.0),
    ]
    assert told(rows) == [
        (22, "L3: wedge, grade 3 (2 to 3); 45.0 % of the height is lost (middle), standard deviation 1.5 %."),
        (21, "L2: wedge, grade 1; 22.5 % of the height is lost (middle), standard deviation 1.5 %."),
        (20, "L1: uncertain, grade 1 (0 to 2); 23.0 % of the height is lost (middle), standard deviation 1.5 %."),
        (23, "L4: uncertain, grade 0 (0 to 2); 18.0 % of the height is lost (middle), standard deviation 1.5 %."),
    ]


def test_the_doubt_about_the_numbers_is_first_and_variants_are_last() -> None:
    numbering = {"certain": False, "reason": "Look at the ribs.", "levels": {"21": 0.74}, "variants": ["No T12."]}
    segments = [{"value": 21, "name": "L2 vertebra", "mean_confidence": 0.9}]
    found = told([graded(20, 2, 2, 2, 30.0)], numbering=numbering, segments=segments)
    assert [value for value, _ in found] == [None, 20, 21, None]
    assert found[0][1] == "Vertebral levels are uncertain: Look at the ribs."
    assert found[-1][1] == "No T12."


@pytest.mark.parametrize(
    ("slip", "where"), [(4.0, "4.0 mm in front of"), (-4.5, "4.5 mm behind"), (3.9, None), (None, None)]
)
def test_a_slip_is_told_from_four_millimetres_on_and_which_way_it_goes(slip: float | None, where: str | None) -> None:
    expected = [] if where is None else [(23, f"L4 lies {where} the vertebra below.")]
    assert told([row(23, slip_mm=slip)]) == expected


@pytest.mark.parametrize(
    ("density", "phase", "limit"),
    [
        (110.0, "no contrast seen", "110"),
        (110.1, "no contrast seen", "160"),
        (160.0, "no contrast seen", "160"),
        (160.1, "no contrast seen", None),
        (90.0, "arterial", None),
        (None, "no contrast seen", None),
    ],
)
def test_a_low_density_is_told_only_without_contrast_medium(
    density: float | None, phase: str, limit: str | None
) -> None:
    said = f"Trabecular density of L1 is {density} HU, at or below {limit} HU."
    assert told(bone={"l1_hu": density, "phase": phase}) == ([] if limit is None else [(None, said)])


def test_of_a_scanner_whose_numbers_are_wrong_only_that_is_told() -> None:
    bone = {"l1_hu": 90.0, "phase": "no contrast seen", "scanner": "Fat has 20 HU: the scanner is off."}
    assert told(bone=bone) == [(None, "Fat has 20 HU: the scanner is off.")]


@pytest.mark.parametrize(
    ("mask", "level", "doubts"),
    [
        (0.8, 0.75, None),
        (0.79, 0.75, "mask 0.79"),
        (0.8, 0.74, "level 0.74"),
        (0.5, 0.5, "mask 0.5, level 0.5"),
        (None, None, None),
    ],
)
def test_masks_and_levels_that_the_network_is_not_sure_of_are_told(
    mask: float | None, level: float | None, doubts: str | None
) -> None:
    levels = {} if level is None else {"20": level}
    segments = [{"value": 20, "name": "L1 vertebra", "mean_confidence": mask}]
    expected = [] if doubts is None else [(20, f"L1 is uncertain: probability of {doubts}.")]
    assert told(numbering={"certain": True, "reason": "", "levels": levels}, segments=segments) == expected
    assert told(segments=segments) == (
        [(20, f"L1 is uncertain: probability of mask {mask}.")] if mask and mask < 0.8 else []
    )


@pytest.mark.parametrize(("grades", "text"), [((None, None, None), ""), ((2, 2, 2), "2"), ((1, 0, 2), "1 (0 to 2)")])
def test_a_grade_has_its_range_where_it_has_one(grades: tuple[int | None, ...], text: str) -> None:
    assert grade_text(*grades) == text
