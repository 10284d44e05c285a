"""CT-like training images painted from tissue codes, on whatever device the codes lie.

Each call draws a new place, pose, elastic deformation, set of tissue intensities, scanner (blur, slice thickness,
noise, kernel) and field of view, so no image is ever seen twice and no real voxel is ever used. The idea of training
on painted label maps is Billot et al., SynthSeg, 2023; the CT priors and the recipe are our own.
Codes are those of `segmamba.training.tissues`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from segmamba.errors import InputError
from segmamba.training.arrays import read_arrays
from segmamba.training.filters import blur, thick_slices
from segmamba.training.priors import OUTSIDE_HU, tissue_priors
from segmamba.training.tissues import (
    AIR,
    BOWEL,
    FAT,
    LAST_TISSUE,
    LIMB_BONES,
    MUSCLE,
    OUTSIDE,
    RIBS_AND_STERNUM,
    SKULL,
    SOFT,
    SPACING,
    VERTEBRAE,
)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One map of tissues.

    Attributes
    ----------
    subject : str
        Whose; several maps may show one subject.
    codes : Tensor (z, y, x), uint8
        On a grid of `segmamba.training.tissues.SPACING`, axes to left, posterior and superior.
    centres : dict of int to tuple of float
        Centre (z, y, x in voxels) of each vertebra.
    """

    subject: str
    codes: Tensor
    centres: dict[int, tuple[float, float, float]]


def load_anatomies(files: Sequence[Path], device: torch.device) -> list[Anatomy]:
    """Read the files that `segmamba.training.anatomy.prepare` wrote.

    Raises
    ------
    InputError
        There are none, or one is damaged.
    """
    if not files:
        raise InputError("There is no anatomy to train on: make some with 'python -m segmamba.training.anatomy'.")
    anatomies = []
    for file in files:
        (codes,) = read_arrays(file, ["codes"], "'python -m segmamba.training.anatomy'")
        vertebrae = np.where(codes <= VERTEBRAE, codes, 0)
        present = [int(label) for label in np.unique(vertebrae) if label]
        centres = dict(zip(present, ndimage.center_of_mass(vertebrae > 0, vertebrae, present), strict=True))
        anatomies.append(Anatomy(file.stem.rsplit("_", 1)[0], torch.from_numpy(codes).to(device), centres))
    return anatomies


class Painter:
    """Paints training samples; two painters with the same seed paint the same ones.

    Nothing here reads a value back from the device, and what goes there is pinned: the processor runs ahead, and
    paints the next samples while the GPU is still busy with the network.

    Parameters
    ----------
    anatomies : sequence of Anatomy
        On the device where the samples shall be.
    patch : tuple of int
        Voxels of a sample along z, y, x.
    spacing : float
        Their size in mm.
    seed : int
    """

    def __init__(
        self, anatomies: Sequence[Anatomy], patch: tuple[int, int, int], spacing: float, seed: int = 0
    ) -> None:
        self.anatomies = anatomies
        self.patch = patch
        self.spacing = spacing
        self.device = anatomies[0].codes.device
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.levels = sorted({label for anatomy in anatomies for label in anatomy.centres})
        bones = (*range(1, VERTEBRAE + 1), *LIMB_BONES, *RIBS_AND_STERNUM, SKULL)
        self.is_bone, self.is_bowel = self._members(bones), self._members(BOWEL)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Return images (size, 1, z, y, x) in HU, float32, and vertebra labels (size, z, y, x), int64."""
        samples = [self.sample() for _ in range(size)]
        return torch.stack([image for image, _ in samples])[:, None], torch.stack([labels for _, labels in samples])

    def sample(self) -> tuple[Tensor, Tensor]:
        """Return one image (z, y, x) in HU, float32, and its labels (z, y, x), int64."""
        codes = self._field_of_view(self._deformed_codes())
        image = self._scan(self._paint(codes), codes)
        return image, codes.masked_fill(codes > VERTEBRAE, 0).long()

    # --- geometry -------------------------------------------------------------------------------------------------

    def place(self) -> tuple[Anatomy, np.ndarray]:
        """Return an anatomy and a crop centre (z, y, x in its voxels).

        All levels are equally likely, then all subjects that have it, then all maps of the subject.
        """
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
        anatomy, centre = self.place()
        turned = rotation(rng.normal(0, np.deg2rad((12, 8, 8))))
        matrix = turned * rng.uniform(0.82, 1.22) @ np.diag(rng.uniform(0.93, 1.07, 3))
        if rng.random() < 0.5:
            matrix = matrix @ np.diag((1, 1, -1))
        affine = self._upload(np.column_stack([matrix * self.spacing / SPACING, centre]))[:, :, None, None, None]
        z, y, x = (torch.arange(n, device=self.device, dtype=torch.float32) - (n - 1) / 2 for n in self.patch)
        where = affine[:, 0] * z[:, None, None] + affine[:, 1] * y[:, None] + affine[:, 2] * x + affine[:, 3]
        for cells, amplitude_mm in ((3, 7.0), (7, 3.0), (16, 0.9)):
            amplitude = amplitude_mm / SPACING * rng.uniform(0, 1.2)
            where += amplitude * self._smooth_noise(3, cells)
        k, j, i = where.round().long()
        depth, height, width = anatomy.codes.shape
        # Above and below the map nothing is known; to the sides there is air.
        known = (k >= 0) & (k < depth)
        inside = (j >= 0) & (j < height) & (i >= 0) & (i < width)
        flat = ((k * height + j) * width + i).clamp(0, anatomy.codes.numel() - 1)
        return anatomy.codes.flatten()[flat].masked_fill(~inside, AIR).masked_fill(~known, OUTSIDE)

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
            y = torch.arange(height, device=self.device)[:, None] - (height / 2 + rng.normal(0, 8))
            x = torch.arange(width, device=self.device) - (width / 2 + rng.normal(0, 8))
            radius = rng.uniform(65, 170) / self.spacing
            codes.masked_fill_(y**2 + x**2 > radius**2, OUTSIDE)
        elif chance < 0.28:
            for axis, size in ((1, height), (2, width)):
                low = int(rng.uniform(0, 0.3) * size)
                high = int(rng.uniform(0.7, 1.0) * size)
                codes.narrow(axis, 0, low).fill_(OUTSIDE)
                codes.narrow(axis, high, size - high).fill_(OUTSIDE)
        return codes

    # --- intensities ----------------------------------------------------------------------------------------------

    def _paint(self, codes: Tensor) -> Tensor:
        """Return an image (z, y, x) in HU of a perfect scanner."""
        rng = self.rng
        mean, texture = tissue_priors(rng)
        priors = self._upload(np.stack([mean, texture]))
        index = codes.long()
        grain = 0.6 * self._noise() + 0.7 * self._smooth_noise(1, 40)[0]
        image = priors[0][index] + priors[1][index] * grain
        image = self._mix(image, codes == SOFT, (mean[MUSCLE], mean[FAT]), 26)
        gas_or_not = (rng.uniform(-20, 60), -850.0 if rng.random() < 0.6 else rng.uniform(80, 500))
        image = self._mix(image, self.is_bowel[index], gas_or_not, 14)
        bone = self.is_bone[index]
        image = self._shell(image, codes, bone)
        if rng.random() < 0.2:  # sclerotic or lytic spots
            spots = bone & (self._smooth_noise(1, 24)[0] > 1.6)
            image = torch.where(spots, image + rng.uniform(-150, 350), image)
        if rng.random() < 0.3:  # calcifications, clips, contrast: bright things that are no bone
            blobs = (codes >= FAT) & (codes <= LAST_TISSUE) & (self._smooth_noise(1, 30)[0] > rng.uniform(2.0, 2.8))
            image = torch.where(blobs, rng.uniform(150, 1200), image)
        if rng.random() < 0.5:
            image = self._table(image, codes)
        return image

    def _mix(self, image: Tensor, region: Tensor, values: tuple[float, float], cells: int) -> Tensor:
        """Replace a region by a random mixture of two intensities."""
        field = self._smooth_noise(1, cells)[0] + 0.4 * self._noise()
        second = field > self.rng.normal(0, 0.8)
        mixed = torch.where(second, values[1], values[0]) + 14 * self._noise()
        return torch.where(region, mixed, image)

    def _shell(self, image: Tensor, codes: Tensor, bone: Tensor) -> Tensor:
        """Brighten the outermost voxels of bones, and the borders between them, as cortical bone does."""
        values = codes.to(torch.float32)[None, None]
        highest = functional.max_pool3d(values, 3, 1, 1)[0, 0]
        lowest = -functional.max_pool3d(-values, 3, 1, 1)[0, 0]
        cortex = self.rng.uniform(0, 380) * (1 + 0.35 * self._smooth_noise(1, 20)[0])
        return torch.where(bone & (highest != lowest), image + cortex, image)

    def _table(self, image: Tensor, codes: Tensor) -> Tensor:
        """Put a slab of another material into the air behind the body."""
        gap, thickness = int(self.rng.integers(1, 6)), int(self.rng.integers(1, 5))
        rows = torch.arange(self.patch[1], device=self.device)
        occupied = ((codes != AIR) & (codes != OUTSIDE)).any(dim=2).any(dim=0)
        beyond = rows - rows.masked_fill(~occupied, -self.patch[1]).max()
        slab = occupied.any() & (beyond >= gap) & (beyond < gap + thickness)
        return torch.where((codes == AIR) & slab[:, None], self.rng.uniform(-700, 150), image)

    def _scan(self, image: Tensor, codes: Tensor) -> Tensor:
        """Return the image as a scanner would give it: blurred, in slices, sharpened, noisy, cut off."""
        rng = self.rng
        image = blur(image, rng.uniform(0.35, 0.85))
        chance = rng.random()
        if chance < 0.45:
            axis = 0 if chance < 0.35 else int(rng.integers(1, 3))
            image = thick_slices(image, axis, int(rng.integers(2, 4)))
        noise = np.exp(rng.uniform(np.log(3), np.log(45)))
        grain = self._noise()
        if rng.random() < 0.6:
            grain = blur(grain, rng.uniform(0.4, 1.0))
            grain /= grain.std()
        image = image + noise * grain
        if rng.random() < 0.3:
            image = image + rng.uniform(0.3, 1.5) * (image - blur(image, 0.9))
        image = image * rng.uniform(0.95, 1.05) + rng.normal(0, 12)
        return torch.where(codes == OUTSIDE, OUTSIDE_HU, image.clamp(-1024, 3071))

    # --- tensors on the device ------------------------------------------------------------------------------------

    def _noise(self) -> Tensor:
        return torch.randn(self.patch, generator=self.generator, device=self.device)

    def _smooth_noise(self, channels: int, cells: int) -> Tensor:
        """Return (channels, z, y, x) noise with about ``cells`` bumps along the longest axis."""
        longest = max(self.patch)
        shape = [max(2, round(cells * n / longest)) for n in self.patch]
        coarse = torch.randn((1, channels, *shape), generator=self.generator, device=self.device)
        return functional.interpolate(coarse, size=self.patch, mode="trilinear", align_corners=True)[0]

    def _upload(self, values: np.ndarray) -> Tensor:
        """Return float32 values on the device."""
        tensor = torch.from_numpy(values).float()
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # from other memory the copy would wait until the GPU is done
        return tensor.to(self.device, non_blocking=True)

    def _members(self, codes: Iterable[int]) -> Tensor:
        """Return a table of 256 truth values: whether a code is one of ``codes``."""
        table = torch.zeros(256, dtype=torch.bool)
        table[list(codes)] = True
        return table.to(self.device)


def rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation by angles (radians) about z, y and x, for coordinates in (z, y, x) order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        one, two = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[one, one] = turn[two, two] = np.cos(angle)
        turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix
