"""Components of a structure that a network is nowhere sure of become what is second there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segmamba.inference import hysteresis
from segmamba.inference.hysteresis import label_components_with_peak, logit_margin, suppress_below_margin

SURE, UNSURE = (slice(1, 4), 2, 2), (slice(1, 4), 7, 7)
BACKGROUND, TUMOUR, COLON = range(3)


@pytest.fixture
def logits() -> torch.Tensor:
    """Two components of tumour within colon: margins of 9 in the middle and 1 at the ends of one, 2 in the other."""
    logits = torch.zeros(3, 5, 10, 10)
    logits[COLON] = 3.0
    logits[(TUMOUR, *SURE)] = torch.tensor([4.0, 12.0, 4.0])
    logits[(TUMOUR, *UNSURE)] = 5.0
    return logits


def test_the_margin_is_the_difference_to_the_next_best_logit(logits: torch.Tensor) -> None:
    margin = logit_margin(logits.softmax(dim=0), TUMOUR)
    assert margin[SURE].tolist() == pytest.approx([1.0, 9.0, 1.0], abs=1e-3)
    assert float(margin[0, 0, 0]) == pytest.approx(-3.0, abs=1e-5)


def test_a_component_that_is_sure_somewhere_stays_and_another_becomes_what_is_second(
    logits: torch.Tensor,
) -> None:
    probabilities = logits.softmax(dim=0)
    before = probabilities.clone()
    assert suppress_below_margin(probabilities, TUMOUR, 8.0).tolist() == [3]
    labels = probabilities.argmax(dim=0)
    assert (labels[SURE] == TUMOUR).all() and (labels[UNSURE] == COLON).all()
    assert torch.allclose(probabilities.sum(dim=0), torch.ones(5, 10, 10))
    around = (slice(None), slice(0, 5), slice(1, 4), slice(1, 4))  # of the sure component, on all sides
    assert torch.equal(probabilities[around], before[around])
    probabilities[TUMOUR][around[1:]] = 0
    assert float(probabilities[TUMOUR].max()) == 0


@pytest.mark.parametrize(("high", "voxels"), [(0.0, 6), (1.9, 6), (2.1, 3), (8.9, 3), (9.1, 0)])
def test_the_highest_margin_of_a_component_decides(logits: torch.Tensor, high: float, voxels: int) -> None:
    probabilities = logits.softmax(dim=0)
    suppress_below_margin(probabilities, TUMOUR, high)
    assert int((probabilities.argmax(dim=0) == TUMOUR).sum()) == voxels


def test_where_the_structure_is_nowhere_the_first_it_loses_its_probability_to_the_others() -> None:
    probabilities = torch.tensor([0.7, 0.2, 0.1])[:, None, None, None].expand(3, 4, 4, 4).clone()
    suppress_below_margin(probabilities, TUMOUR, 8.0)
    assert probabilities[:, 0, 0, 0].tolist() == pytest.approx([0.875, 0.0, 0.125])


def test_interpolation_brings_nothing_back_of_a_component_that_was_suppressed() -> None:
    """Between a voxel of background and one of colon, both nearly tumour, the mean would be tumour."""
    probabilities = torch.tensor([[0.5, 0.05], [0.45, 0.45], [0.05, 0.5]])[:, :, None, None].clone()
    assert probabilities.mean(dim=1).argmax() == TUMOUR
    suppress_below_margin(probabilities, TUMOUR, 8.0)
    assert probabilities.mean(dim=1).argmax() != TUMOUR


def test_slabs_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = 3 * torch.randn(3, 20, 10, 10, generator=torch.Generator().manual_seed(0))
    logits[TUMOUR] -= 5
    whole = logits.softmax(dim=0)
    slabs, before = whole.clone(), int((whole.argmax(dim=0) == TUMOUR).sum())
    monkeypatch.setattr(hysteresis, "SLAB", 20)
    suppress_below_margin(whole, TUMOUR, 2.0)
    monkeypatch.setattr(hysteresis, "SLAB", 3)
    suppress_below_margin(slabs, TUMOUR, 2.0)
    assert torch.equal(whole, slabs)
    assert 0 < int((whole.argmax(dim=0) == TUMOUR).sum()) < before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_what_the_processor_gives(logits: torch.Tensor) -> None:
    here, there = logits.softmax(dim=0), logits.softmax(dim=0).cuda()
    suppress_below_margin(here, TUMOUR, 8.0)
    suppress_below_margin(there, TUMOUR, 8.0)
    torch.testing.assert_close(there.cpu(), here)


def test_voxels_that_share_a_corner_are_one_component() -> None:
    margin = np.full((4, 4, 4), -1.0)
    margin[0, 0, 0], margin[1, 1, 1], margin[3, 3, 3] = 2.0, 5.0, 1.0
    components, peaks = label_components_with_peak(margin)
    assert components[0, 0, 0] == components[1, 1, 1] != components[3, 3, 3]
    assert peaks.tolist() == [-np.inf, 5.0, 1.0]
