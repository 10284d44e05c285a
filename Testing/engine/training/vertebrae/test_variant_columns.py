"""Columns of unusual kinds for the evaluation: what they are made of, and which numbers are right."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest
from helpers.repository import REPOSITORY

from segmamba.spine.levels import L1, L5, SACRUM, T13


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        return importlib.import_module("variant_columns")


@pytest.fixture(scope="module")
def made(benchmark: ModuleType) -> dict[str, list[int]]:
    """The numbers that are right, from the top down, by kind."""
    columns = {column.kind: column for column in benchmark.variants(spine())}
    return {kind: right_numbers(column) for kind, column in columns.items()}


def spine(levels: range = range(17, L5 + 1)) -> np.ndarray:
    """Return a label map with blocks of 12 slices, 6 free ones between them."""
    labels = np.zeros((18 * len(levels) + 6, 8, 8), np.uint8)
    for number, level in enumerate(reversed(levels)):
        labels[6 + 18 * number : 18 + 18 * number, 2:6, 2:6] = level
    return labels


def right_numbers(column) -> list[int]:
    line = column.labels[::-1, 4, 4]
    painted = [int(value) for value in line[np.r_[True, np.diff(line.astype(int)) != 0]] if value]
    return [column.numbers.get(value, value) for value in painted]


def test_columns_have_the_numbers_of_their_kind(made: dict[str, list[int]]) -> None:
    assert made["five"] == list(range(17, 25))
    assert made["four-without-L2"] == made["four-without-L4"] == list(range(17, 24))
    assert made["six-with-two-L2"] == made["six-with-two-L3"] == list(range(17, 26))
    assert made["thirteen"] == [17, 18, 19, T13, *range(L1, 25)]
    assert made["eleven"] == [17, 18, *range(L1, 25)]
    assert made["block"] == list(range(17, 25))
    assert made["sacralised"] == [*range(17, 24), SACRUM]


def test_thirteen_are_painted_with_a_rib_each_and_eleven_with_none_below(benchmark: ModuleType) -> None:
    painted = {column.kind: np.unique(column.labels) for column in benchmark.variants(spine())}
    # Ribs are painted at what is called T1 to T12.
    assert painted["thirteen"].tolist() == [0, 16, 17, 18, 19, *range(L1, 25)]
    assert painted["eleven"].tolist() == [0, 17, 18, *range(L1, 25)]


def test_a_block_has_no_disc_and_its_halves_are_as_large_as_before(benchmark: ModuleType) -> None:
    usual = spine()
    block = next(column.labels for column in benchmark.variants(usual) if column.kind == "block")
    added = (block != usual) & (usual == 0)
    assert ((block != usual) == added).all()
    assert [int((block[added] == level).sum()) for level in (21, 22)] == [48, 48]
    line = block[:, 4, 4]
    between = line[(line == 22).argmax() : len(line) - (line[::-1] == 21).argmax()]
    assert set(between.tolist()) == {21, 22}


def test_kinds_that_a_map_cannot_show_are_left_out(benchmark: ModuleType) -> None:
    kinds = [column.kind for column in benchmark.variants(spine(range(L1, L5 + 1)))]
    assert "thirteen" not in kinds and "eleven" not in kinds and "block" in kinds
    whole = [column.kind for column in benchmark.variants(spine(range(8, L5 + 1)))]
    assert "thirteen" not in whole and "eleven" in whole
    assert list(benchmark.variants(spine(range(17, L5)))) == []
