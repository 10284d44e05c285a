"""A trial of Docs/train-colorectal.md without its data: Task10_Colon's layout, painted around four real tumour masks.

    python benchmarks/task10_colon.py MASKS Task10_Colon [--spacing 3] [--copies 6]

MASKS holds msd_colonNNN_tumour.nii.gz, masks of the Medical Segmentation Decathlon on the grids of their CTs, which are
not there. A body with fat, gas-filled and stool-filled bowel is painted around each, so that every step of the page can
run: the check, the plan, the training, the import. What a network learns from it says nothing about real patients.

With copies, several bodies are painted around each mask, mirrored and moved about. All of one mask are one person.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

AIR, FAT, TISSUE, STOOL, TUMOUR = -1000.0, -100.0, 45.0, 20.0, 85.0
NOISE, LOOPS = 18.0, 14
# Body and bowel, in mm.
HALF_WIDTH, HALF_DEPTH, SKIN, RADIUS, WALL = 175.0, 120.0, 18.0, 17.0, 3.0


def main() -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("masks", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--spacing", type=float, help="mm of a coarser, isotropic grid: for a quick trial")
    parser.add_argument("--copies", type=int, default=1, help="bodies for each mask (default: 1)")
    options = parser.parse_args()
    masks = sorted(options.masks.glob("msd_colon*_tumour.nii.gz"))
    with ProcessPoolExecutor() as pool:
        begun = [
            pool.submit(write_case, mask, copy, number + copy * len(masks), options)
            for number, mask in enumerate(masks)
            for copy in range(options.copies)
        ]
        entries = [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in (b.result() for b in begun)
        ]
    description = {
        "name": "Colon",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "colon cancer primaries"},
        "numTraining": len(entries),
        "training": entries,
        "test": [],
    }
    (options.output / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def write_case(path: Path, copy: int, seed: int, options: argparse.Namespace) -> str:
    """Write a painted image and its mask, and return the name of both files."""
    mask = sitk.Cast(sitk.ReadImage(str(path)) > 0, sitk.sitkUInt8)
    mask = resampled(mask, options.spacing) if options.spacing else mask
    if copy:
        mask = moved(mask, np.random.default_rng((seed, 1)))
    case = path.name[len("msd_colon") :].split("_")[0]
    # A name of BIDS says whose the copies are.
    name = f"sub-colon{case}_{copy + 1}.nii.gz" if options.copies > 1 else f"colon_{case}.nii.gz"
    painted = sitk.GetImageFromArray(paint(sitk.GetArrayFromImage(mask) > 0, mask.GetSpacing()[::-1], seed))
    painted.CopyInformation(mask)
    for part, image in (("imagesTr", painted), ("labelsTr", mask)):
        (options.output / part).mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(options.output / part / name), useCompression=True)
    return name


def moved(mask: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """Return a mask that is mirrored along random axes and lies somewhere else in the body, whole."""
    array = sitk.GetArrayFromImage(mask)
    array = array[tuple(slice(None, None, int(rng.choice((-1, 1)))) for _ in range(3))]
    places = np.argwhere(array)
    middle, size = (np.array(array.shape) - 1) / 2, places.max(axis=0) - places.min(axis=0)
    reach = np.array([0.5 * array.shape[0], *np.array([HALF_DEPTH, HALF_WIDTH]) * 0.6 / mask.GetSpacing()[0]])
    centre = middle + rng.uniform(-1, 1, 3) * np.maximum(0, np.minimum(reach, middle) - size / 2 - 1)
    shift = np.round(centre - (places.max(axis=0) + places.min(axis=0)) / 2).astype(int)
    new = np.zeros_like(array)
    new[tuple((places + shift).T)] = 1
    image = sitk.GetImageFromArray(new)
    image.CopyInformation(mask)
    return image


def resampled(mask: sitk.Image, step: float) -> sitk.Image:
    """Return a mask on an isotropic grid."""
    size = [max(1, round(n * s / step)) for n, s in zip(mask.GetSize(), mask.GetSpacing(), strict=True)]
    identity, linear = sitk.Transform(), sitk.sitkLabelLinear
    return sitk.Resample(mask, size, identity, linear, mask.GetOrigin(), (step,) * 3, mask.GetDirection())


def paint(tumour: np.ndarray, spacing: tuple[float, ...], seed: int) -> np.ndarray:
    """Return a CT in HU, int16 (z, y, x), around a tumour's mask.

    The bowel is a chain of loops through the tumour, filled with gas or stool; the tumour grows on its wall.
    """
    rng = np.random.default_rng(seed)
    steps = np.array(spacing)
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(tumour.shape, steps, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = (x / HALF_WIDTH) ** 2 + (y / HALF_DEPTH) ** 2
    depth = (1 - np.sqrt(inside)) * HALF_DEPTH
    ct = np.where(depth > 0, np.where(depth > SKIN, TISSUE, FAT), AIR) + 0 * z
    centre = (np.array(ndimage.center_of_mass(tumour)) - (np.array(tumour.shape) - 1) / 2) * steps
    for number in range(LOOPS):
        place = centre if number == 0 else rng.uniform((axes[0][0], -70, -110), (axes[0][-1], 70, 110))
        stretch = rng.uniform(0.7, 1.8, 3)
        distance = np.sqrt(sum(((axis - p) / s) ** 2 for axis, p, s in zip((z, y, x), place, stretch, strict=True)))
        ct[distance < RADIUS] = TISSUE
        lumen = distance < RADIUS - WALL
        level = place[1] + rng.uniform(-10, 10)
        # Gas rises to the front, which is where y begins.
        ct[lumen & (y + 0 * distance < level)] = AIR
        ct[lumen & (y + 0 * distance >= level)] = STOOL + rng.uniform(-30, 60)
    ct[tumour] = TUMOUR + rng.normal(0, 10)
    blurred = ndimage.gaussian_filter(ct, 0.6 / steps)
    grain = ndimage.gaussian_filter(rng.normal(0, 1, ct.shape), 0.8)
    return np.clip(blurred + NOISE * grain / grain.std(), -1024, 3071).astype(np.int16)


if __name__ == "__main__":
    main()
