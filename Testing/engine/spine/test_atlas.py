"""Atlas and axis: without parts of the skull and of each other."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from helpers.modelled_spine import SPACING, modelled

from segmamba.errors import Cancelled
from segmamba.spine.atlas import separate_atlas
from segmamba.spine.fit_together import fit_together
from segmamba.spine.levels import C1, C2
from segmamba.spine.shape_model import ShapeModel


@pytest.fixture(scope="module")
def neck(shapes: ShapeModel) -> np.ndarray:
    """Return C1 to C4 with room above."""
    return np.pad(modelled(shapes, (1, 2, 3, 4)), ((0, 8), (0, 0), (0, 0)))


def condyles(labels: np.ndarray) -> np.ndarray:
    """Return where the occipital condyles lie: ellipsoids on the atlas's lateral masses."""
    z, y, x = np.nonzero(labels == C1)
    grid = np.moveaxis(np.indices(labels.shape), 0, -1)
    found = np.zeros(labels.shape, bool)
    for side in (-1, 1):
        mass = (side * (x - x.mean()) * SPACING > 10) & (side * (x - x.mean()) * SPACING < 22)
        top = mass & (z >= z[mass].max() - 1)
        centre = np.array([z[mass].max() + 3.0, y[top].mean(), x[top].mean()])
        found |= (((grid - centre) / (3.5, 4.5, 3.0)) ** 2).sum(axis=-1) < 1
    return found & (labels == 0)


def test_a_sound_neck_is_left_as_it_is(shapes: ShapeModel, neck: np.ndarray) -> None:
    before = neck.copy()
    assert np.array_equal(separate_atlas(neck, SPACING, shapes), neck)
    assert np.array_equal(neck, before)


def test_condyles_leave_the_atlas(shapes: ShapeModel, neck: np.ndarray) -> None:
    skull = condyles(neck)
    taken = np.where(skull, C1, neck).astype(np.uint8)
    refined = separate_atlas(taken, SPACING, shapes)
    together = partial(fit_together, device=torch.device("cpu"))
    assert np.array_equal(separate_atlas(taken, SPACING, shapes, together=together), refined)
    assert skull.sum() > 0.15 * (neck == C1).sum()
    assert (refined[skull] == C1).mean() < 0.4
    assert (refined[neck == C1] == C1).mean() > 0.98
    others = (taken != C1) & (taken != C2)
    assert np.array_equal(refined[others], taken[others])


@pytest.mark.parametrize(("owner", "taker"), [(C1, C2), (C2, C1)])
def test_what_one_took_of_the_other_goes_back(shapes: ShapeModel, neck: np.ndarray, owner: int, taker: int) -> None:
    z, _, x = np.nonzero(neck == owner)
    index = np.indices(neck.shape)
    part = (neck == owner) & (index[2] > np.quantile(x, 0.8)) & (index[0] < np.quantile(z, 0.9))
    mixed = np.where(part, taker, neck).astype(np.uint8)
    refined = separate_atlas(mixed, SPACING, shapes)
    assert part.sum() > 50
    assert (refined[part] == owner).mean() > 0.6
    assert (refined[(neck == taker)] == taker).mean() > 0.98


def test_what_the_border_cuts_is_left_alone(shapes: ShapeModel, neck: np.ndarray) -> None:
    top = int(np.nonzero(neck == C1)[0].max())
    cut = np.where(condyles(neck), C1, neck).astype(np.uint8)[: top + 2]
    assert np.array_equal(separate_atlas(cut, SPACING, shapes) == C1, cut == C1)


@pytest.mark.parametrize("shift", [1, -1])
def test_vertebrae_of_a_wrong_number_keep_nearly_all_of_theirs(
    shapes: ShapeModel, neck: np.ndarray, shift: int
) -> None:
    wrong = np.where(neck > 0, neck.astype(int) + shift, 0).astype(np.uint8)
    refined = separate_atlas(wrong, SPACING, shapes)
    for level in (C1, C2):
        assert not (wrong == level).any() or (refined[wrong == level] > 0).mean() > 0.9


def test_a_column_without_a_neck_is_left_alone(shapes: ShapeModel) -> None:
    thorax = modelled(shapes, (14, 15, 16))
    assert np.array_equal(separate_atlas(thorax, SPACING, shapes), thorax)
    nothing = np.zeros((4, 4, 4), np.uint8)
    assert np.array_equal(separate_atlas(nothing, SPACING, shapes), nothing)


def test_it_can_be_stopped(shapes: ShapeModel, neck: np.ndarray) -> None:
    def stop() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        separate_atlas(neck, SPACING, shapes, stop)
