"""Answers of an imagined network, made from a label map: with noise, and wrong in ways that networks are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

SACRUM = 26


@dataclass(frozen=True)
class Answers:
    """What `segmamba.spine.decode.decode` takes."""

    probabilities: np.ndarray
    offsets: np.ndarray
    evidence: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All of it, in `decode`'s order."""
        return self.probabilities, self.offsets, self.evidence

    @property
    def mask_and_offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """What `segmamba.spine.instances.find_instances` takes."""
        return self.probabilities[1], self.offsets


def load(path: Path, spacing_mm: float = 2.0) -> np.ndarray:
    """Return a label map (z, y, x) on an isotropic grid whose axes run up, to posterior and to the left."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkUInt8), "LPS")
    size = [max(1, round(n * s / spacing_mm)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    on_grid = sitk.Resample(
        image,
        size,
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        image.GetOrigin(),
        [spacing_mm] * 3,
        image.GetDirection(),
    )
    return sitk.GetArrayFromImage(on_grid)


def centroids(labels: np.ndarray, spacing_mm: float) -> dict[int, np.ndarray]:
    """Return the mean position (z, y, x) in mm of each label."""
    return {
        value: (np.argwhere(labels[box] == value).mean(axis=0) + [part.start for part in box]) * spacing_mm
        for value, box in enumerate(ndimage.find_objects(labels), start=1)
        if box is not None
    }


def whole_levels(labels: np.ndarray, smallest_ml: float, spacing_mm: float) -> list[int]:
    """Return the vertebrae (no sacrum) that are in view: not cut above or below, and no sliver."""
    boxes = ndimage.find_objects(labels)
    return [
        value
        for value, box in enumerate(boxes, start=1)
        if box is not None
        and value < SACRUM
        and box[0].start > 0
        and box[0].stop < len(labels)
        and np.count_nonzero(labels[box] == value) * spacing_mm**3 > smallest_ml * 1000
    ]


def simulate(
    labels: np.ndarray,
    spacing_mm: float,
    rng: np.random.Generator,
    *,
    offset_noise_mm: float = 3.0,
    mask_noise: float = 0.6,
    sharpness: float = 0.6,
    claims: Mapping[int, int] | None = None,
    blobs: int = 0,
) -> Answers:
    """Imagine a network's answers.

    Parameters
    ----------
    labels : ndarray
        The truth, VerSe numbers (z, y, x).
    spacing_mm : float
        Of its isotropic grid.
    rng : numpy.random.Generator
        Of the noise.
    offset_noise_mm : float
        Standard deviation of smooth noise on the offsets, and of noise from voxel to voxel.
    mask_noise : float
        Standard deviation of smooth noise that moves the surfaces, as a part of the probability's step there.
    sharpness : float
        Probability that the evidence gives to the claimed level, on average; the neighbours get most of the rest.
    claims : mapping
        Where the network is wrong: true level to the one that it claims.
    blobs : int
        Number of balls of false vertebra, 8 mm in radius, anywhere.
    """
    claims = claims or {}
    table = np.zeros((256, 3))
    claimed = np.zeros(256, int)
    for value, centre in centroids(labels, spacing_mm).items():
        table[value] = centre
        claimed[value] = claims.get(value, value)
    # Voxels just outside of a vertebra point to its centroid too.
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    around = labels[tuple(nearest)]
    positions = np.moveaxis(np.indices(labels.shape), 0, -1) * spacing_mm
    offsets = np.moveaxis(table[around] - positions, -1, 0).astype(np.float32)
    vertebra = _soft((labels > 0) & (labels < SACRUM), mask_noise, spacing_mm, rng)
    sacrum = _soft(labels == SACRUM, mask_noise, spacing_mm, rng)
    for centre in (rng.integers(labels.shape) for _ in range(blobs)):
        ball = np.linalg.norm(positions - centre * spacing_mm, axis=-1) < 8.0
        ball &= labels == 0
        vertebra[ball] = 0.9
        offsets[:, ball] = (centre * spacing_mm - positions[ball]).T
        around[ball] = rng.choice(labels[labels > 0])
    for axis in offsets:
        axis += offset_noise_mm * (smooth_noise(labels.shape, 8.0 / spacing_mm, rng) + rng.normal(size=labels.shape))
    total = np.maximum(vertebra + sacrum, 1.0)
    vertebra, sacrum = vertebra / total, sacrum / total
    probabilities = np.stack([1 - vertebra - sacrum, vertebra, sacrum]).astype(np.float32)
    return Answers(probabilities, offsets, _evidence(around, claimed, sharpness, rng))


def _soft(mask: np.ndarray, noise: float, spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Return probabilities with a soft, wavy surface."""
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 1.5 / spacing_mm)
    wave = noise * smooth_noise(mask.shape, 4.0 / spacing_mm, rng)
    return np.clip(soft + wave * 2 * np.sqrt(soft * np.clip(1 - soft, 0, 1)) * 0.5, 0.0, 1.0)


def smooth_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise of standard deviation 1 that is correlated over about ``sigma`` voxels."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape).astype(np.float32), sigma)
    return noise / noise.std()


def level_evidence(claimed: int, sharpness: float, rng: np.random.Generator) -> np.ndarray:
    """Return the logarithm (26,) of what a network that claims a level gives to each level.

    Each vertebra gets a doubt of its own, about ``sharpness``: no network is equally sure of all.
    """
    share = np.clip(rng.normal(sharpness, 0.2), 0.05, 0.98)
    near = np.exp(-np.abs(np.arange(1, SACRUM + 1) - claimed) / 0.7)
    near[claimed - 1] = 0
    shares = (1 - share) * (0.95 * near / near.sum() + 0.05 / SACRUM)
    shares[claimed - 1] += share
    return np.log(shares)


def _evidence(around: np.ndarray, claimed: np.ndarray, sharpness: float, rng: np.random.Generator) -> np.ndarray:
    table = np.zeros((256, SACRUM), np.float32)
    for value in np.unique(around[around > 0]):
        table[value] = level_evidence(int(claimed[value]), sharpness, rng)
    logits = np.moveaxis(table[around], -1, 0)
    logits = logits + rng.normal(0, 0.7, (1, *around.shape)).astype(np.float32) * rng.normal(size=(SACRUM, 1, 1, 1))
    return (logits - np.log(np.exp(logits).sum(axis=0))).astype(np.float16)
