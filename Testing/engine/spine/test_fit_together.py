"""All fits of a column at once: as those one by one, on a processor and on a GPU."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from helpers.modelled_spine import SPACING, hollow, notch, sure

from segmamba.errors import Cancelled
from segmamba.spine.fit_together import _Column, fit_together, signed_distances
from segmamba.spine.frames import column_frames
from segmamba.spine.refine import refine
from segmamba.spine.shape_model import ShapeModel, box_around, fit, signed_distance
from segmamba.utils.arrays import label_boxes

ON_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


@pytest.fixture(scope="module")
def damaged(column: np.ndarray) -> np.ndarray:
    """T12 to L3, of which L1 has a hole, L2 a gap, and L3 reaches the lower border."""
    labels = column.copy()
    labels[hollow(column, 20)] = 0
    labels[notch(column, 21)] = 0
    return labels[label_boxes(column)[22][0].start + 4 :]


@pytest.mark.parametrize("device", DEVICES)
def test_fits_of_a_column_are_those_of_its_vertebrae(device: str, shapes: ShapeModel, damaged: np.ndarray) -> None:
    frames, boxes = column_frames(damaged, SPACING), label_boxes(damaged)
    masks = {level: (boxes[level], damaged[boxes[level]] == level) for level in frames}
    found = fit_together(masks, damaged.shape, shapes, frames, SPACING, torch.device(device))
    assert list(found) == list(frames) == [19, 20, 21, 22]
    for level, one in found.items():
        alone = fit(damaged == level, level, shapes, frames[level], SPACING)
        assert one.box == alone.box
        assert np.abs(one.distance - alone.distance).max() < 2e-3
        assert one.dice == pytest.approx(alone.dice, abs=2e-3)
        assert one.frame.centre == pytest.approx(alone.frame.centre, abs=1e-3)
        assert one.frame.scale == pytest.approx(alone.frame.scale, abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_distances_are_exact_as_far_as_they_count(device: str, damaged: np.ndarray) -> None:
    boxes = label_boxes(damaged)
    masks = {level: (boxes[level], damaged[boxes[level]] == level) for level in (19, 22)}
    reach = 7
    column = _Column.of(masks, damaged.shape, SPACING, torch.device(device))
    signed = signed_distances(column, reach).cpu().numpy()
    for number, level in enumerate(masks):
        box = box_around(boxes[level], damaged.shape, SPACING, 12.0)
        expected = signed_distance(damaged == level, SPACING)[box]
        z, y, x = expected.shape
        found = signed[number, :z, :y, :x]
        near = np.abs(expected) < (reach - 1) * SPACING
        assert 0.3 < near.mean() < 1
        assert found[near] == pytest.approx(expected[near], abs=1e-3)
        assert (np.abs(found[~near]) >= (reach - 1) * SPACING - SPACING).all()


@pytest.mark.parametrize("device", DEVICES)
def test_a_column_is_refined_alike_with_its_fits_at_once(
    device: str, shapes: ShapeModel, column: np.ndarray, damaged: np.ndarray
) -> None:
    vertebra = torch.from_numpy(sure(column[-len(damaged) :])).to(device)
    together = partial(fit_together, device=torch.device(device))
    one, changes, _ = refine(damaged, vertebra, SPACING, shapes, together=together)
    other, expected, _ = refine(damaged, vertebra.cpu().numpy(), SPACING, shapes)
    assert np.array_equal(one, other) and changes == expected
    assert any(change["step"] == "close" for change in changes)


def test_fits_at_once_can_be_cancelled(shapes: ShapeModel, damaged: np.ndarray) -> None:
    def cancel() -> None:
        raise Cancelled

    frames, boxes = column_frames(damaged, SPACING), label_boxes(damaged)
    masks = {level: (boxes[level], damaged[boxes[level]] == level) for level in frames}
    with pytest.raises(Cancelled):
        fit_together(masks, damaged.shape, shapes, frames, SPACING, torch.device("cpu"), cancel)
    assert fit_together({}, damaged.shape, shapes, {}, SPACING, torch.device("cpu")) == {}
