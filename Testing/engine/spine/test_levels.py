"""Names, order and distances of the levels."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.simulated_answers import centroids, load, whole_levels

from segmamba.spine.levels import (
    DISTANCE_SPREAD,
    DISTANCES_MM,
    SACRUM,
    T13,
    fit_distances,
    from_top,
    is_next,
    level_name,
    level_named,
    next_level,
    steps_between,
)


def test_levels_have_their_usual_names() -> None:
    names = ["C1", "C7", "T1", "T12", "T13", "L1", "L6", "sacrum"]
    levels = [1, 7, 8, 19, T13, 20, 25, 26]
    assert [level_name(level) for level in levels] == names
    assert [level_named(name.lower()) for name in names] == [*levels[:-1], None]


def test_t13_lies_between_t12_and_l1_where_there_is_one() -> None:
    pairs = ((19, 20, 1), (19, T13, 1), (T13, 20, 1), (18, T13, 2), (18, 20, 2), (T13, 21, 2), (20, T13, -1), (5, 5, 0))
    assert [steps_between(upper, lower) for upper, lower, _steps in pairs] == [steps for *_pair, steps in pairs]
    assert [next_level(level, -1) for level in (1, T13, 20, 25)] == [None, 19, 19, 24]
    assert [next_level(level, 1) for level in (1, 19, T13, 25)] == [2, 20, 20, None]
    assert from_top([26, 20, T13, 3, 0]) == [3, T13, 20]
    assert is_next(19, T13) and is_next(19, 20) and not is_next(20, T13) and not is_next(24, SACRUM)


def test_a_fit_finds_distances_and_ignores_the_size_of_people() -> None:
    depths = np.r_[0.0, np.cumsum(DISTANCES_MM)]
    columns = [
        {level: np.array([-scale * depths[level - 1], 0.0, 0.0]) for level in range(3, 12)}
        for scale in (0.9, 1.0, 1 / 0.9)
    ]
    distances, spread = fit_distances(columns)
    assert [distances[level] for level in range(3, 11)] == pytest.approx(DISTANCES_MM[2:10].tolist())
    assert spread == pytest.approx(0, abs=1e-9)


def test_the_table_of_distances_is_that_of_the_open_label_maps(shared) -> None:
    columns = []
    for path in sorted((shared / "data/labels/open").glob("*_vertebrae.nii.gz")):
        if "spl_atlas" in path.name or "s0000" in path.name:
            continue  # the atlas is not to scale, the other has no vertebra
        labels = load(path, 2.0)
        whole = whole_levels(labels, 3.0, 2.0)
        columns.append({level: centre for level, centre in centroids(labels, 2.0).items() if level in whole})
    distances, spread = fit_distances(columns)
    for level, distance in distances.items():
        assert DISTANCES_MM[level - 1] == pytest.approx(distance, rel=0.03)
    assert spread < DISTANCE_SPREAD
