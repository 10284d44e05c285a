"""A vertebra in its own frame: patches, their way back, and what changes there do."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from segmamba.spine import vertebra_patch as patches
from segmamba.spine.frames import Frame
from segmamba.spine.shape_model import Fit

SPACING = 1.25
HALF = np.array([20.0, 34.0, 34.0])
AXIAL, SAGITTAL = (1, 0, 0, 0, 1, 0, 0, 0, 1), (0, 0, 1, 1, 0, 0, 0, 1, 0)


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


def test_a_mask_in_its_frame_and_back_is_itself_within_a_voxel() -> None:
    mask = torch.from_numpy(body())
    there = patches.in_frame(mask[None].float(), frame(), HALF, SPACING)
    assert there.shape == (1, *patches.SIZE)
    whole = tuple(slice(0, n) for n in mask.shape)
    back = patches.from_frame(there, frame(), HALF, whole, SPACING)[0].numpy() > 0.5
    own = mask.numpy()
    assert not (back & ~ndimage.binary_dilation(own)).any()
    assert not (ndimage.binary_erosion(own) & ~back).any()
    assert 2 * (back & own).sum() / (back.sum() + own.sum()) > 0.95


def test_a_box_gets_its_own_part_of_a_patch() -> None:
    there = torch.rand((1, *patches.SIZE), generator=torch.Generator().manual_seed(0))
    whole = tuple(slice(0, n) for n in (48, 64, 64))
    box = (slice(10, 30), slice(20, 50), slice(5, 60))
    everywhere = patches.from_frame(there, frame(), HALF, whole, SPACING)
    torch.testing.assert_close(patches.from_frame(there, frame(), HALF, box, SPACING), everywhere[(0, *box)][None])


def test_the_axes_of_a_patch_are_those_of_the_frame() -> None:
    place = frame().to_world(np.array([8.0, -15.0, 20.0]))
    values = torch.zeros((1, 48, 64, 64))
    values[(0, *np.round(place / SPACING).astype(int))] = 1
    z, y, x = np.unravel_index(int(patches.in_frame(values, frame(), HALF, SPACING).argmax()), patches.SIZE)
    found = np.array([z, y, x]) / (np.array(patches.SIZE) - 1) * 2 * HALF - HALF
    assert np.abs(found - [8.0, -15.0, 20.0]).max() < SPACING / frame().scale


def test_slices_are_wide_along_the_axis_that_crosses_them() -> None:
    straight, spacing = Frame(np.zeros(3), np.eye(3), 1.0), (0.8, 0.8, 5.0)
    np.testing.assert_allclose(patches.widths_along(straight, spacing, AXIAL), [5.0, 0.8, 0.8])
    # The third index grows to the left.
    np.testing.assert_allclose(patches.widths_along(straight, spacing, SAGITTAL), [0.8, 0.8, 5.0])
    assert 0.8 < patches.widths_along(frame(), spacing, AXIAL)[1] < 5.0


def fit_of() -> Fit:
    return Fit((slice(4, 44), slice(4, 60), slice(4, 60)), np.zeros((40, 56, 56)), 1.0, frame())


def answer() -> torch.Tensor:
    """Class probabilities: background, a vertebra, and another one above it."""
    own = torch.from_numpy(np.where(body(), 0.8, 0.1)).float()
    other = torch.zeros_like(own)
    own[:6], other[:6] = 0.0, 0.9
    return torch.stack([1 - own - other, own, other]).half()


def changed(change: torch.Tensor) -> torch.Tensor:
    after = answer()
    after[1][fit_of().box] = patches.changed(answer(), 1, change, fit_of(), HALF, SPACING)
    patches.share(after, fit_of().box, range(3))
    return after


def test_what_is_not_changed_keeps_its_probability() -> None:
    same = changed(torch.zeros(patches.SIZE))
    assert torch.equal(same[1:], answer()[1:])
    torch.testing.assert_close(same[0], answer()[0], atol=1e-3, rtol=0)


def test_a_change_adds_bone_of_one_vertebra_and_probabilities_sum_to_one() -> None:
    after = changed(torch.full(patches.SIZE, 3.0)).float()
    middle = tuple(np.round(frame().centre / SPACING).astype(int))
    assert after[(1, *middle)] > answer()[(1, *middle)] + 0.1
    torch.testing.assert_close(after.sum(dim=0), torch.ones(after.shape[1:]), atol=2e-3, rtol=0)
    # Outside of the fit's box nothing is added.
    assert after[1, :4].max() <= 0.11


def test_two_vertebrae_that_claim_a_voxel_share_it() -> None:
    given = torch.zeros((3, 48, 64, 64), dtype=torch.float16)
    given[1], given[2] = 0.9, 0.6
    most = patches.share(given, fit_of().box, range(3))
    assert (most == 1).all()
    torch.testing.assert_close(given[:, 20, 30, 30].float(), torch.tensor([0.0, 0.6, 0.4]), atol=1e-3, rtol=0)
    torch.testing.assert_close(given[:, 0, 0, 0].float(), torch.tensor([0.0, 0.9, 0.6]), atol=1e-3, rtol=0)


def test_a_patch_sees_the_image_both_probabilities_and_what_is_outside() -> None:
    image = torch.stack([torch.full((48, 64, 64), 0.5), torch.full((48, 64, 64), -0.5)])
    # A frame near to the lower end, so that the patch reaches beyond the image.
    low = Frame(np.array([5.0, 41.0, 39.0]), np.eye(3), 1.0)
    found = Fit((slice(0, 20), slice(4, 60), slice(4, 60)), np.full((20, 56, 56), 3.0), 1.0, low)
    given, distance = patches.patch_of(image, answer(), 1, found, HALF, SPACING)
    assert given.shape == (5, *patches.SIZE) and distance.shape == patches.SIZE
    outside = given[patches.SEEN] == 0
    assert outside.any() and not given[patches.IMAGE][:, outside].any()
    inside = given[patches.SEEN] == 1
    assert (given[0][inside] == 0.5).all() and (given[1][inside] == -0.5).all()
    # The other vertebra is below; the shape is the same everywhere.
    assert given[patches.OTHERS][inside].max() > 2.0 > given[patches.OWN][inside].max() > 1.0
    torch.testing.assert_close(distance, torch.full(patches.SIZE, 3.0))


def test_channels_hold_widths_and_shapes_in_their_units() -> None:
    given, flat = torch.zeros((1, 5, *patches.SIZE)), torch.ones((1, *patches.SIZE))
    made = patches.channels(given, -4.0 * flat, 20.0 * flat, torch.tensor([[5.0, 1.0, 40.0]]))
    assert made.shape == (1, patches.CHANNELS, *patches.SIZE)
    assert [round(float(value), 3) for value in made[0, 5:, 0, 0, 0]] == [1.0, 0.2, 2.0, -0.4, 1.0]


def test_a_mean_canal_is_the_same_at_the_points_of_a_patch() -> None:
    ramp = torch.linspace(-1.0, 1.0, 40).expand(28, 40, 40)
    fine = patches.canal_patch(ramp)
    assert fine.shape == patches.SIZE
    torch.testing.assert_close(fine[3, 7], torch.linspace(-1.0, 1.0, 80), atol=1e-6, rtol=0)
