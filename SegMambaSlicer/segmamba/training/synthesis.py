"""CT-like training images painted from tissue codes, on whatever device the codes lie.

Each call draws a new place, pose, elastic deformation, set of tissue intensities, scanner (blur, slice thickness,
noise, kernel) and field of view, so no image is ever seen twice and no real voxel is ever used. The idea of training
on painted label maps is Billot et al., SynthSeg, 2023; the CT priors and the recipe are our own.
Codes are those of `segmamba.training.tissues`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from segmamba.errors import InputError
from segmamba.training.tissues import (
    AIR,
    BOWEL,
    CARTILAGE,
    CORD,
    DISC,
    FAT,
    LAST_TISSUE,
    LIMB_BONES,
    LIVER,
    LUNG,
    MUSCLE,
    OUTSIDE,
    RIBS_AND_STERNUM,
    SKULL,
    SOFT,
    SPACING,
    SPLEEN,
    TRACHEA,
    VERTEBRAE,
    organ,
)

OUTSIDE_HU = -1024.0


@dataclass(frozen=True)
class Anatomy:
    """One map of tissue codes, (z, y, x) uint8, and the centre (z, y, x in voxels) of each vertebra in it."""

    subject: str
    codes: Tensor
    centres: dict[int, tuple[float, float, float]]


def load_anatomies(files: list[Path], device: torch.device) -> list[Anatomy]:
    """Read the files that `segmamba.training.anatomy.prepare` wrote.

    Raises
    ------
    InputError
        There are none.
    """
    if not files:
        raise InputError("There is no anatomy to train on: make some with segmamba.training.anatomy.prepare.")
    anatomies = []
    for file in files:
        codes = np.load(file)["codes"]
        vertebrae = np.where(codes <= VERTEBRAE, codes, 0)
        present = [int(label) for label in np.unique(vertebrae) if label]
        centres = dict(zip(present, ndimage.center_of_mass(vertebrae > 0, vertebrae, present), strict=True))
        anatomies.append(Anatomy(file.stem.rsplit("_", 1)[0], torch.from_numpy(codes).to(device), centres))
    return anatomies


class Painter:
    """Draws training samples.

    Parameters
    ----------
    anatomies : list of Anatomy
    patch : tuple of int
        Voxels along z, y, x.
    spacing : float
        Millimetres, isotropic.
    seed : int
        Decides all that is drawn.
    """

    def __init__(self, anatomies: list[Anatomy], patch: tuple[int, int, int], spacing: float, seed: int) -> None:
        self.anatomies = anatomies
        self.patch = patch
        self.spacing = spacing
        self.device = anatomies[0].codes.device
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.levels = sorted({label for anatomy in anatomies for label in anatomy.centres})

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Return images (size, 1, z, y, x) in HU, float32, and vertebra labels (size, z, y, x), int64."""
        samples = [self.sample() for _ in range(size)]
        return torch.stack([image for image, _ in samples])[:, None], torch.stack([labels for _, labels in samples])

    def sample(self) -> tuple[Tensor, Tensor]:
        """Return one image (z, y, x) in HU and its labels."""
        codes = self._field_of_view(self._deformed_codes())
        image = self._paint(codes)
        image = self._scan(image, codes)
        labels = torch.where(codes <= VERTEBRAE, codes, torch.zeros_like(codes)).long()
        return image, labels

    # --- geometry -------------------------------------------------------------------------------------------------

    def _place(self) -> tuple[Anatomy, np.ndarray]:
        """Return an anatomy and a crop centre; all levels are equally likely, then all subjects that have it."""
        rng = self.rng
        level = int(rng.choice(self.levels))
        subjects = sorted({a.subject for a in self.anatomies if level in a.centres})
        subject = rng.choice(subjects)
        candidates = [a for a in self.anatomies if a.subject == subject and level in a.centres]
        anatomy = candidates[rng.integers(len(candidates))]
        if rng.random() < 0.08:
            return anatomy, rng.uniform(0, 1, 3) * anatomy.codes.shape
        jitter = rng.normal(0, (45, 22, 25)) / SPACING
        return anatomy, np.array(anatomy.centres[level]) + jitter

    def _deformed_codes(self) -> Tensor:
        """Return the codes of a patch, uint8, by nearest-neighbour look-up through a random smooth map."""
        rng = self.rng
        anatomy, centre = self._place()
        matrix = (
            _rotation(rng.normal(0, np.deg2rad((12, 8, 8))))
            * rng.uniform(0.82, 1.22)
            @ np.diag(rng.uniform(0.93, 1.07, 3))
        )
        if rng.random() < 0.5:
            matrix = matrix @ np.diag((1, 1, -1))
        matrix = torch.tensor(matrix * self.spacing / SPACING, dtype=torch.float32, device=self.device)
        axes = [torch.arange(n, device=self.device, dtype=torch.float32) - (n - 1) / 2 for n in self.patch]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        where = torch.einsum("ij,jzyx->izyx", matrix, grid)
        where += torch.tensor(centre, dtype=torch.float32, device=self.device)[:, None, None, None]
        for cells, amplitude_mm in ((3, 7.0), (7, 3.0), (16, 0.9)):
            amplitude = amplitude_mm / SPACING * rng.uniform(0, 1.2)
            where += amplitude * self._smooth_noise(3, cells)
        index = where.round().long()
        shape = anatomy.codes.shape
        limit = torch.tensor(shape, device=self.device)[:, None, None, None]
        inside = ((index >= 0) & (index < limit)).all(dim=0)
        # Above and below the map nothing is known; to the sides there is air.
        known = (index[0] >= 0) & (index[0] < shape[0])
        flat = (index[0] * shape[1] + index[1]) * shape[2] + index[2]
        codes = anatomy.codes.flatten()[flat.clamp(0, anatomy.codes.numel() - 1)]
        codes = torch.where(inside, codes, torch.full_like(codes, AIR))
        return torch.where(known, codes, torch.full_like(codes, OUTSIDE))

    def _field_of_view(self, codes: Tensor) -> Tensor:
        """Cut the field of view as scanners and readers do: at a slice, to a cylinder, or to a tight box."""
        rng, (depth, height, width) = self.rng, self.patch
        codes = codes.clone()
        for _ in range(2):
            if rng.random() < 0.18:
                cut = int(rng.uniform(0.05, 0.45) * depth)
                codes[slice(depth - cut, depth) if rng.random() < 0.5 else slice(0, cut)] = OUTSIDE
        chance = rng.random()
        if chance < 0.18:
            y, x = torch.meshgrid(*(torch.arange(n, device=self.device) for n in (height, width)), indexing="ij")
            cy, cx = height / 2 + rng.normal(0, 8), width / 2 + rng.normal(0, 8)
            radius = rng.uniform(65, 170) / self.spacing
            codes[:, (y - cy) ** 2 + (x - cx) ** 2 > radius**2] = OUTSIDE
        elif chance < 0.28:
            for axis, size in ((1, height), (2, width)):
                low = int(rng.uniform(0, 0.3) * size)
                high = int(rng.uniform(0.7, 1.0) * size)
                kept = torch.zeros(size, dtype=torch.bool, device=self.device)
                kept[low:high] = True
                codes[~(kept[None, :, None] if axis == 1 else kept[None, None, :]).expand_as(codes)] = OUTSIDE
        return codes

    # --- intensities ----------------------------------------------------------------------------------------------

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def _smooth_noise(self, channels: int, cells: int | tuple[int, int, int]) -> Tensor:
        """Return (channels, z, y, x) noise with about ``cells`` bumps along the longest axis."""
        if isinstance(cells, int):
            longest = max(self.patch)
            cells = tuple(max(2, round(cells * n / longest)) for n in self.patch)  # type: ignore[assignment]
        coarse = self._noise(1, channels, *cells)  # type: ignore[misc]
        return functional.interpolate(coarse, size=self.patch, mode="trilinear", align_corners=True)[0]

    def _paint(self, codes: Tensor) -> Tensor:
        rng = self.rng
        mean, texture = tissue_priors(rng)
        index = codes.long()
        to_device = {"dtype": torch.float32, "device": self.device}
        image = torch.tensor(mean, **to_device)[index]
        grain = 0.6 * self._noise(*self.patch) + 0.7 * self._smooth_noise(1, 40)[0]
        image += torch.tensor(texture, **to_device)[index] * grain
        self._mix(image, codes, (SOFT,), (mean[MUSCLE], mean[FAT]), 26)
        gas_or_not = (rng.uniform(-20, 60), -850.0 if rng.random() < 0.6 else rng.uniform(80, 500))
        self._mix(image, codes, BOWEL, gas_or_not, 14)
        bone = _is_bone(codes)
        code_values = codes.to(torch.float32)[None, None]
        highest = functional.max_pool3d(code_values, 3, 1, 1)[0, 0]
        lowest = -functional.max_pool3d(-code_values, 3, 1, 1)[0, 0]
        surface = bone & (highest != lowest)
        cortex = rng.uniform(0, 380) * (1 + 0.35 * self._smooth_noise(1, 20)[0])
        image = torch.where(surface, image + cortex, image)
        if rng.random() < 0.2:  # sclerotic or lytic spots
            spots = bone & (self._smooth_noise(1, 24)[0] > 1.6)
            image = torch.where(spots, image + rng.uniform(-150, 350), image)
        if rng.random() < 0.3:  # calcifications, clips, contrast: bright things that are no bone
            blobs = (codes >= FAT) & (codes <= LAST_TISSUE) & (self._smooth_noise(1, 30)[0] > rng.uniform(2.0, 2.8))
            image = torch.where(blobs, rng.uniform(150, 1200), image)
        if rng.random() < 0.5:
            self._table(image, codes)
        return image

    def _mix(
        self, image: Tensor, codes: Tensor, which: tuple[int, ...], values: tuple[float, float], cells: int
    ) -> None:
        """Replace the given tissues by a random mixture of two intensities, in place."""
        region = torch.isin(codes, torch.tensor(which, dtype=codes.dtype, device=self.device))
        field = self._smooth_noise(1, cells)[0] + 0.4 * self._noise(*self.patch)
        second = field > self.rng.normal(0, 0.8)
        mixed = torch.where(second, values[1], values[0]) + 14 * self._noise(*self.patch)
        image.copy_(torch.where(region, mixed, image))

    def _table(self, image: Tensor, codes: Tensor) -> None:
        rows = torch.nonzero(((codes != AIR) & (codes != OUTSIDE)).any(dim=2).any(dim=0))
        if not len(rows):
            return
        start = int(rows.max()) + self.rng.integers(1, 6)
        slab = slice(start, start + int(self.rng.integers(1, 5)))
        image[:, slab] = torch.where(codes[:, slab] == AIR, self.rng.uniform(-700, 150), image[:, slab])

    def _scan(self, image: Tensor, codes: Tensor) -> Tensor:
        """Return the image as a scanner would give it: blurred, in slices, sharpened, noisy, cut off."""
        rng = self.rng
        image = _blur(image, rng.uniform(0.35, 0.85))
        chance = rng.random()
        if chance < 0.45:
            axis = 0 if chance < 0.35 else int(rng.integers(1, 3))
            image = _thick_slices(image, axis, int(rng.integers(2, 4)))
        noise = np.exp(rng.uniform(np.log(3), np.log(45)))
        grain = self._noise(*self.patch)
        if rng.random() < 0.6:
            width = rng.uniform(0.4, 1.0)
            grain = _blur(grain, width)
            grain /= grain.std()
        image = image + noise * grain
        if rng.random() < 0.3:
            image = image + rng.uniform(0.3, 1.5) * (image - _blur(image, 0.9))
        image = image * rng.uniform(0.95, 1.05) + rng.normal(0, 12)
        return torch.where(codes == OUTSIDE, OUTSIDE_HU, image.clamp(-1024, 3071))


def _is_bone(codes: Tensor) -> Tensor:
    other = torch.tensor([*LIMB_BONES, *RIBS_AND_STERNUM, SKULL], dtype=codes.dtype, device=codes.device)
    return ((codes > 0) & (codes <= VERTEBRAE)) | torch.isin(codes, other)


def tissue_priors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and texture (standard deviation) in HU for the 256 codes, drawn around adult values."""
    mean = rng.normal(45, 12, 256)
    texture = np.full(256, 10.0)
    trabecular = rng.uniform(20, 330) if rng.random() < 0.25 else rng.normal(170, 50)
    mean[1 : VERTEBRAE + 1] = trabecular + rng.normal(0, 18, VERTEBRAE)
    texture[1 : VERTEBRAE + 1] = rng.uniform(15, 60)
    bones = [*LIMB_BONES, *RIBS_AND_STERNUM]
    mean[bones] = trabecular * rng.uniform(0.7, 1.6) + rng.normal(0, 30, len(bones))
    texture[bones] = rng.uniform(15, 60)
    mean[SKULL], mean[CARTILAGE] = rng.uniform(400, 1000), rng.normal(110, 45)
    arterial = rng.uniform(60, 360) if rng.random() < 0.6 else 0.0
    venous = arterial * rng.uniform(0.2, 0.9)
    mean[[organ(i) for i in (52, 54, 55, 56, 57, 58, 65, 66)]] = 40 + arterial
    mean[[organ(i) for i in (51, 53, 59, 60, 61, 62, 63, 64, 67, 68)]] = 40 + venous
    mean[LIVER] = rng.normal(58, 10) + 0.3 * venous
    mean[SPLEEN] = rng.normal(50, 8) + 0.4 * venous
    mean[[organ(2), organ(3)]] = rng.normal(33, 6) + rng.uniform(0.3, 1.0) * arterial  # kidneys
    mean[[organ(4), organ(21)]] = rng.normal(8, 8) if rng.random() < 0.85 else rng.uniform(100, 600)  # bile, urine
    mean[LUNG : LUNG + 5], texture[LUNG : LUNG + 5] = rng.uniform(-920, -680), rng.uniform(30, 130)
    mean[TRACHEA] = -980
    mean[FAT], texture[FAT] = rng.normal(-100, 12), 12
    mean[MUSCLE] = rng.normal(55, 10)
    mean[organ(80) : organ(90)] = mean[MUSCLE]
    mean[DISC], mean[CORD] = rng.normal(85, 20), rng.normal(35, 14)
    mean[AIR], texture[AIR] = -1000, rng.uniform(0, 12)
    mean[OUTSIDE], texture[OUTSIDE] = OUTSIDE_HU, 0
    return mean, texture


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation by angles (radians) about z, y and x, for coordinates in (z, y, x) order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        one, two = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[one, one] = turn[two, two] = np.cos(angle)
        turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Return a (z, y, x) image after a separable gaussian of ``sigma`` voxels."""
    radius = max(1, int(np.ceil(2.5 * sigma)))
    x = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    out = image[None, None]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = len(kernel)
        padding = [0, 0, 0, 0, 0, 0]
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
        out = functional.conv3d(functional.pad(out, padding, mode="replicate"), kernel.view(shape))
    return out[0, 0]


def _thick_slices(image: Tensor, axis: int, factor: int) -> Tensor:
    """Return the image averaged over ``factor`` slices and interpolated back."""
    kernel = [1, 1, 1]
    kernel[axis] = factor
    thick = functional.avg_pool3d(image[None, None], kernel, ceil_mode=True)
    return functional.interpolate(thick, size=image.shape, mode="trilinear", align_corners=False)[0, 0]
