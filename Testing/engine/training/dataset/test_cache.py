"""Cases on the network's grid, and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.labelled_images import NNUNET, write, write_described

from segmamba.errors import InputError
from segmamba.training.dataset.cache import as_classes, read_case
from segmamba.training.dataset.fingerprint import take_fingerprint
from segmamba.training.dataset.plan import IGNORED, Plan
from segmamba.training.dataset.planning import make_plan
from segmamba.training.dataset.prepare import fill_cache, prepare
from segmamba.training.dataset.read import read_dataset


def plan_of(folder: Path, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Plan:
    dataset = read_dataset(folder)
    return make_plan(dataset, take_fingerprint(dataset), "segmamba-v2-paper", spacing=spacing)


def test_a_case_comes_back_as_it_was_prepared(tmp_path: Path) -> None:
    folder = write_described(tmp_path / "data", ["a"], NNUNET)
    plan, (case,) = plan_of(folder), read_dataset(folder).cases
    fill_cache([case], plan, tmp_path / "cache")
    cached, made = read_case(tmp_path / "cache", "a"), prepare(case, plan)
    np.testing.assert_allclose(cached.image, made.image, atol=0.01)
    np.testing.assert_array_equal(cached.labels, made.labels)
    assert cached.grid == made.grid and cached.padding == made.padding
    np.testing.assert_array_equal(cached.places[0], np.argwhere(made.labels == 1))
    assert cached.image.mean() == pytest.approx(0, abs=0.02) and cached.image.std() == pytest.approx(1, abs=0.02)


def test_a_case_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    folder = write_described(tmp_path / "data", ["a"], NNUNET)
    plan, cases = plan_of(folder), read_dataset(folder).cases
    fill_cache(cases, plan, tmp_path / "cache")
    cases[0].images[0].unlink()
    fill_cache(cases, plan, tmp_path / "cache")


def test_a_damaged_cache_says_what_to_delete(tmp_path: Path) -> None:
    folder = write_described(tmp_path / "data", ["a"], NNUNET)
    fill_cache(read_dataset(folder).cases, plan_of(folder), tmp_path / "cache")
    (tmp_path / "cache" / "a_image.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"cache.a is damaged: delete .*cache"):
        read_case(tmp_path / "cache", "a")


def test_labels_stay_on_their_structure_on_a_coarser_grid(tmp_path: Path) -> None:
    folder = write_described(tmp_path, ["a"], NNUNET, size=24)
    (case,) = read_dataset(folder).cases
    made = prepare(case, plan_of(folder, (2.0, 2.0, 2.0)))
    inside, outside = made.image[0][made.labels == 1], made.image[0][made.labels == 0]
    assert made.labels.sum() * 8 == pytest.approx(12**3, rel=0.1)
    assert np.median(inside) - np.median(outside) > 1


def test_labels_become_classes_and_the_ignored_value_stays_apart(tmp_path: Path) -> None:
    labels = np.array([0, 3, 7, 9], np.uint8)
    np.testing.assert_array_equal(as_classes(labels, [3, 9], 7), [0, 1, IGNORED, 2])
    folder = write_described(tmp_path, ["a"], NNUNET)
    (case,) = read_dataset(folder).cases
    plan = plan_of(folder)
    values = np.full((12, 12, 12), 2, np.uint8)
    values[:6] = 1
    write(values, case.labels)
    made = prepare(case, replace(plan, ignore=2))
    assert set(np.unique(made.labels)) == {1, IGNORED}
