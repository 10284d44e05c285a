"""What hides bone in a synthetic image does so where it should, and moves nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segmamba.training.synthesis import ct, mr
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.degradation import Degradation, random_degradation, with_contrast, with_screws
from segmamba.training.synthesis.scanner import profiled_slices, slice_matrix
from segmamba.training.synthesis.tissue_labels import CORD, MUSCLE

SHAPE, STEP, MIDDLE = (48, 44, 40), 1.5, (33.0, 30.0)


def context(seed: int = 0) -> SamplingContext:
    cpu = torch.device("cpu")
    return SamplingContext(SHAPE, STEP, cpu, np.random.default_rng(seed), torch.Generator(cpu).manual_seed(seed))


@pytest.fixture(scope="module")
def tissues() -> torch.Tensor:
    """Two vertebrae around a canal of 8 mm, bodies in front of it."""
    z, y, x = np.meshgrid(*((np.arange(n) + 0.5) * STEP for n in SHAPE), indexing="ij")
    radius = np.hypot(y - MIDDLE[0], x - MIDDLE[1])
    bone = (radius < 14) | (np.hypot(y - MIDDLE[0] + 18, x - MIDDLE[1]) < 15)
    found = np.full(SHAPE, MUSCLE, np.uint8)
    for level, low in ((21, 5), (20, 40)):
        found[bone & (z > low) & (z < low + 25)] = level
    found[radius < 8] = CORD
    return torch.from_numpy(found)


@pytest.mark.parametrize(("step", "thickness", "start"), [(1.25, 5.0, 0.0), (1.25, 3.0, -2.1), (1.5, 7.0, -6.9)])
def test_slices_with_a_profile_keep_constants_and_ramps_and_blur_an_edge(
    step: float, thickness: float, start: float
) -> None:
    matrix = slice_matrix(64, step, thickness, start)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-6)
    fine = (np.arange(64) + 0.5) * step
    inside = slice(12, -12)
    np.testing.assert_allclose((matrix @ fine)[inside], fine[inside], atol=0.02 * thickness)
    edge = matrix @ (fine > 40).astype(float)
    width = np.interp([0.12, 0.88], edge, fine)
    assert np.diff(width)[0] > 0.8 * thickness
    image = torch.rand(5, 64, 4)
    assert torch.allclose(
        profiled_slices(image, 1, matrix)[2, :, 3], torch.from_numpy(matrix).float() @ image[2, :, 3], atol=1e-5
    )


def test_contrast_is_in_the_canal_alone(tissues: torch.Tensor) -> None:
    image = torch.full(SHAPE, 40.0)
    found = with_contrast(image, tissues, context())
    assert torch.equal(found != image, (tissues == CORD) & (found != image))
    assert (found[tissues == CORD] > 150).float().mean() > 0.6


@pytest.mark.parametrize("seed", range(5))
def test_screws_are_in_bone_on_both_sides_and_not_in_the_canal(tissues: torch.Tensor, seed: int) -> None:
    image = torch.full(SHAPE, 40.0)
    found = with_screws(image, tissues, context(seed))
    metal = found == 3000.0
    assert metal.sum() * STEP**3 > 300
    where = metal.nonzero()[:, 2] * STEP + STEP / 2 - MIDDLE[1]
    assert (where > 0).any() and (where < 0).any()
    assert (metal & (tissues == CORD)).sum() < 0.06 * metal.sum()
    assert (tissues[metal] < 26).float().mean() > 0.4
    assert found[tissues == CORD].min() < 0 and (found[:2] == image[:2]).float().mean() > 0.9


def test_without_a_vertebra_in_view_nothing_is_screwed() -> None:
    image = torch.full(SHAPE, 40.0)
    nothing = torch.full(SHAPE, MUSCLE, dtype=torch.uint8)
    assert torch.equal(with_screws(image, nothing, context()), image)
    assert torch.equal(with_contrast(image, nothing, context()), image)


def test_every_degradation_has_something_and_all_kinds_occur() -> None:
    rng = np.random.default_rng(1)
    some = [random_degradation(rng) for _ in range(300)]
    assert all(each != Degradation() for each in some)
    for name in ("slices_mm", "noise_hu", "metal", "contrast"):
        assert 0.15 < np.mean([bool(getattr(each, name)) for each in some]) < 0.85


def test_degraded_images_are_images(tissues: torch.Tensor) -> None:
    for seed in range(4):
        hounsfield = ct.synthesize(tissues, context(seed), degraded=True)
        signal = mr.synthesize(tissues, context(seed), degraded=True)
        assert hounsfield.shape == signal.shape == SHAPE and hounsfield.isfinite().all() and signal.isfinite().all()
        assert hounsfield.min() >= -1024 and hounsfield.max() <= 3071 and signal.min() >= 0
        assert not torch.equal(hounsfield, ct.synthesize(tissues, context(seed)))
