"""Genant's grades of a loss of height, as numbers and as text."""

from __future__ import annotations

from bisect import bisect_right

# Losses from which a vertebra has the grades 1, 2 and 3.
GRADES = (0.20, 0.25, 0.40)
# What the grade and the ends of its range are called in rows of measurements.
GRADE_KEYS = ("fracture_grade", "fracture_grade_lowest", "fracture_grade_highest")


def grade_of(part: float) -> int:
    """Return Genant's grade, 0 to 3, of a loss of height as a part of what is expected."""
    return bisect_right(GRADES, part)


def grade_text(grade: int | None, lowest: int | None, highest: int | None) -> str:
    """Return a grade with its range where that is more than one: "2", or "1 (0 to 2)"; empty if there is none."""
    if grade is None:
        return ""
    return str(grade) if lowest == highest else f"{grade} ({lowest} to {highest})"
