"""Does the result depend on how a volume is stored? ``python benchmarks/robustness.py IMAGE [--device cpu]``.

Segments a CT, a copy with permuted and flipped axes in another format, and a copy on an oblique grid, and compares
the three on the first one's voxels. Prints one JSON line a copy.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from segmamba.files import segment_file
from segmamba.request import Options, Request


def segment(image: sitk.Image, path: Path, device: str) -> sitk.Image:
    """Write an image, segment the file, and return its label map."""
    sitk.WriteImage(image, str(path))
    output = path.with_suffix(".labels.nii.gz")
    request = Request(input=str(path), output=str(output), task="vertebrae", options=Options(device=device))
    segment_file(request)
    return sitk.ReadImage(str(output))


def oblique(image: sitk.Image) -> sitk.Image:
    """Return a copy on a grid that is turned by 12 degrees about x and 9 degrees about z."""
    turn = sitk.Euler3DTransform(image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()]))
    turn.SetRotation(np.deg2rad(12), 0.0, np.deg2rad(9))
    rotation = np.reshape(turn.GetMatrix(), (3, 3))
    direction = rotation @ np.reshape(image.GetDirection(), (3, 3))
    corners = [[(n - 1) * bit for n, bit in zip(image.GetSize(), bits, strict=True)] for bits in np.ndindex(2, 2, 2)]
    points = np.array([image.TransformContinuousIndexToPhysicalPoint(corner) for corner in corners]) @ direction
    low, high = points.min(axis=0), points.max(axis=0)
    size = [int(np.ceil(length)) + 1 for length in (high - low) / image.GetSpacing()]
    origin = (direction @ low).tolist()
    identity = sitk.Transform()
    return sitk.Resample(
        image, size, identity, sitk.sitkLinear, origin, image.GetSpacing(), direction.ravel().tolist(), -1024.0
    )


def surface(mask: np.ndarray) -> np.ndarray:
    """Return the voxels of a mask that touch the background."""
    return mask & ~ndimage.binary_erosion(mask)


def compare(labels: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    """Return how two label maps (z, y, x) on one grid differ; ``spacing`` is z, y, x in mm."""
    ours, theirs = labels > 0, reference > 0
    distances = ndimage.distance_transform_edt(~surface(theirs), sampling=spacing)[surface(ours)]
    return {
        "voxels_of_another_label": float((labels != reference).sum() / theirs.sum()),
        "dice_of_all": float(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())),
        "surface_distance_mean_mm": float(distances.mean()),
        "surface_within_one_voxel": float((distances <= max(spacing)).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    image = sitk.ReadImage(str(options.image))
    spacing = image.GetSpacing()[::-1]
    with tempfile.TemporaryDirectory() as folder:
        reference = sitk.GetArrayFromImage(segment(image, Path(folder) / "as_it_is.nii.gz", options.device))
        permuted = sitk.Flip(sitk.PermuteAxes(image, [2, 0, 1]), [True, False, True])
        for name, copy, suffix in (("permuted", permuted, ".nrrd"), ("oblique", oblique(image), ".mha")):
            labels = segment(copy, Path(folder) / f"{name}{suffix}", options.device)
            back = sitk.Resample(labels, image, sitk.Transform(), sitk.sitkNearestNeighbor)
            result = compare(sitk.GetArrayFromImage(back), reference, spacing)
            print(json.dumps({"copy": name} | {key: round(value, 5) for key, value in result.items()}), flush=True)


if __name__ == "__main__":
    main()
