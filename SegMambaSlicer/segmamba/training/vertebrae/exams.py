"""Real images with masks of vertebral bodies, as training samples: what nobody has labelled is no background.

``python -m segmamba.training.vertebrae.exams FOLDER OUT`` prepares a folder of NAME_mr.nii.gz and NAME_bodies.nii.gz.
Where it has a ``split.csv`` (columns exam, part), exams of the part "train" are taken and no others.

Such a reference says more than where the bodies are. In front of their posterior walls and along them, all the rest is
background. What is bone behind the walls belongs to a vertebra. What is bone below the last lumbar body is sacrum. Only
what is bone there, the reference does not say, so these places have codes of their own, which the losses know.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional

from segmamba.errors import InputError, OutputError, SegMambaError
from segmamba.evaluation.bodies import column_directions, posterior_wall
from segmamba.evaluation.metrics import centroids
from segmamba.evaluation.names import TRAIN
from segmamba.evaluation.split import SPLIT, exams_of_part
from segmamba.io.modality import MR
from segmamba.io.read import read_volume
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.spine.levels import L5, L6
from segmamba.training.losses import SACRUM_IF_BONE, UNKNOWN, VERTEBRA_IF_BONE
from segmamba.training.synthesis.npz import read_arrays
from segmamba.utils.arrays import as_labels
from segmamba.utils.atomic import atomic_write
from segmamba.utils.words import counted

IMAGE_SUFFIX, BODIES_SUFFIX = "_mr.nii.gz", "_bodies.nii.gz"
SPACING = 1.0  # mm, isotropic: finer than any network's grid
# Centroids of whole vertebrae lie behind those of their bodies by this part of the body's depth, and below them by this
# many mm: medians of T10 to L5 in four open label maps, for bodies drawn without their rim. L5 has a short arch.
BEHIND, BEHIND_L5, BELOW_MM = 0.41, 0.33, 0.6
# The region of the sacrum begins this far below the last body, and reaches backwards by this many mm a mm down.
BELOW_LAST_MM, SACRUM_SLOPE = 3.0, 0.5
# Depth of a body: this part of its voxels lies within it.
DEPTH_PERCENTILES = (2, 98)
# Exams are kept in a GPU's memory as long as they take no more than this part of what is free.
GPU_SHARE = 0.4


@dataclass(frozen=True, eq=False)
class Exam:
    """A real image and what its reference says.

    Attributes
    ----------
    name : str
    image : Tensor (z, y, x), float16
        Intensities; axes to left, posterior and superior.
    labels : Tensor (z, y, x), uint8
        0 background, 1 to 25 bodies, and the codes of `segmamba.training.losses`.
    centres : dict of int to tuple of float
        Centroid (z, y, x in voxels) of each whole vertebra that is labelled; an estimate where only its body is.
    modality : str
        "CT" or "MR".
    """

    name: str
    image: Tensor
    labels: Tensor
    centres: dict[int, tuple[float, ...]]
    modality: str = MR


def exam_of(image: Volume, bodies: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image (float32) and codes (uint8), (z, y, x), on a grid of ``SPACING``, and the vertebrae's centroids.

    The centroids, (n, 4), are level and place (z, y, x in voxels); see `Exam`.

    Raises
    ------
    InputError
        There are fewer than two bodies, or they are not in VerSe numbering.
    """
    levels = as_labels(bodies.array, L6, "The bodies")
    grey, labels = on_grid(image, Volume(levels, bodies.geometry), sitk.sitkNearestNeighbor)
    if len(np.unique(labels)) < 3:
        raise InputError("Fewer than two vertebral bodies lie on the image: give the reference that belongs to it.")
    codes, centres = describe(labels)
    return grey, codes, centres


def on_grid(image: Volume, labels: Volume, interpolator: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (float32) and its labels (uint8), (z, y, x), on a grid of ``SPACING`` with LPS axes."""
    grey = sitk.DICOMOrient(to_image(image.array.astype(np.float32), image.geometry), "LPS")
    size = [max(1, round(n * s / SPACING)) for n, s in zip(grey.GetSize(), grey.GetSpacing(), strict=True)]
    where = (grey.GetOrigin(), [SPACING] * 3, grey.GetDirection())
    grey = sitk.Resample(grey, size, sitk.Transform(), sitk.sitkLinear, *where)
    drawn = sitk.Resample(to_image(labels.array, labels.geometry), size, sitk.Transform(), interpolator, *where)
    return sitk.GetArrayFromImage(grey), sitk.GetArrayFromImage(drawn)


def describe(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return codes (z, y, x) and centroids (n, 4), as `exam_of`, of bodies on a grid of ``SPACING`` with LPS axes."""
    grid = Geometry(labels.shape[::-1], (SPACING,) * 3, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    found = centroids(labels, grid)
    values = sorted(found)
    places = np.array([found[value] for value in values])
    directions = column_directions(places)
    directions *= np.sign(directions[:, 2:])  # up
    index = np.nonzero(np.ones(labels.shape, bool))
    points = (np.stack(index[::-1], axis=1) * SPACING).astype(np.float32)
    nearest = np.stack([((points - place) ** 2).sum(axis=1) for place in places]).argmin(axis=0)
    codes = np.full(len(points), UNKNOWN, np.uint8)
    centres = []
    for number, value in enumerate(values):
        body = np.argwhere(labels == value)[:, ::-1] * SPACING
        up = directions[number]
        backwards, wall = posterior_wall(body, up, SPACING)
        low, high = np.percentile(body @ up, (0.5, 99.5))
        near = nearest == number
        height, depth = points[near] @ up, points[near] @ backwards
        along = np.ones(len(height), bool)
        if number == 0:
            along &= height <= high + SPACING
        if number == len(values) - 1:
            along &= height >= low - SPACING
        own = np.where(depth <= wall, 0, VERTEBRA_IF_BONE)
        own[~along] = UNKNOWN
        own[~along & (height > high)] = VERTEBRA_IF_BONE
        if value == L5:
            below = low - height
            own[(below >= BELOW_LAST_MM) & (depth <= wall + SACRUM_SLOPE * below)] = SACRUM_IF_BONE
        codes[near] = own
        front, back = np.percentile(body @ backwards, DEPTH_PERCENTILES)
        share = BEHIND_L5 if value == L5 else BEHIND
        place = found[value] + share * (back - front) * backwards - BELOW_MM * up
        centres.append([value, *(place[::-1] / SPACING)])
    volume = codes.reshape(labels.shape)
    volume[labels > 0] = labels[labels > 0]
    return volume, np.array(centres)


def training_exams(folder: Path) -> list[str]:
    """Return the names of the exams in a folder that may be trained on.

    Raises
    ------
    InputError
        There is none, or ``split.csv`` does not name the part of one.
    """
    names = sorted(path.name.removesuffix(IMAGE_SUFFIX) for path in folder.glob(f"*{IMAGE_SUFFIX}"))
    names = [name for name in names if (folder / f"{name}{BODIES_SUFFIX}").is_file()]
    names = exams_of_part(folder, names, TRAIN)
    if not names:
        raise InputError(
            f"{folder} holds no pair NAME{IMAGE_SUFFIX} and NAME{BODIES_SUFFIX} to train on: check the folder."
        )
    return names


def prepare(folder: Path, output: Path) -> list[str]:
    """Write an ``.npz`` for each exam to train on, and return their names.

    Raises
    ------
    InputError
        See `training_exams` and `exam_of`.
    OutputError
        The result cannot be written.
    """
    names = training_exams(folder)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {output} cannot be made: choose another one.") from error
    for name in names:
        image, codes, centres = exam_of(
            read_volume(folder / f"{name}{IMAGE_SUFFIX}"), read_volume(folder / f"{name}{BODIES_SUFFIX}")
        )
        write_exam(output / f"{name}.npz", image, codes, centres)
    return names


def write_exam(path: Path, image: np.ndarray, codes: np.ndarray, centres: np.ndarray, modality: str = MR) -> None:
    """Write what `exam_of` returned. Raises OutputError."""
    with atomic_write(path, (".npz",)) as file:
        np.savez_compressed(
            file, image=image.astype(np.float16), labels=codes, centres=centres, modality=np.array(modality)
        )


def load_exams(files: Sequence[Path], device: torch.device) -> list[Exam]:
    """Read the files that `prepare` wrote, onto a device, or into main memory where a GPU has too little room.

    Raises
    ------
    InputError
        One is damaged.
    """
    exams = []
    for file in files:
        image, labels = read_arrays(file, ["image", "labels"], "'python -m segmamba.training.vertebrae.exams'")
        with np.load(file) as content:
            rows = content["centres"].tolist() if "centres" in content else []
            modality = str(content["modality"]) if "modality" in content else MR
        if not rows:
            raise InputError(
                f"{file} holds no centres: make it again with 'python -m segmamba.training.vertebrae.exams'."
            )
        centres: dict[int, tuple[float, ...]] = {int(level): tuple(place) for level, *place in rows}
        exams.append(Exam(file.stem, torch.from_numpy(image), torch.from_numpy(labels), centres, modality))
    if device.type == "cuda" and sum(map(_bytes, exams)) > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        return exams
    return [replace(exam, image=exam.image.to(device), labels=exam.labels.to(device)) for exam in exams]


def _bytes(exam: Exam) -> int:
    return exam.image.nbytes + exam.labels.nbytes


def cropped(exam: Exam, where: Tensor) -> tuple[Exam, Tensor]:
    """Return the part of an exam around places, on their device, and the places in it; parameters as in `sampled`."""
    sizes = torch.tensor(exam.image.shape)
    ends = torch.stack([where.amin((1, 2, 3)).floor() - 1, where.amax((1, 2, 3)).ceil() + 2]).cpu().long()
    low, high = torch.minimum(ends.clamp(min=0), sizes)
    low, high = torch.minimum(low, sizes - 1), torch.maximum(high, low + 1)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    part = replace(exam, image=exam.image[box].to(where.device), labels=exam.labels[box].to(where.device))
    return part, where - low.to(where.device)[:, None, None, None]


def sampled(exam: Exam, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return image, codes and whether there is an image, all (z, y, x), at places (3, z, y, x) in voxels of an exam."""
    if exam.image.device != where.device:
        return sampled(*cropped(exam, where))
    sizes = torch.tensor(exam.image.shape, dtype=torch.float32, device=where.device)
    inside = ((where > -0.5) & (where < sizes[:, None, None, None] - 0.5)).all(dim=0)
    places = (2 * where / (sizes - 1)[:, None, None, None] - 1).flip(0).movedim(0, -1)[None]
    image = functional.grid_sample(
        exam.image.to(torch.float32)[None, None], places, align_corners=True, padding_mode="border"
    )[0, 0]
    k, j, i = torch.minimum(where.clamp(min=0), sizes[:, None, None, None] - 1).round().long()
    return image, exam.labels[k, j, i], inside


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segmamba.training.vertebrae.exams", description="Prepare real MR with vertebral bodies."
    )
    help_text = f"holds NAME{IMAGE_SUFFIX}, NAME{BODIES_SUFFIX} (VerSe numbering) and perhaps {SPLIT}"
    parser.add_argument("folder", metavar="FOLDER", type=Path, help=help_text)
    parser.add_argument("output", metavar="OUT_FOLDER", type=Path, help="for NAME.npz, made where missing")
    options = parser.parse_args(arguments)
    try:
        names = prepare(options.folder, options.output)
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"In {options.output}: {counted(len(names), 'exam')}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
