"""Follow-up: vertebrae are matched by shape and level, and a change is one beyond the error of measurement."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.followed_spine import LEVELS, exam, renumbered, scaled, spine, with_phase, with_rows

from segmamba.io.volume import Geometry
from segmamba.measurements.comparison import CHANGE, COLUMNS, QUANTITIES, Exam, compare, shapes_of, write_changes
from segmamba.measurements.shape_matching import Shape, match

L1, L2, L3, L4 = LEVELS
# Slices of 3 mm, the patient elsewhere.
OTHER_GRID = Geometry((56, 66, 64), (1.7, 1.7, 3.0), (-49.0, -36.0, -99.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


@pytest.fixture(scope="module")
def first() -> Exam:
    return exam(spine())[0]


@pytest.fixture(scope="module")
def again() -> Exam:
    """The same spine, leaning, in thicker slices."""
    return exam(spine(7.0), OTHER_GRID)[0]


@lru_cache
def shapes(exam: Exam) -> dict[int, Shape | None]:
    return shapes_of(exam)


def followed(first: Exam, second: Exam) -> dict[str, Any]:
    """Compare two exams, with shapes of the first that are found once."""
    return compare(first, second, match(shapes(first), shapes(second)))


def changed(comparison: dict) -> set[tuple[str, str]]:
    return {
        (row["name"], name)
        for row in comparison["vertebrae"]
        for name, change in row["changes"].items()
        if change["verdict"] == CHANGE
    }


def test_the_same_spine_in_another_pose_and_other_slices_has_not_changed(first: Exam, again: Exam) -> None:
    found = followed(first, again)
    assert [(row["first_value"], row["second_value"]) for row in found["vertebrae"]] == [
        (each, each) for each in LEVELS
    ]
    assert found["matching"]["certain"] and found["matching"]["same_person"] and not changed(found)
    assert f"Of {found['compared']} values, none changed beyond the error of measurement." in found["summary"]
    # Leaning by 7 degrees, the bones lie on each other.
    turn = np.array(found["vertebrae"][0]["to_second_lps"])[:3, :3]
    assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) == pytest.approx(7.8, abs=1.5)


def test_a_height_that_is_lost_is_the_change_and_its_numbers_are_those_of_the_exams(first: Exam) -> None:
    broken = exam(spine(5.0, {L2: 15.0}), OTHER_GRID)[0]
    found = followed(first, broken)
    assert ("L2", "anterior_height_mm") in changed(found) and {name for name, _ in changed(found)} == {"L2"}
    row = found["vertebrae"][1]
    change = row["changes"]["anterior_height_mm"]
    assert (change["first"], change["second"]) == (
        first.rows[1]["anterior_height_mm"],
        broken.rows[1]["anterior_height_mm"],
    )
    assert change["change"] == pytest.approx(-11.2, abs=1.5) and 0.3 < change["sd"] < 2.5
    assert row["fracture_worse"] and row["fracture_grade_second"] >= 2
    graver, largest = found["summary"][:2]
    assert graver.startswith("L2: grade 0 before, ") and largest.startswith("L2: beyond the error of measurement: ")


def test_a_shift_of_the_numbers_is_told_and_the_same_bones_are_compared(first: Exam, again: Exam) -> None:
    found = followed(first, renumbered(again, {level: level + 1 for level in LEVELS}))
    pairs = [(row["first_value"], row["second_value"]) for row in found["vertebrae"]]
    assert pairs == [(each, each + 1) for each in LEVELS]
    assert found["matching"]["renumbered"][0] == {"first": "L1 vertebra", "second": "L2 vertebra"}
    assert "L1 is L2, L2 is L3" in found["summary"][0] and not changed(found)
    assert found["vertebrae"][0]["name"] == "L1 (L2 in the second exam)"


def test_parts_of_a_column_are_matched_by_their_levels_and_shapes(first: Exam, again: Exam) -> None:
    found = followed(first, renumbered(again, {level: level for level in LEVELS[1:]}))
    assert [(row["first_value"], row["second_value"]) for row in found["vertebrae"]] == [
        (each, each) for each in LEVELS[1:]
    ]
    assert found["matching"]["only_first"] == ["L1 vertebra"] and found["matching"]["only_second"] == []


def test_a_vertebra_that_one_exam_has_not_moves_the_numbers_only_above_it(first: Exam, again: Exam) -> None:
    # The second exam calls L2 L1, and what was above has no name.
    found = followed(first, renumbered(again, {L2: L1, L3: L3, L4: L4}))
    pairs = [(row["first_value"], row["second_value"]) for row in found["vertebrae"]]
    assert pairs == [(L2, L1), (L3, L3), (L4, L4)]


def test_one_vertebra_in_view_cannot_contradict_its_number(first: Exam) -> None:
    assert not match({L2: shapes(first)[L2]}, {L3: shapes(first)[L3]}).certain
    assert match({L2: shapes(first)[L2]}, {L2: shapes(first)[L2]}).certain
    nothing = followed(first, Exam([], None, {}))
    assert nothing["summary"] == ["No vertebra is in both exams."] and nothing["vertebrae"] == []


def test_another_person_is_told(first: Exam) -> None:
    found = followed(first, scaled(first, (1.3, 1.2, 1.0)))
    assert found["matching"]["same_person"] is False
    assert found["summary"][0].startswith("The vertebrae are not alike in shape")


def test_what_would_not_be_a_change_of_the_bone_is_not_compared(first: Exam, again: Exam) -> None:
    contrast = compare(
        with_phase(first, "no contrast seen"), with_phase(again, "contrast"), match(shapes(first), shapes(again))
    )
    densities = [row["changes"]["trabecular_hu"] for row in contrast["vertebrae"]]
    assert all(each["first"] and each["second"] and each["change"] is None for each in densities)
    said = "the phases of contrast medium are 'no contrast seen' and 'contrast'"
    assert any(said in text for text in contrast["summary"])
    cut = followed(first, with_rows(again, lambda row: {"at_border": row["value"] == L1}))
    row = cut["vertebrae"][0]
    assert row["changes"]["volume_ml"]["change"] is None and row["note"].startswith("The image ends within")
    assert cut["vertebrae"][1]["changes"]["volume_ml"]["change"] is not None
    assert row["shape_distance_mm"] is None


def test_a_shift_of_all_values_is_told_as_one_of_the_exams(first: Exam) -> None:
    found = compare(
        first,
        with_rows(first, lambda row: {"trabecular_hu": row["trabecular_hu"] + 30.0}),
        match(shapes(first), shapes(first)),
    )
    assert any(text.startswith("Density differs by +30 HU at the median of all vertebrae") for text in found["summary"])


def test_the_table_has_the_numbers_of_the_comparison(first: Exam, again: Exam, tmp_path: Path) -> None:
    found = followed(first, again)
    write_changes(tmp_path / "c.csv", found)
    with (tmp_path / "c.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0]) == list(COLUMNS) and len(lines) == len(LEVELS)
    for line, row in zip(lines, found["vertebrae"], strict=True):
        for name in QUANTITIES:
            for key, value in row["changes"][name].items():
                assert line[f"{name}_{key}"] == ("" if value is None else str(value))
