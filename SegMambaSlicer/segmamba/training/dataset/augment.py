"""Augmentation on the device that trains: poses, and the differences between scanners.

Kinds, probabilities and ranges follow nnU-Net's defaults (Isensee et al. 2021), written here in PyTorch's operations:
on a GPU a sample takes milliseconds and no processes, on processors seconds (Docs/train-your-own.md has the figures).
All that is random is drawn on the processor, so that nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

ROTATION_CHANCE, LARGEST_ANGLE = 0.2, math.radians(30)
SCALE_CHANCE, SCALES = 0.2, (0.7, 1.4)
MIRROR_CHANCE = 0.5
NOISE_CHANCE, LARGEST_VARIANCE = 0.1, 0.1
BLUR_CHANCE, BLURS = 0.2, (0.5, 1.0)
BRIGHTNESS_CHANCE, BRIGHTNESS = 0.15, (0.75, 1.25)
CONTRAST_CHANCE, CONTRAST = 0.15, (0.75, 1.25)
LOW_RESOLUTION_CHANCE, RESOLUTIONS = 0.25, (0.5, 1.0)
INVERTED_GAMMA_CHANCE, GAMMA_CHANCE, GAMMAS = 0.1, 0.3, (0.7, 1.5)
# Blur and low resolution take place in each channel with this chance, once they were drawn.
CHANNEL_CHANCE = 0.5
# Half the width of the gaussian kernel, in voxels: enough for the largest blur.
BLUR_REACH = 4
SMALLEST_RANGE = 1e-6


@dataclass(frozen=True)
class Pose:
    """Where a sample's voxels lie in a case.

    Attributes
    ----------
    matrix : ndarray (3, 3)
        From the way to a sample's voxel from its centre, in voxels (z, y, x), to that in the case.
    flips : tuple of int
        Axes along which the sample is mirrored afterwards.
    """

    matrix: np.ndarray
    flips: tuple[int, ...] = ()

    @property
    def moves(self) -> bool:
        """Whether the voxels have to be interpolated."""
        return not np.array_equal(self.matrix, np.eye(3))

    def reach(self, patch: Sequence[int]) -> tuple[int, int, int]:
        """Return how many voxels of the case (z, y, x) a sample takes part of."""
        if not self.moves:
            return patch[0], patch[1], patch[2]
        half = np.abs(self.matrix) @ ((np.array(patch) - 1) / 2)
        z, y, x = (2 * np.ceil(half + 1)).astype(int).tolist()
        return z, y, x


def draw_pose(rng: np.random.Generator, spacing: Sequence[float], flip_axes: Sequence[int]) -> Pose:
    """Draw scale, rotation and mirroring.

    Parameters
    ----------
    rng : Generator
    spacing : sequence of float
        Millimetres along z, y, x: the rotation is one of the patient, not of voxels.
    flip_axes : sequence of int
    """
    matrix = np.eye(3)
    if rng.random() < ROTATION_CHANCE:
        steps = np.diag(np.asarray(spacing, float))
        matrix = np.linalg.inv(steps) @ _rotation(rng.uniform(-LARGEST_ANGLE, LARGEST_ANGLE, 3)) @ steps
    if rng.random() < SCALE_CHANCE:
        matrix = matrix / _around_one(rng, *SCALES)
    return Pose(matrix, tuple(axis for axis in flip_axes if rng.random() < MIRROR_CHANCE))


def posed(image: Tensor, labels: Tensor, pose: Pose, patch: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Bring a crop of a case into a pose: linearly interpolated, its labels from the nearest voxel.

    Parameters
    ----------
    image : Tensor (channels, z, y, x)
        Of any floating type; the crop that ``pose.reach(patch)`` asks for.
    labels : Tensor (z, y, x), uint8
    pose : Pose
    patch : sequence of int

    Returns
    -------
    image : Tensor of float32, shape (channels, z, y, x)
    labels : Tensor of uint8, shape ``patch``
    """
    image = image.float()
    if pose.moves:
        places = _places(pose.matrix, patch, image.shape[1:], image.device)
        image = functional.grid_sample(image[None], places, align_corners=True, padding_mode="border")[0]
        values = labels[None, None].float()
        labels = functional.grid_sample(values, places, mode="nearest", align_corners=True, padding_mode="border")
        labels = labels[0, 0].to(torch.uint8)
    if pose.flips:
        image, labels = image.flip([axis + 1 for axis in pose.flips]), labels.flip(pose.flips)
    return image, labels


def rescanned(image: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Give an image the noise, sharpness, brightness, contrast and resolution of another scanner.

    Parameters
    ----------
    image : Tensor (channels, z, y, x), float32
        Normalised: the ranges are meant for a standard deviation of about one.
    rng, generator : Generator
        For what is drawn once, and for noise on the image's device.
    """
    if rng.random() < NOISE_CHANCE:
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image = image + noise * rng.uniform(0, LARGEST_VARIANCE) ** 0.5
    if rng.random() < BLUR_CHANCE:
        image = _in_some_channels(image, rng, lambda part: blurred(part, rng.uniform(*BLURS)))
    if rng.random() < BRIGHTNESS_CHANCE:
        image = image * rng.uniform(*BRIGHTNESS)
    if rng.random() < CONTRAST_CHANCE:
        image = _contrasted(image, rng.uniform(*CONTRAST))
    if rng.random() < LOW_RESOLUTION_CHANCE:
        image = _in_some_channels(image, rng, lambda part: coarsened(part, rng.uniform(*RESOLUTIONS)))
    if rng.random() < INVERTED_GAMMA_CHANCE:
        image = -with_gamma(-image, _around_one(rng, *GAMMAS))
    if rng.random() < GAMMA_CHANCE:
        image = with_gamma(image, _around_one(rng, *GAMMAS))
    return image


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Return an image (channels, z, y, x) smoothed by a gaussian of ``sigma`` voxels."""
    places = np.arange(-BLUR_REACH, BLUR_REACH + 1)
    weights = np.exp(-0.5 * (places / sigma) ** 2)
    kernel = torch.from_numpy((weights / weights.sum()).astype(np.float32)).to(image.device)
    volume = image[:, None]
    for axis in range(3):
        shape, padding = [1, 1, 1], [0, 0, 0]
        shape[axis], padding[axis] = len(kernel), BLUR_REACH
        around = [amount for amount in reversed(padding) for _ in range(2)]
        volume = functional.conv3d(functional.pad(volume, around, mode="replicate"), kernel.view(1, 1, *shape))
    return volume[:, 0]


def coarsened(image: Tensor, factor: float) -> Tensor:
    """Return an image (channels, z, y, x) as a scanner with ``factor`` times as many voxels along each axis sees it."""
    size = [max(1, round(length * factor)) for length in image.shape[1:]]
    small = functional.interpolate(image[None], size, mode="nearest-exact")
    return functional.interpolate(small, image.shape[1:], mode="trilinear")[0]


def with_gamma(image: Tensor, gamma: float) -> Tensor:
    """Bend the intensities of each channel within their range, and give them back their mean and deviation."""
    low, high = (values.view(-1, 1, 1, 1) for values in torch.aminmax(image.flatten(1), dim=1))
    width = (high - low).clamp(min=SMALLEST_RANGE)
    bent = ((image - low) / width).pow(gamma)
    mean, std = image.mean((1, 2, 3), keepdim=True), image.std((1, 2, 3), keepdim=True)
    ours = bent.std((1, 2, 3), keepdim=True).clamp(min=SMALLEST_RANGE)
    return (bent - bent.mean((1, 2, 3), keepdim=True)) / ours * std + mean


def _contrasted(image: Tensor, factor: float) -> Tensor:
    """Return an image with ``factor`` times the distances to its mean, within its old range."""
    low, high = (values.view(-1, 1, 1, 1) for values in torch.aminmax(image.flatten(1), dim=1))
    mean = image.mean((1, 2, 3), keepdim=True)
    return torch.minimum(torch.maximum((image - mean) * factor + mean, low), high)


def _in_some_channels(image: Tensor, rng: np.random.Generator, change) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.cat([change(part) if rng.random() < CHANNEL_CHANCE else part for part in image.split(1)])


def _around_one(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a factor below or above one, each as often."""
    return float(rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high))


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation (3, 3) about the axes z, y, x, one after the other, by angles in radians."""
    from scipy.spatial.transform import Rotation

    turned: np.ndarray = Rotation.from_euler("xyz", angles).as_matrix()
    return turned


def _places(matrix: np.ndarray, patch: Sequence[int], crop: Sequence[int], device: torch.device) -> Tensor:
    """Return where a sample's voxels lie in a crop, from -1 to 1 along x, y, z: shape (1, *patch, 3)."""
    scale = np.diag(2.0 / np.maximum(np.array(crop) - 1, 1))
    theta = torch.from_numpy((scale @ matrix)[::-1, ::-1].copy()).float()
    z, y, x = (torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2 for n in patch)
    columns = theta.to(device).T
    places = z[:, None, None, None] * columns[2] + y[:, None, None] * columns[1] + x[:, None] * columns[0]
    return places[None]
