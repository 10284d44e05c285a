"""Cases in which only some structures were drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.labelled_images import NNUNET, write_described

from segmamba.errors import InputError
from segmamba.training.dataset.cache import read_case
from segmamba.training.dataset.fingerprint import take_fingerprint
from segmamba.training.dataset.layout import Case
from segmamba.training.dataset.partial import (
    LAST_OPEN,
    drawn_sets,
    partial_loss,
    possible_classes,
    with_codes,
)
from segmamba.training.dataset.plan import IGNORED
from segmamba.training.dataset.prepare import fill_cache
from segmamba.training.dataset.read import read_dataset
from segmamba.training.dataset.train import Order, plan_training
from segmamba.training.dataset.validation import dice_of_classes
from segmamba.training.losses import dice_cross_entropy

LABELS = NNUNET | {"labels": {"background": 0, "cube": 1, "ball": 2}}


def described(folder: Path, labelled: object) -> Path:
    return write_described(folder, ["a", "b"], LABELS | {"labelled": labelled})


def loss(logits: torch.Tensor, labels: list[int], *drawn: tuple[str, ...]) -> float:
    possible = possible_classes(drawn, ["cube", "ball"])
    return float(partial_loss(logits.view(1, 3, -1, 1, 1), torch.tensor(labels).view(1, -1, 1, 1), possible, IGNORED))


def test_a_voxel_may_be_any_structure_that_was_not_drawn() -> None:
    ball = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])  # class by voxel: a cube, then a ball
    here = [1, LAST_OPEN]
    assert loss(ball, here, ("cube",)) == pytest.approx(0.0, abs=1e-3)
    assert loss(ball, here, ("cube", "ball")) > 5  # drawn, and not there


def test_a_drawn_structure_must_not_be_found_where_it_was_not_drawn() -> None:
    cubes = torch.tensor([[0.0, 0.0], [20.0, 20.0], [0.0, 0.0]])
    assert loss(cubes, [1, LAST_OPEN], ("cube",)) > 5


def test_where_all_is_drawn_it_is_the_usual_loss() -> None:
    logits = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 4, 5, 6), generator=torch.Generator().manual_seed(1))
    labels[0, 0] = IGNORED
    usual = dice_cross_entropy(logits, labels, IGNORED)
    assert torch.allclose(partial_loss(logits, labels, possible_classes((), ["cube", "ball"]), IGNORED), usual)
    codes = torch.where(labels == 0, LAST_OPEN, labels)
    everything = possible_classes((("cube", "ball"),), ["cube", "ball"])
    assert torch.allclose(partial_loss(logits, codes, everything, IGNORED), usual)


def test_gradients_stay_finite_where_half_precision_is_sure() -> None:
    logits = torch.full((1, 3, 1, 1, 2), -90.0).bfloat16().requires_grad_()
    labels = torch.tensor([LAST_OPEN, 1]).view(1, 1, 1, 2)
    partial_loss(logits, labels, possible_classes((("cube",),), ["cube", "ball"]), IGNORED).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_the_background_of_such_a_case_gets_a_code() -> None:
    whole, some = Case("a", (), Path(), "a"), Case("b", (), Path(), "b", ("cube",))
    sets = drawn_sets([whole, some], 3)
    assert sets == (("cube",),)
    classes = np.array([0, 1, IGNORED], np.uint8)
    assert with_codes(classes, whole, sets).tolist() == [0, 1, IGNORED]
    assert with_codes(classes, some, sets).tolist() == [LAST_OPEN, 1, IGNORED]
    many = [Case(str(n), (), Path(), "c", (str(n),)) for n in range(60)]
    with pytest.raises(InputError, match="more than 55 different lists"):
        drawn_sets(many, 3)


def test_validation_counts_what_is_found_too_much_of_drawn_structures_only() -> None:
    reference, found = np.array([1, LAST_OPEN, LAST_OPEN]), np.array([1, 1, 2])
    assert dice_of_classes(found, reference, ["cube", "ball"]) == {"cube": pytest.approx(2 / 3)}


def test_a_data_set_says_which_cases_are_partly_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = described(tmp_path / "data", {"a": ["ball", "cube"], "b": ["cube"]})
    dataset = read_dataset(data)
    assert [case.drawn for case in dataset.cases] == [None, ("cube",)]
    plan = plan_training(Order(data, tmp_path / "run", device="cpu"))
    assert "In 1 of 2 cases only some structures are labelled." in capsys.readouterr().err
    fill_cache(dataset.cases, plan, tmp_path / "cache", drawn_sets(dataset.cases, plan.classes))
    codes = {name: set(np.unique(read_case(tmp_path / "cache", name).labels).tolist()) for name in ("a", "b")}
    assert codes == {"a": {0, 1}, "b": {1, LAST_OPEN}}


@pytest.mark.parametrize(
    ("labelled", "expected"),
    [
        ({"b": ["sphere"]}, "names 'sphere', which is not among the labels"),
        ({"b": "cube"}, "must map cases to lists"),
        (["cube"], "must map cases to lists"),
        ({"c": ["cube"]}, "says what is labelled in c, which has no labels"),
        ({"b": ["ball"]}, "b.nii holds 'cube', which dataset.json says is not labelled in it"),
    ],
)
def test_what_contradicts_itself_is_one_sentence(tmp_path: Path, labelled: object, expected: str) -> None:
    data = described(tmp_path, labelled)
    with pytest.raises(InputError, match=expected):
        take_fingerprint(read_dataset(data))
    assert json.loads((data / "dataset.json").read_text())["labelled"] == labelled
