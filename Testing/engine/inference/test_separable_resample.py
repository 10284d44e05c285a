"""Smoothing and resampling axis by axis: what ITK's filters give."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from segmamba.inference.separable_resample import is_axis_aligned, separable_resample, smooth
from segmamba.io.volume import Geometry, image_geometry

TURNS = [
    np.eye(3)[list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in ((1, 1, 1), (-1, 1, -1), (1, -1, 1))
]


def noise(turn: np.ndarray) -> sitk.Image:
    """A CT of noise whose axes are those of the patient in some order and direction."""
    values = np.random.default_rng(0).uniform(-1000, 1600, (17, 40, 33)).astype(np.float32)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((12.0, -40.0, 7.5))
    image.SetDirection(turn.ravel().tolist())
    return image


def grid_around(image: sitk.Image) -> Geometry:
    """A grid along the patient's axes that begins and ends some voxels beyond the image."""
    last = [count - 1 for count in image.GetSize()]
    ends = np.array([image.TransformIndexToPhysicalPoint(corner) for corner in ([0, 0, 0], last)])
    low, high = ends.min(axis=0) - 5, ends.max(axis=0) + 5
    size = np.ceil((high - low) / 1.6).astype(int).tolist()
    return Geometry(tuple(size), (1.6,) * 3, tuple(low.tolist()), tuple(np.eye(3).ravel().tolist()))


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("variances", [(0.0, 0.0, 0.0), (1.2, 0.7, 0.0), (30.0, 1.0, 4.0)])
def test_an_aligned_volume_becomes_what_itk_makes_of_it(turn: np.ndarray, variances: tuple[float, ...]) -> None:
    image = noise(turn)
    grid = grid_around(image)
    source, values = image_geometry(image), torch.from_numpy(sitk.GetArrayFromImage(image))
    assert is_axis_aligned(source, grid)
    made = separable_resample(values, source, np.array(variances), grid, -1024.0)
    smoothed = smooth(image, np.array(variances)) if any(variances) else image
    by_itk = sitk.Resample(
        smoothed, grid.size, sitk.Transform(), sitk.sitkLinear, grid.origin, grid.spacing, grid.direction, -1024.0
    )
    expected = sitk.GetArrayFromImage(by_itk)
    assert (expected == -1024).any() and made.is_contiguous()
    assert np.abs(made.numpy() - expected).max() < 0.002


def test_an_oblique_volume_is_not_aligned() -> None:
    angle = 1e-4
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    assert not is_axis_aligned(image_geometry(noise(turn)), grid_around(noise(np.eye(3))))
