"""A run that says how sure it is of levels is held to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmamba.errors import InputError
from segmamba.evaluation.certainty import calibration, draw_reliability, level_rows, right_and_certain
from segmamba.evaluation.split import exams_of_part, read_split


def case(covered: list[int], certain: bool | None, probability: float = 0.9, runner_up: int = 0) -> dict[str, Any]:
    """A case with L1, L2 and so on, covered by these labels."""
    rows = [
        {"value": 20 + n, "ineligible": None, "covered_by": label, "level_probability": probability}
        | {"runner_up": label + runner_up}
        for n, label in enumerate(covered)
    ]
    left_out = {"value": 19, "ineligible": "at the volume's border", "covered_by": 25, "level_probability": 1.0}
    return {
        "case": "x",
        "perturbation": "native",
        "structures": [*rows, left_out],
        "numbering": {"certain": certain},
    }


def test_cases_are_counted_by_right_and_certain() -> None:
    cases = [
        case([20, 21], True),
        case([20, 21], False),
        case([20, 21], None),
        case([21, 22], True),
        case([21, 22], False, runner_up=-1),
        case([21, 22], False, runner_up=1),
        case([20, 0], True),
        case([], True),
    ]
    table = right_and_certain(cases)
    counted = [table[f"{what}_{how}"] for what in ("right", "wrong") for how in ("certain", "uncertain", "unsaid")]
    assert counted == [1, 1, 1, 2, 2, 0]
    assert table["runner_up_right"] == 1
    assert table["wrong_and_certain"] == ["x, native"] * 2


def test_calibration_compares_probabilities_with_how_often_they_are_right() -> None:
    # 100 vertebrae at 0.95, all right; 100 at 0.75, half of them right; one that was missed.
    cases = [case([20], True, 0.95)] * 100 + [case([20], True, 0.75)] * 50 + [case([21], True, 0.75)] * 50
    found = calibration([*cases, case([0], True, 0.1)])
    assert found is not None
    assert found["vertebrae"] == 200
    assert found["expected_calibration_error"] == pytest.approx((0.05 + 0.25) / 2)
    assert [one["vertebrae"] for one in found["bins"]] == [100, 100]
    assert [one["right"] for one in found["bins"]] == [0.5, 1.0]


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.999, 1.0])
def test_every_probability_has_a_bin(probability: float) -> None:
    found = calibration([case([20], True, probability)])
    assert found is not None and found["expected_calibration_error"] == pytest.approx(1 - probability)


def test_without_probabilities_there_is_no_calibration() -> None:
    one = case([20], None)
    level_rows(one, None)
    assert calibration([one]) is None


def test_what_a_run_says_of_a_level_stands_with_the_structure_that_it_covers() -> None:
    one = case([21, 20, 0], False)
    level_rows(one, {"numbering": {"levels": {"20": 0.7, "21": 0.6}, "runner_up_levels": {"20": 21, "21": 22}}})
    assert [row["level_probability"] for row in one["structures"][:3]] == [0.6, 0.7, None]
    assert [row["runner_up"] for row in one["structures"][:3]] == [22, 21, None]


def test_a_well_calibrated_run_has_no_error() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0, 1, 4000)
    cases = [case([20 if rng.random() < p else 21], True, float(p)) for p in probabilities]
    found = calibration(cases)
    assert found is not None and found["expected_calibration_error"] < 0.03


def test_the_reliability_diagram_is_a_picture(tmp_path: Path) -> None:
    found = calibration([case([20], True, 0.95), case([21], True, 0.55)])
    assert found is not None
    draw_reliability(found, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_a_split_keeps_people_apart(tmp_path: Path) -> None:
    assert exams_of_part(tmp_path, ["a", "b"], "test") == ["a", "b"]
    (tmp_path / "split.csv").write_text("exam,part,note\na,train,\nb,test,\n", encoding="utf-8")
    assert exams_of_part(tmp_path, ["a", "b"], "test") == ["b"]
    assert exams_of_part(tmp_path, ["a", "b"], "train") == ["a"]
    with pytest.raises(InputError, match="'c' is to train or to test"):
        exams_of_part(tmp_path, ["a", "c"], "test")


@pytest.mark.parametrize("content", ["exam;part\na;train\n", "exam,part\na,validate\n"])
def test_a_split_that_cannot_be_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"split\.csv"):
        read_split(tmp_path / "split.csv")
