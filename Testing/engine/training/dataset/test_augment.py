"""Augmentation: labels stay on their voxels, and a seed says all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segmamba.training.dataset.augment import Pose, blurred, coarsened, draw_pose, posed, rescanned, with_gamma

PATCH = (12, 10, 8)


def turned(angle: float) -> Pose:
    cos, sin = np.cos(angle), np.sin(angle)
    return Pose(np.array([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]]) * 1.2)


@pytest.mark.parametrize("pose", [Pose(np.eye(3)), Pose(np.eye(3), (0, 2)), turned(0.4), turned(-0.3)])
def test_labels_follow_the_image_into_every_pose(pose: Pose) -> None:
    crop = np.zeros(pose.reach(PATCH), np.uint8)
    z, y, x = (n // 2 for n in crop.shape)
    crop[z - 3 : z + 1, y - 3 : y + 4, x - 1 : x + 3] = 1
    labels = torch.from_numpy(crop)
    image, moved = posed(labels[None].float(), labels, pose, PATCH)
    assert image.shape == (1, *PATCH) and moved.shape == PATCH
    assert 0 < moved.sum() < moved.numel()
    sure = (image[0] - 0.5).abs() > 0.49  # between, the two interpolations differ
    torch.testing.assert_close((image[0] > 0.5)[sure], (moved == 1)[sure])


def test_poses_rotate_the_patient_and_not_voxels() -> None:
    rng = np.random.default_rng(1)
    spacing = np.array([3.0, 1.0, 1.0])
    poses = [draw_pose(rng, spacing, ()) for _ in range(60)]
    assert sum(pose.moves for pose in poses) in range(10, 40)
    for pose in poses:
        in_mm = np.diag(spacing) @ pose.matrix @ np.diag(1 / spacing)
        scale = np.cbrt(np.linalg.det(in_mm))
        np.testing.assert_allclose(in_mm @ in_mm.T, scale**2 * np.eye(3), atol=1e-9)


def test_a_crop_reaches_as_far_as_its_pose_needs() -> None:
    pose = turned(0.5)
    corners = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) * (np.array(PATCH) - 1) / 2
    farthest = np.abs(corners @ pose.matrix.T).max(axis=0)
    assert (farthest <= (np.array(pose.reach(PATCH)) - 1) / 2).all()


def test_the_same_seeds_give_the_same_scanner() -> None:
    image = torch.randn((2, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    different = 0
    for seed in range(20):
        first, second = (
            rescanned(image, np.random.default_rng(seed), torch.Generator().manual_seed(seed)) for _ in range(2)
        )
        assert torch.equal(first, second) and first.isfinite().all()
        different += not torch.equal(first, image)
    assert different > 5


def test_what_is_flat_stays_as_it_is() -> None:
    image = torch.full((1, 6, 6, 6), 2.0)
    for changed in (blurred(image, 1.0), coarsened(image, 0.5), with_gamma(image, 1.4)):
        torch.testing.assert_close(changed, image)
