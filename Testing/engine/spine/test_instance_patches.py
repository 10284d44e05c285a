"""The frame of a vertebra in the instance prior's experiment: patches, their way back, and what changes there do."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.repository import REPOSITORY
from scipy import ndimage

from segmamba.io.volume import Geometry
from segmamba.models.resources import SHAPES, resource_root
from segmamba.spine.frames import Frame
from segmamba.spine.shape_model import Fit, load_shapes

SPACING = 1.25
HALF = np.array([20.0, 34.0, 34.0])


@pytest.fixture(scope="module")
def patches() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        import instance_patches

        yield instance_patches
        for name in ("instance_patches", "degraded"):
            sys.modules.pop(name, None)


def frame() -> Frame:
    """A frame that leans and is turned, in the middle of a grid of 48 x 64 x 64 voxels, of a small column."""
    lean, turn = np.deg2rad(25), np.deg2rad(-15)
    first = np.array([[np.cos(lean), np.sin(lean), 0], [-np.sin(lean), np.cos(lean), 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, np.cos(turn), np.sin(turn)], [0, -np.sin(turn), np.cos(turn)]])
    return Frame(np.array([29.0, 41.0, 39.0]), second @ first, 0.9)


def body() -> np.ndarray:
    """A ring behind a block: not the same from any two sides."""
    z, y, x = (np.indices((48, 64, 64)).T - [24, 32, 30]).T * SPACING
    block = (np.abs(z) < 9) & (y < -6) & (y > -20) & (np.abs(x) < 12)
    ring = (np.abs(z) < 6) & (np.hypot(y, x) < 12) & (np.hypot(y, x) > 7)
    return block | ring


def test_a_mask_in_its_frame_and_back_is_itself_within_a_voxel(patches: ModuleType) -> None:
    mask = torch.from_numpy(body())
    there = patches.in_frame(mask[None].float(), frame(), HALF, SPACING)
    assert there.shape == (1, *patches.SIZE)
    whole = tuple(slice(0, n) for n in mask.shape)
    back = patches.from_frame(there, frame(), HALF, whole, SPACING)[0].numpy() > 0.5
    own = mask.numpy()
    assert not (back & ~ndimage.binary_dilation(own)).any()
    assert not (ndimage.binary_erosion(own) & ~back).any()
    assert 2 * (back & own).sum() / (back.sum() + own.sum()) > 0.95


def test_a_box_gets_its_own_part_of_a_patch(patches: ModuleType) -> None:
    there = torch.rand((1, *patches.SIZE), generator=torch.Generator().manual_seed(0))
    whole = tuple(slice(0, n) for n in (48, 64, 64))
    box = (slice(10, 30), slice(20, 50), slice(5, 60))
    everywhere = patches.from_frame(there, frame(), HALF, whole, SPACING)
    torch.testing.assert_close(patches.from_frame(there, frame(), HALF, box, SPACING), everywhere[(0, *box)][None])


def test_the_axes_of_a_patch_are_those_of_the_frame(patches: ModuleType) -> None:
    place = frame().to_world(np.array([8.0, -15.0, 20.0]))
    values = torch.zeros((1, 48, 64, 64))
    values[(0, *np.round(place / SPACING).astype(int))] = 1
    z, y, x = np.unravel_index(int(patches.in_frame(values, frame(), HALF, SPACING).argmax()), patches.SIZE)
    found = np.array([z, y, x]) / (np.array(patches.SIZE) - 1) * 2 * HALF - HALF
    assert np.abs(found - [8.0, -15.0, 20.0]).max() < SPACING / frame().scale


def test_slices_are_wide_along_the_axis_that_crosses_them(patches: ModuleType) -> None:
    axial = Geometry((8, 8, 8), (0.8, 0.8, 5.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    # The third index grows to the left.
    sagittal = Geometry((8, 8, 8), (0.8, 0.8, 5.0), (0.0, 0.0, 0.0), (0, 0, 1, 1, 0, 0, 0, 1, 0))
    straight = Frame(np.zeros(3), np.eye(3), 1.0)
    np.testing.assert_allclose(patches.widths_along(straight, axial), [5.0, 0.8, 0.8])
    np.testing.assert_allclose(patches.widths_along(straight, sagittal), [0.8, 0.8, 5.0])
    assert 0.8 < patches.widths_along(frame(), axial)[1] < 5.0


def fit_of(patches: ModuleType) -> Fit:
    return Fit((slice(4, 44), slice(4, 60), slice(4, 60)), np.zeros((40, 56, 56)), 1.0, frame())


def answer() -> torch.Tensor:
    own = torch.from_numpy(np.where(body(), 0.8, 0.1)).float()
    other = torch.zeros_like(own)
    other[:6] = 0.9
    return torch.stack([1 - (own + other).clamp(max=1), own, other])


def test_what_is_not_changed_keeps_its_probability(patches: ModuleType) -> None:
    given = answer()
    given[1, :6] = 0
    given[0] = 1 - given[1] - given[2]
    same = patches.refined(given, [(1, fit_of(patches), HALF, torch.zeros(patches.SIZE))], SPACING)
    torch.testing.assert_close(same, given.half(), atol=1e-3, rtol=0)


def test_a_change_adds_bone_of_one_vertebra_and_probabilities_sum_to_one(patches: ModuleType) -> None:
    change = torch.full(patches.SIZE, 3.0)
    after = patches.refined(answer(), [(1, fit_of(patches), HALF, change)], SPACING).float()
    middle = tuple(np.round(frame().centre / SPACING).astype(int))
    assert after[(1, *middle)] > answer()[(1, *middle)] + 0.1
    torch.testing.assert_close(after.sum(dim=0), torch.ones(after.shape[1:]), atol=2e-3, rtol=0)
    # Outside of the fit's box nothing is added.
    assert after[1, :4].max() <= 0.11


def test_an_untrained_network_changes_nothing(patches: ModuleType) -> None:
    given = torch.randn((1, patches.CHANNELS, *patches.SIZE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not patches.Refiner((2, 2, 2, 2))(given).any()


def test_without_the_shape_nothing_of_it_is_seen(patches: ModuleType) -> None:
    given, shape = torch.zeros((1, 5, *patches.SIZE)), torch.full((1, *patches.SIZE), -4.0)
    blind, seeing = (patches.channels(given, shape, shape, torch.ones(1, 3), flag) for flag in (False, True))
    assert blind.shape[1] == seeing.shape[1] == patches.CHANNELS
    assert not blind[:, patches.SHAPE].any() and (seeing[:, patches.SHAPE] < 0).all()
    assert torch.equal(blind[:, : patches.SHAPE.start], seeing[:, : patches.SHAPE.start])


def test_every_mean_shape_has_a_canal_that_runs_through(patches: ModuleType) -> None:
    shapes = load_shapes(resource_root() / SHAPES)
    distances = patches.canals(shapes)
    for level, distance in enumerate(distances, start=1):
        step = 2 * patches.half_extent(level, shapes) / (np.array(patches.SIZE) - 1)
        area = (distance < 0).sum(axis=(1, 2)) * step[1] * step[2]
        assert (area > 0).mean() > 0.9, level
        # Square millimetres in the middle: from the thoracic canal to that of the atlas.
        assert 120 < area[patches.SIZE[0] // 2] < 700, level
