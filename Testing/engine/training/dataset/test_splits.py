"""Folds by person."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segmamba.errors import InputError
from segmamba.training.dataset.layout import Case, Dataset
from segmamba.training.dataset.splits import deal, make_splits


def dataset_of(folder: Path, people: dict[str, str]) -> Dataset:
    cases = tuple(Case(name, (folder / name,), folder / name, person) for name, person in people.items())
    return Dataset(folder, ("MR",), {"body": 1}, None, cases)


def test_each_case_is_held_out_once_and_no_person_is_on_both_sides(tmp_path: Path) -> None:
    cases = dataset_of(tmp_path, {f"{person}{scan}": f"p{person}" for person in range(7) for scan in "ab"}).cases
    splits = deal(cases, tmp_path)
    assert len(splits) == 5
    assert sorted(case.name for split in splits for case in split.validation) == sorted(case.name for case in cases)
    for split in splits:
        assert not {case.person for case in split.training} & {case.person for case in split.validation}
        assert len(split.training) + len(split.validation) == len(cases)
    assert splits == deal(cases, tmp_path)


def test_two_people_make_two_folds_and_one_makes_none(tmp_path: Path) -> None:
    assert len(deal(dataset_of(tmp_path, {"a": "1", "b": "2"}).cases, tmp_path)) == 2
    with pytest.raises(InputError, match="one person"):
        deal(dataset_of(tmp_path, {"a": "1", "b": "1"}).cases, tmp_path)


def test_nnunets_file_of_splits_is_followed(tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    (split,) = make_splits(dataset_of(tmp_path, {"a": "1", "b": "2", "c": "3"}))
    assert [case.name for case in split.training] == ["a"]
    assert [case.name for case in split.validation] == ["b"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"train": ["a"], "val": ["b"]}], "has 1 on both sides of fold 0"),
        ([{"train": ["a"], "val": ["d"]}], "names 'd', which the data set does not have"),
        ([{"train": [], "val": ["a"]}], "no case to train with in fold 0"),
        (5, "not a list of folds"),
    ],
)
def test_splits_that_are_wrong_name_their_file(tmp_path: Path, content: object, expected: str) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"splits_final\.json .*{expected}"):
        make_splits(dataset_of(tmp_path, {"a": "1", "b": "1"}))
